"""The methods' losses in float64 numpy: written from the equations, sharing no code with dspkd."""

import numpy as np


def np_softmax(z):
    e = np.exp(z - z.max(1, keepdims=True))
    return e / e.sum(1, keepdims=True)


def np_cross_entropy(z, y):
    return float(-np.log(np_softmax(z))[np.arange(len(y)), y].mean())


def np_norm_kd(z_s, z_t, t_norm):
    tau_s = t_norm * (z_s.std(1, ddof=1, keepdims=True) + 1e-6)
    tau_t = t_norm * (z_t.std(1, ddof=1, keepdims=True) + 1e-6)
    p_s, p_t = np_softmax(z_s / tau_s), np_softmax(z_t / tau_t)
    kl = (p_t * (np.log(p_t) - np.log(p_s))).sum(1)
    return float((tau_t[:, 0] ** 2 * kl).mean())


def np_conv3x3(x, w, b):
    batch, _, height, width = x.shape
    padded = np.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1)))
    out = np.zeros((batch, w.shape[0], height, width))
    for i in range(3):
        for j in range(3):
            out += np.einsum("oc,bchw->bohw", w[:, :, i, j], padded[:, :, i : i + height, j : j + width])
    return out + b[None, :, None, None]


def np_gelu(x):
    from math import erf, sqrt

    return x * 0.5 * (1 + np.vectorize(erf)(x / sqrt(2)))


def np_upsample2(x):
    """Bilinear to twice the size, half-pixel centres (align_corners=False)."""

    def axis(n):
        source = np.clip((np.arange(2 * n) + 0.5) / 2 - 0.5, 0, n - 1)
        low = np.floor(source).astype(int)
        high = np.minimum(low + 1, n - 1)
        m = np.zeros((2 * n, n))
        m[np.arange(2 * n), low] += 1 - (source - low)
        m[np.arange(2 * n), high] += source - low
        return m

    return np.einsum("ih,bchw,jw->bcij", axis(x.shape[2]), x, axis(x.shape[3]))


def np_energy(x):
    squeezed = np.abs(x).mean((2, 3))
    w = np_softmax(squeezed / 0.5) * x.shape[1]
    p = np.abs(x * w[:, :, None, None]).mean(1, keepdims=True)
    return p / p.mean((2, 3), keepdims=True)


def np_hf(levels, size):
    q = np_energy(levels[-1])
    for level in levels[-2::-1]:
        q = 0.5 * np_energy(level) + 0.5 * np_upsample2(q)
    step = q.shape[2] // size
    pooled = q.reshape(q.shape[0], 1, size, step, size, step).mean((3, 5))
    return pooled / pooled.mean((2, 3), keepdims=True)


def np_log_softmax(z):
    return np.log(np_softmax(z))


def np_kd(z_s, z_t, temperature):
    """T² mean KL(t || s)."""
    p_t = np_softmax(z_t / temperature)
    kl = (p_t * (np.log(p_t) - np_log_softmax(z_s / temperature))).sum(1)
    return float(temperature**2 * kl.mean())


def np_weighted_cross_entropy(z, y, weights):
    losses = -np_log_softmax(z)[np.arange(len(y)), y]
    return float((weights[y] * losses).sum() / weights[y].sum())


def np_conv1x1(x, w, b=None):
    out = np.einsum("oc,bchw->bohw", w[:, :, 0, 0], x)
    return out if b is None else out + b[None, :, None, None]


def np_depthwise3x3(x, w):
    height, width = x.shape[2:]
    padded = np.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1)))
    return sum(
        w[None, :, 0, i, j, None, None] * padded[:, :, i : i + height, j : j + width]
        for i in range(3)
        for j in range(3)
    )


def np_batch_norm(x):
    """In training mode, with weight 1 and bias 0."""
    mean, variance = x.mean((0, 2, 3), keepdims=True), x.var((0, 2, 3), keepdims=True)
    return (x - mean) / np.sqrt(variance + 1e-5)


def np_smooth_l1(a, b):
    d = np.abs(a - b)
    return float(np.where(d < 1, 0.5 * d**2, d - 0.5).mean())


def np_distances(f):
    d = np.sqrt(((f[:, None] - f[None]) ** 2).sum(2))
    return d / d[d > 0].mean()


def np_angles(f):
    n = len(f)
    out = np.zeros((n, n, n))
    for j in range(n):
        for i in range(n):
            for k in range(n):
                if j not in (i, k):
                    a, b = f[i] - f[j], f[k] - f[j]
                    out[j, i, k] = a @ b / np.linalg.norm(a) / np.linalg.norm(b)
    return out


def np_gram(x):
    n, c, h, w = x.shape
    flat = x.reshape(n, c, h * w)
    return flat @ flat.transpose(0, 2, 1) / (c * h * w)


def np_crkd(s, t):
    return float(np.sqrt(((np_gram(s) - np_gram(t)) ** 2).mean()))


def np_drkd(f_s, f_t):
    return 25 * np_smooth_l1(np_distances(f_s), np_distances(f_t)) + 50 * np_smooth_l1(np_angles(f_s), np_angles(f_t))


def np_cosines(e):
    unit = e / np.linalg.norm(e, axis=1, keepdims=True)
    b = len(e) // 4
    return unit[b:] @ unit[:b].T


def np_linear(x, w, b):
    return x @ w.T + b
