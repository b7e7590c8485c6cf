"""Synthetic lesions: eight classes that differ in one dermatoscopic structure, for the demo and for tests.

Not a model of skin disease, and nothing measured on them says anything about patients. They exist so that the whole way
can be walked offline: pictures with the nuisances of real ones (hairs, vignette, colour casts, several pictures of one
lesion), a task that is neither trivial nor hopeless for a small network, and no licence to ask for.

Everything is a function of (seed, lesion, picture), so the same seed gives the same set on any machine.
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from dspkd.fileio import atomic_dir

__all__ = ["SYNTHETIC_CLASSES", "draw_lesion", "make_synthetic_set"]

SYNTHETIC_CLASSES = ("NETWORK", "GLOBULES", "STREAKS", "VEIL", "VESSELS", "SCALE", "MILIA", "PLAIN")
# Lesions per hundred: as in real collections some classes are rare.
SHARES = (18, 14, 10, 8, 14, 12, 8, 16)
PICTURES_PER_LESION = (1, 1, 2, 3)
OVERSAMPLING = 2
Progress = Callable[[int, int, str], None]
Rng = np.random.Generator


def make_synthetic_set(
    folder: Path, *, lesions: int = 1000, size: int = 160, seed: int = 0, progress: Progress | None = None
) -> None:
    """Write a set in the ISIC2019 layout (GroundTruth.csv, metadata.csv, images/) into `folder`, whole or not at all.

    Every lesion gets one to three pictures. `size` is the side of the pictures in pixels.
    """
    counts = np.floor(lesions * np.array(SHARES) / sum(SHARES)).astype(int)
    counts[: lesions - counts.sum()] += 1
    kinds = np.repeat(np.arange(len(SYNTHETIC_CLASSES)), counts)
    tasks = []
    for lesion, kind in enumerate(kinds):
        pictures = int(_rng(seed, lesion).choice(PICTURES_PER_LESION))
        tasks += [(lesion, int(kind), picture) for picture in range(pictures)]
    with atomic_dir(folder) as temporary:
        (temporary / "images").mkdir()

        def draw(task: tuple[int, int, int]) -> None:
            lesion, kind, picture = task
            pixels = draw_lesion(SYNTHETIC_CLASSES[kind], seed=seed, lesion=lesion, picture=picture, size=size)
            Image.fromarray(pixels).save(temporary / "images" / f"{_image_id(*task)}.jpg", quality=92)

        with ThreadPoolExecutor() as pool:
            for done, _ in enumerate(pool.map(draw, tasks), start=1):
                if progress and (done % 64 == 0 or done == len(tasks)):
                    progress(done, len(tasks), "drawing synthetic lesions")
        one_hot = [
            [_image_id(*task), *(1.0 if k == task[1] else 0.0 for k in range(len(SYNTHETIC_CLASSES)))] for task in tasks
        ]
        _write_csv(temporary / "GroundTruth.csv", ["image", *SYNTHETIC_CLASSES], one_hot)
        _write_csv(
            temporary / "metadata.csv", ["image", "lesion_id"], [[_image_id(*t), f"SYN_{t[0]:05d}"] for t in tasks]
        )


def _image_id(lesion: int, _kind: int, picture: int) -> str:
    return f"SYN_{lesion:05d}_{picture}"


def _write_csv(path: Path, header: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    with path.open("w", newline="", encoding="utf-8") as f:
        csv.writer(f, lineterminator="\n").writerows([header, *rows])


def _rng(*keys: int) -> Rng:
    return np.random.Generator(np.random.PCG64(list(keys)))


def draw_lesion(name: str, *, seed: int, lesion: int, picture: int = 0, size: int = 160) -> np.ndarray:
    """One picture as uint8 (size, size, 3).

    What belongs to the lesion (shape, colours, structure) comes from (seed, lesion); how it was photographed (angle,
    distance, light, hairs) from (seed, lesion, picture).
    """
    own, camera = _rng(seed, lesion, 1), _rng(seed, lesion, 2, picture)
    canvas = _Canvas(own, camera, size * OVERSAMPLING)
    _STRUCTURES[name](canvas, own, own.uniform(0.4, 1.0))
    # A faint second structure, as real lesions have; it is never the stronger one.
    if own.random() < 0.5:
        other = str(own.choice([n for n in SYNTHETIC_CLASSES if n != name]))
        _STRUCTURES[other](canvas, own, own.uniform(0.06, 0.2))
    return canvas.photograph(camera, size)


class _Canvas:
    """A picture in the making, float RGB (S, S, 3) in [0, 1], with the lesion's own polar coordinates.

    `r` is 1 at the lesion's border; the camera's angle and distance are in the coordinates, so that structures drawn
    through them turn and scale with the lesion.
    """

    def __init__(self, own: Rng, camera: Rng, side: int) -> None:
        self.side = side
        axis = (np.arange(side) + 0.5) / side * 2 - 1
        x, y = np.meshgrid(axis, axis)
        self.centre = camera.uniform(-0.15, 0.15, 2)
        self.angle, self.scale = camera.uniform(0, 2 * np.pi), own.uniform(0.5, 0.75) * camera.uniform(0.85, 1.15)
        self.turn = np.array([[np.cos(self.angle), -np.sin(self.angle)], [np.sin(self.angle), np.cos(self.angle)]])
        self.u, self.v = np.tensordot(self.turn.T, np.stack([x - self.centre[0], y - self.centre[1]]) / self.scale, 1)
        self.theta = np.arctan2(self.v, self.u)
        self.harmonics = own.normal(0, [0.14, 0.08, 0.06, 0.04]), own.uniform(0, 2 * np.pi, 4)
        self.r = np.hypot(self.u, self.v) / self.border(self.theta)
        skin = np.array([0.86, 0.68, 0.58]) + own.normal(0, 0.04, 3)
        brown = np.array([0.52, 0.34, 0.25]) * own.uniform(0.75, 1.2) + own.normal(0, 0.03, 3)
        self.inside = _soft_step(1 - self.r, own.uniform(0.04, 0.16))
        shade = 1 + 0.10 * self.noise(own, 3)[..., None] + 0.03 * self.noise(own, 24)[..., None]
        mottled = brown * (1 + 0.22 * self.noise(own, 5)[..., None])
        self.rgb = (skin * (1 - self.inside[..., None]) + mottled * self.inside[..., None]) * shade

    def border(self, theta: np.ndarray) -> np.ndarray:
        amplitudes, phases = self.harmonics
        waves = (a * np.cos(k * theta + p) for k, (a, p) in enumerate(zip(amplitudes, phases, strict=True), start=2))
        return np.clip(1 + np.sum(list(waves), axis=0), 0.5, 1.6)

    def noise(self, rng: Rng, cells: int) -> np.ndarray:
        """Smooth noise of about unit spread with `cells` cells across, (S, S)."""
        small = Image.fromarray(rng.normal(size=(cells, cells)).astype(np.float32))
        return np.asarray(small.resize((self.side, self.side), Image.Resampling.BICUBIC), dtype=np.float64)

    def blend(self, colour: Sequence[float], cover: np.ndarray) -> None:
        """Lay `colour` over the picture; `cover` (S, S) is its opacity."""
        opacity = np.clip(cover, 0, 1)[..., None]
        self.rgb = self.rgb * (1 - opacity) + np.asarray(colour) * opacity

    def to_pixels(self, u: np.ndarray, v: np.ndarray) -> np.ndarray:
        """Lesion coordinates -> pixel coordinates, (N, 2)."""
        moved = np.stack([u, v], axis=-1) * self.scale @ self.turn.T + self.centre
        return (moved + 1) / 2 * self.side

    def pen(self) -> tuple[Image.Image, ImageDraw.ImageDraw]:
        mask = Image.new("L", (self.side, self.side))
        return mask, ImageDraw.Draw(mask)

    def lay(self, colour: Sequence[float], mask: Image.Image, opacity: float | np.ndarray) -> None:
        self.blend(colour, np.asarray(mask, dtype=np.float64) / 255 * opacity)

    def discs(self, points: np.ndarray, radii: np.ndarray) -> Image.Image:
        """Discs at lesion coordinates (N, 2), radii in the same unit."""
        mask, draw = self.pen()
        for (px, py), radius in zip(self.to_pixels(points[:, 0], points[:, 1]), radii, strict=True):
            pr = radius * self.scale * self.side / 2
            draw.ellipse((px - pr, py - pr, px + pr, py + pr), fill=255)
        return mask

    def scatter(self, rng: Rng, count: int, reach: float = 0.85) -> np.ndarray:
        """Points spread evenly over the lesion, (count, 2)."""
        theta, radius = rng.uniform(-np.pi, np.pi, count), np.sqrt(rng.uniform(0, 1, count)) * reach
        radius *= self.border(theta)
        return np.stack([radius * np.cos(theta), radius * np.sin(theta)], axis=1)

    def photograph(self, camera: Rng, size: int) -> np.ndarray:
        """Hairs, colour cast, vignette, sensor noise; then down to `size`."""
        if camera.random() < 0.45:
            self._hairs(camera, int(camera.integers(2, 14)))
        rgb = self.rgb * camera.uniform(0.8, 1.12) * (1 + camera.normal(0, 0.05, 3))
        if camera.random() < 0.4:
            axis = (np.arange(self.side) + 0.5) / self.side * 2 - 1
            distance = np.hypot(*np.meshgrid(axis, axis))
            rgb = rgb * _soft_step(camera.uniform(1.0, 1.25) - distance, 0.2)[..., None]
        image = Image.fromarray((np.clip(rgb, 0, 1) * 255).astype(np.uint8))
        pixels = np.asarray(image.resize((size, size), Image.Resampling.BOX), dtype=np.float64)
        return np.clip(pixels + camera.normal(0, 3.0, pixels.shape), 0, 255).astype(np.uint8)

    def _hairs(self, camera: Rng, count: int) -> None:
        mask, draw = self.pen()
        for _ in range(count):
            start, end = camera.uniform(0, self.side, 2), camera.uniform(0, self.side, 2)
            bend = (start + end) / 2 + camera.normal(0, self.side / 8, 2)
            t = np.linspace(0, 1, 24)[:, None]
            curve = (1 - t) ** 2 * start + 2 * t * (1 - t) * bend + t**2 * end
            draw.line([tuple(p) for p in curve], fill=255, width=int(camera.integers(1, 4)) * OVERSAMPLING // 2 + 1)
        dark = camera.uniform(0.05, 0.3)
        self.lay((dark, 0.8 * dark, 0.7 * dark), mask, camera.uniform(0.6, 0.95))


def _soft_step(value: np.ndarray, width: float) -> np.ndarray:
    """0 below -width, 1 above width, smooth between."""
    t = np.clip((value / width + 1) / 2, 0, 1)
    return t * t * (3 - 2 * t)


# Structures: each is drawn into the lesion with a strength from 0 to 1. ---------------------------------------------


def _network(canvas: _Canvas, rng: Rng, strength: float) -> None:
    """Pigment network: a honeycomb of dark lines."""
    frequency, warp = rng.uniform(17, 24), 0.05
    u, v = canvas.u + warp * canvas.noise(rng, 6), canvas.v + warp * canvas.noise(rng, 6)
    waves = [np.cos(frequency * (u * np.cos(a) + v * np.sin(a))) for a in np.arange(3) * np.pi / 3]
    lines = _soft_step(-0.35 - np.sum(waves, axis=0) / 1.5, 0.3)
    canvas.blend((0.25, 0.13, 0.08), 0.85 * strength * lines * canvas.inside)


def _globules(canvas: _Canvas, rng: Rng, strength: float) -> None:
    """Round brown clods."""
    count = int(rng.integers(18, 36))
    mask = canvas.discs(canvas.scatter(rng, count), rng.uniform(0.05, 0.1, count))
    canvas.lay((0.24, 0.13, 0.09), mask, 0.85 * strength)


def _streaks(canvas: _Canvas, rng: Rng, strength: float) -> None:
    """Dark radial lines at the border, thick at their inner end."""
    mask, draw = canvas.pen()
    count = int(rng.integers(22, 38))
    for theta in np.arange(count) * 2 * np.pi / count + rng.normal(0, 0.05, count):
        rim = canvas.border(np.array([theta]))[0]
        inner, outer = rng.uniform(0.6, 0.75) * rim, rng.uniform(1.0, 1.2) * rim
        across = 0.035
        angles, radii = np.array([theta - across, theta, theta + across]), np.array([inner, outer, inner])
        draw.polygon([tuple(p) for p in canvas.to_pixels(radii * np.cos(angles), radii * np.sin(angles))], fill=255)
    canvas.lay((0.2, 0.11, 0.08), mask, 0.9 * strength)


def _veil(canvas: _Canvas, rng: Rng, strength: float) -> None:
    """Blue-white veil: a structureless bluish area over a part of the lesion."""
    centre = canvas.scatter(rng, 1, reach=0.4)[0]
    distance = np.hypot(canvas.u - centre[0], canvas.v - centre[1]) + 0.12 * canvas.noise(rng, 5)
    area = _soft_step(rng.uniform(0.4, 0.6) - distance, 0.18)
    canvas.blend((0.55, 0.62, 0.75), 0.75 * strength * area * canvas.inside)


def _vessels(canvas: _Canvas, rng: Rng, strength: float) -> None:
    """Red, winding, branching lines."""
    mask, draw = canvas.pen()
    for start in canvas.scatter(rng, int(rng.integers(7, 13)), reach=0.75):
        heading, point, path = rng.uniform(0, 2 * np.pi), start, [start]
        for _ in range(14):
            heading += rng.normal(0, 0.45)
            point = point + 0.05 * np.array([np.cos(heading), np.sin(heading)])
            path.append(point)
        points = np.array(path)
        pixels = canvas.to_pixels(points[:, 0], points[:, 1])
        draw.line([tuple(p) for p in pixels], fill=255, width=max(2, round(0.022 * canvas.scale * canvas.side / 2)))
    canvas.lay((0.78, 0.12, 0.16), mask, 0.9 * strength)


def _scale(canvas: _Canvas, rng: Rng, strength: float) -> None:
    """Whitish-yellow flakes with sharp corners."""
    mask, draw = canvas.pen()
    for point in canvas.scatter(rng, int(rng.integers(12, 22)), reach=0.9):
        angles = np.sort(rng.uniform(0, 2 * np.pi, int(rng.integers(4, 7))))
        radii = rng.uniform(0.06, 0.17, len(angles))
        corners = canvas.to_pixels(point[0] + radii * np.cos(angles), point[1] + radii * np.sin(angles))
        draw.polygon([tuple(p) for p in corners], fill=255)
    canvas.lay((0.93, 0.88, 0.74), mask, 0.75 * strength)


def _milia(canvas: _Canvas, rng: Rng, strength: float) -> None:
    """Small, round, bright white cysts."""
    count = int(rng.integers(9, 18))
    mask = canvas.discs(canvas.scatter(rng, count), rng.uniform(0.025, 0.045, count))
    canvas.lay((0.98, 0.96, 0.9), mask, 0.95 * strength)


def _plain(canvas: _Canvas, rng: Rng, strength: float) -> None:
    """No structure: the mottled colour alone, a little darker in the middle."""
    canvas.blend((0.3, 0.18, 0.12), 0.25 * strength * _soft_step(0.5 - canvas.r, 0.4))


_STRUCTURES: dict[str, Callable[[_Canvas, Rng, float], None]] = {
    "NETWORK": _network,
    "GLOBULES": _globules,
    "STREAKS": _streaks,
    "VEIL": _veil,
    "VESSELS": _vessels,
    "SCALE": _scale,
    "MILIA": _milia,
    "PLAIN": _plain,
}
