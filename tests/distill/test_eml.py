"""EML-style mutual learning: three networks teach each other, and no target is pulled towards its learner."""

import numpy as np
import pytest
import torch
from numpy_losses import (
    np_batch_norm,
    np_conv1x1,
    np_cross_entropy,
    np_depthwise3x3,
    np_kd,
    np_linear,
)

from dspkd.distill import METHODS, MethodContext, StepInputs
from dspkd.distill.eml import FusionBranch, ramp

B, K = 4, 3


def build(**settings):
    torch.manual_seed(1)
    context = MethodContext(
        num_classes=K,
        student_final="s",
        student_shapes={"s": (5, 3, 3)},
        teacher_final="t",
        teacher_shapes={"t": (6, 3, 3)},
    )
    return METHODS["eml"].build(METHODS["eml"].Settings(**settings), context).double()


@pytest.fixture
def arrays():
    rng = np.random.default_rng(2)
    return {
        "s": rng.normal(size=(B, 5, 3, 3)),
        "t": rng.normal(size=(B, 6, 3, 3)),
        "z_1": rng.normal(size=(B, K)) * 2,
        "z_2": rng.normal(size=(B, K)) * 2,
        "y": rng.integers(0, K, B),
    }


def run(method, a, progress):
    leaves = {k: torch.tensor(a[k], requires_grad=True) for k in ("s", "t", "z_1", "z_2")}
    out = method(
        StepInputs(
            labels=torch.tensor(a["y"]),
            student_logits=leaves["z_1"],
            student_maps={"s": leaves["s"]},
            teacher_logits=leaves["z_2"],
            teacher_maps={"t": leaves["t"]},
            progress=progress,
        )
    )
    out["loss"].backward()
    return float(out["loss"].detach()), leaves, out


def np_fused(method, a):
    p = {k: v.detach().numpy() for k, v in method.fusion.state_dict().items()}
    both = np.concatenate([a["s"], np_conv1x1(a["t"], p["align.weight"])], axis=1)
    mixed = np.maximum(np_batch_norm(np_depthwise3x3(both, p["fuse.0.weight"])), 0)
    fused = np.maximum(np_batch_norm(np_conv1x1(mixed, p["fuse.3.weight"])), 0)
    squeezed = fused.mean((2, 3))
    hidden = np.maximum(np_linear(squeezed, p["gate.0.weight"], p["gate.0.bias"]), 0)
    gate = 1 / (1 + np.exp(-np_linear(hidden, p["gate.2.weight"], p["gate.2.bias"])))
    gated = (fused * gate[:, :, None, None]).mean((2, 3))
    return np_linear(gated, p["classifier.weight"], p["classifier.bias"])


def np_loss(z_1, z_2, z_f, y, r, targets=None, mutual=1.0):
    """`targets`: the networks as they stand on the teaching side of a term."""
    t_1, t_2, t_f = targets or (z_1, z_2, z_f)
    labels = np_cross_entropy(z_1, y) + np_cross_entropy(z_2, y) + np_cross_entropy(z_f, y)
    fusion = np_kd(z_1, t_f, 3) + np_kd(z_2, t_f, 3) + np_kd(z_f, (t_1 + t_2) / 2, 3)
    return labels + r * fusion + r * mutual * (np_kd(z_1, t_2, 3) + np_kd(z_2, t_1, 3))


@pytest.mark.parametrize("progress", [0.0, 0.1, 0.9])
def test_golden(arrays, progress):
    method = build()
    loss, _, _ = run(method, arrays, progress)
    z_f = np_fused(method, arrays)
    assert loss == pytest.approx(np_loss(arrays["z_1"], arrays["z_2"], z_f, arrays["y"], ramp(progress)), rel=1e-5)


def test_without_the_mutual_term(arrays):
    method = build(mutual_weight=0)
    expected = np_loss(arrays["z_1"], arrays["z_2"], np_fused(method, arrays), arrays["y"], 1.0, mutual=0.0)
    assert run(method, arrays, 0.5)[0] == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("which", ["z_1", "z_2"])
def test_targets_are_detached(arrays, which):
    """The slope along one network's logits is that of the loss with every target held where it is."""
    method = build()
    _, leaves, _ = run(method, arrays, 0.9)
    z = {k: arrays[k] for k in ("z_1", "z_2")}
    z_f = np_fused(method, arrays)
    held = (z["z_1"], z["z_2"], z_f)

    def loss(shift, targets):
        moved = {**z, which: z[which] + shift}
        return np_loss(moved["z_1"], moved["z_2"], z_f, arrays["y"], 1.0, targets)

    step = np.zeros((B, K))
    step[1, 2] = 1e-5
    slope = (loss(step, held) - loss(-step, held)) / 2e-5
    attached = (loss(step, None) - loss(-step, None)) / 2e-5
    assert float(leaves[which].grad[1, 2]) == pytest.approx(slope, rel=1e-3)
    assert slope != pytest.approx(attached, rel=1e-2)


def test_both_networks_and_the_fusion_branch_learn(arrays):
    method = build()
    _, leaves, out = run(method, arrays, 0.5)
    assert method.teacher_learns
    assert all(leaf.grad.abs().sum() > 0 for leaf in leaves.values())
    assert all(p.grad is not None for p in method.parameters())
    assert {"peer_cross_entropy", "fused_cross_entropy", "fusion_kd", "mutual_kd"} <= out.keys()


def test_the_ramp():
    """exp(-5) at the start, 1 from 80 of 300 epochs on."""
    assert ramp(0.0) == pytest.approx(np.exp(-5))
    assert ramp(40 / 300) == pytest.approx(np.exp(-5 / 4))
    assert ramp(80 / 300) == pytest.approx(1.0)
    assert ramp(0.99) == 1.0


def test_the_fusion_branch_has_the_size_of_its_description():
    """Align C_2 -> C_1, depthwise 3x3 on 2 C_1, 1x1 2 C_1 -> C_1, two batch norms, gate, linear; ShuffleNetV2 and
    Res2Net101.
    """
    c, c2, k, narrow = 1024, 2048, 8, 64
    with torch.device("meta"):
        branch = FusionBranch(c, c2, k)
        logits = branch(torch.zeros(2, c, 7, 7), torch.zeros(2, c2, 7, 7))
    expected = c2 * c + 2 * c * 9 + 2 * c * c + 2 * (2 * c + c) + (c * narrow + narrow + narrow * c + c) + c * k + k
    assert sum(p.numel() for p in branch.parameters()) == expected
    assert logits.shape == (2, k)
    # The second network's map may be of another size.
    small = FusionBranch(4, 6, k)
    assert small(torch.zeros(2, 4, 3, 3), torch.zeros(2, 6, 5, 5)).shape == (2, k)
