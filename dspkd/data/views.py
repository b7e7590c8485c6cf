"""Random views of training images, each a pure function of (seed, image id, view id).

No generator state travels between workers, epochs or runs: any view can be made again, bit for bit, with any number of
workers and after a resume. What is random about a view are a few numbers from a hash of those three; the pixels then
follow on the batch's device.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice
from typing import NamedTuple

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from dspkd.config import AugmentConfig

__all__ = [
    "BalancedSampler",
    "Batch",
    "TrainingViews",
    "ViewLoader",
    "Views",
    "augment",
    "draw_views",
    "pixels_to_tensor",
    "resident",
    "shades_of_grey",
    "view_numbers",
]

VIEWS_PER_EPOCH = 1 << 20
NUMBERS = 16
# Of red, green and blue in grey (ITU-R BT.601), as torchvision has them.
GREY = (0.2989, 0.587, 0.114)
# By right angles, counter-clockwise.
_ROTATIONS = {1: cv2.ROTATE_90_COUNTERCLOCKWISE, 2: cv2.ROTATE_180, 3: cv2.ROTATE_90_CLOCKWISE}


def view_numbers(seed: int, image_id: str, view: int) -> np.ndarray:
    """16 numbers in [0, 1), float64, fixed by these three values alone, on every machine."""
    key = f"{seed}/{image_id}/{view}".encode()
    words = b"".join(hashlib.blake2b(key, digest_size=64, salt=bytes([half])).digest() for half in (0, 1))
    return (np.frombuffer(words, dtype="<u8") >> np.uint64(11)) * 2.0**-53


@dataclass(frozen=True, slots=True)
class Views:
    """What is random about B views. Arrays (B,), `extra` (B, 7) for RandAugment."""

    top: np.ndarray
    left: np.ndarray
    side: np.ndarray
    """The square that is cut out of the source, in its pixels; int64."""
    flip: np.ndarray
    """bool: mirrored left to right, before it is turned."""
    turns: np.ndarray
    """int64: right angles, counter-clockwise."""
    constancy: np.ndarray
    """bool: shown as under white light."""
    brightness: np.ndarray
    contrast: np.ndarray
    saturation: np.ndarray
    """float32 factors."""
    extra: np.ndarray


def draw_views(seed: int, image_ids: Sequence[str], views: Iterable[int], source: int, config: AugmentConfig) -> Views:
    """The random part of views of square sources with `source` pixels a side."""
    numbers = np.stack([view_numbers(seed, image, view) for image, view in zip(image_ids, views, strict=True)])
    # Every number has its place whether or not it is used, so that switching one augmentation off leaves the others as
    # they were.
    area, across, down, mirrored, turned = numbers[:, :5].T
    colour = (1 + config.color_jitter * (2 * numbers[:, 5:8] - 1)).astype(np.float32)
    side = np.maximum(1, np.rint(source * np.sqrt(config.crop_scale + (1 - config.crop_scale) * area)).astype(np.int64))
    return Views(
        top=np.rint(down * (source - side)).astype(np.int64),
        left=np.rint(across * (source - side)).astype(np.int64),
        side=side,
        flip=(mirrored < 0.5) & config.flips,
        turns=(4 * turned).astype(np.int64) * config.right_angles,
        constancy=numbers[:, 15] < config.color_constancy,
        brightness=colour[:, 0],
        contrast=colour[:, 1],
        saturation=colour[:, 2],
        extra=numbers[:, 8:15],
    )


def augment(pixels: Tensor, views: Views, size: int) -> Tensor:
    """Sources, uint8 (B, S, S, 3), as B views, uint8 (B, 3, size, size).

    Crop and antialiased bilinear resize, mirror, turn; then colour constancy where it was drawn; then brightness,
    contrast (about the mean grey) and saturation as one affine map, clipped and rounded once. An image's view does not
    depend on what else is in the batch. On a CPU one view is made after the other, by torch's own resize for bytes and
    by OpenCV; elsewhere all at once, the resize as two matrix products with the same weights, within a level of it.
    """
    if pixels.device.type == "cpu":
        return _one_by_one(pixels, views, size)
    return _coloured(_under_white_light(_turned(_cut_by_matrices(pixels, views, size), views), views), views)


def _one_by_one(pixels: Tensor, views: Views, size: int) -> Tensor:
    """A view stays in a core's cache from its first step to its last, and keeps its three channels side by side until
    then, as the source has them.
    """
    made = np.empty((len(pixels), 3, size, size), np.uint8)
    sources = pixels.permute(0, 3, 1, 2)
    own, grey, mean = _shares(views)
    affine = np.zeros((len(pixels), 3, 4), np.float32)
    affine[:, :, :3] = own[:, None, None] * np.eye(3) + grey[:, None, None] * np.array(GREY)
    changed = (views.brightness != 1) | (views.contrast != 1) | (views.saturation != 1)
    wide = np.empty((size, size, 3), np.uint16)
    squares = zip(views.top.tolist(), views.left.tolist(), views.side.tolist(), strict=True)
    for i, (top, left, side) in enumerate(squares):
        window = sources[i : i + 1, :, top : top + side, left : left + side]
        cut = functional.interpolate(window, (size, size), mode="bilinear", antialias=True)
        if views.constancy[i]:
            cut = shades_of_grey(cut.contiguous())
        picture = np.ascontiguousarray(cut[0].permute(1, 2, 0).numpy())
        if changed[i]:
            red, green, blue, _ = cv2.sumElems(picture)
            affine[i, :, 3] = mean[i] * (red * GREY[0] + green * GREY[1] + blue * GREY[2]) / size**2
            # On bytes OpenCV computes with ten binary places of the factors, which is not enough for the nearest level.
            np.copyto(wide, picture)
            picture = cv2.convertScaleAbs(cv2.transform(wide, affine[i], wide))
        if views.flip[i]:
            picture = cv2.flip(picture, 1)
        if turns := int(views.turns[i]):
            picture = cv2.rotate(picture, _ROTATIONS[turns])
        cv2.split(picture, list(made[i]))
    return torch.from_numpy(made)


def _cut_by_matrices(pixels: Tensor, views: Views, size: int) -> Tensor:
    source, device = pixels.shape[1], pixels.device
    down, across = (_triangle_weights(start, views.side, source, size).to(device) for start in (views.top, views.left))
    images = pixels.permute(0, 3, 1, 2).float()
    resized = down[:, None] @ images @ across[:, None].transpose(-1, -2)
    return resized.round_().clamp_(0, 255).to(torch.uint8)


def _triangle_weights(start: np.ndarray, side: np.ndarray, source: int, size: int) -> Tensor:
    """float32 (B, size, source): how much of each source pixel of a row is in each pixel of the view."""
    scale = torch.from_numpy(side / size).view(-1, 1, 1)
    # Shrinking widens the triangle to a pixel of the view; enlarging leaves it a pixel of the source wide.
    reach = scale.clamp(min=1.0)
    place = torch.arange(source).view(1, 1, -1) - torch.from_numpy(start).view(-1, 1, 1) + 0.5
    centre = (torch.arange(size).view(1, -1, 1) + 0.5) * scale
    weights = (1 - (place - centre).abs() / reach).clamp(min=0.0)
    weights = weights * ((place > 0) & (place < torch.from_numpy(side).view(-1, 1, 1)))
    return (weights / weights.sum(-1, keepdim=True)).float()


def _turned(images: Tensor, views: Views) -> Tensor:
    for flip, turns in {(bool(f), int(t)) for f, t in zip(views.flip, views.turns, strict=True)} - {(False, 0)}:
        members = torch.from_numpy(np.flatnonzero((views.flip == flip) & (views.turns == turns))).to(images.device)
        chosen = images[members]
        images[members] = torch.rot90(chosen.flip(-1) if flip else chosen, turns, dims=(-2, -1))
    return images


def shades_of_grey(images: Tensor) -> Tensor:
    """uint8 (B, 3, H, W) -> the same under white light of the same strength.

    The colour of the light is taken to be the 6-norm of each channel over the image (Finlayson and Trezzi, CIC 2004):
    between the mean (grey world, 1) and the brightest pixel (infinity). Each channel is divided by its share of it.
    """
    levels = images.flatten(2).float().div_(255.0)
    squares = levels * levels
    # In double precision, so that how the sum is divided over threads does not reach the rounded levels.
    light = (squares * squares * squares).mean(-1, dtype=torch.float64).pow(1 / 6).clamp_(min=1 / 255)
    gain = (light.square().mean(1, keepdim=True).sqrt() / light).float()
    whitened = levels.mul_(gain.unsqueeze(-1)).mul_(255.0).round_().clamp_(0.0, 255.0)
    return whitened.to(torch.uint8).view_as(images)


def _under_white_light(images: Tensor, views: Views) -> Tensor:
    if views.constancy.any():
        members = torch.from_numpy(np.flatnonzero(views.constancy)).to(images.device)
        images[members] = shades_of_grey(images[members])
    return images


def _shares(views: Views) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """float32 (B,): how much of a pixel, of its grey and of the picture's mean grey is in what brightness, contrast and
    saturation, one after the other, make of the pixel.
    """
    b, c, s = views.brightness, views.contrast, views.saturation
    return s * c * b, (1 - s) * c * b, (1 - c) * b


def _coloured(images: Tensor, views: Views) -> Tensor:
    if (views.brightness == 1).all() and (views.contrast == 1).all() and (views.saturation == 1).all():
        return images
    own, grey, mean = (torch.from_numpy(share).to(images.device).view(-1, 1) for share in _shares(views))
    weights = torch.tensor(GREY, device=images.device)
    values = images.float()
    offset = mean * _mean_grey(values, weights) + 0.5
    values = values.flatten(2)
    greys = weights @ values
    values.mul_(own[:, :, None]).add_(greys.mul_(grey).add_(offset).unsqueeze(1)).clamp_(0.0, 255.0)
    return values.to(torch.uint8).view_as(images)


def _mean_grey(levels: Tensor, weights: Tensor) -> Tensor:
    """float32 (B, 1) of float32 (B, 3, H, W) that hold whole numbers.

    Sums of whole numbers have no rounding, so that nothing depends on the order in which a device adds them.
    """
    totals = levels.sum(-1).sum(-1, dtype=torch.int64).float()
    red, green, blue = (totals * weights).split(1, dim=1)
    return (red + green + blue) / levels[0, 0].numel()


def pixels_to_tensor(pixels: np.ndarray) -> Tensor:
    """uint8 (N, H, W, 3) -> float32 (N, 3, H, W) in [0, 1]; normalisation is the network's first step, see
    `preprocess`.
    """
    return torch.from_numpy(np.ascontiguousarray(pixels.transpose(0, 3, 1, 2))).float().div_(255.0)


def resident(pixels: np.ndarray, device: torch.device) -> np.ndarray | Tensor:
    """The pixels in the memory of a GPU, if they take less than half of what is free there; else as they are."""
    if device.type != "cuda" or 2 * pixels.nbytes > torch.cuda.mem_get_info(device)[0]:
        return pixels
    return torch.from_numpy(np.array(pixels)).to(device)


class Batch(NamedTuple):
    pixels: Tensor
    """uint8 (B, 3, S, S)"""
    labels: Tensor
    """int64 (B,)"""
    positions: np.ndarray
    """Of the images in the table, (B,)."""
    views: np.ndarray
    """Their view ids, (B,)."""


@dataclass(frozen=True)
class TrainingViews:
    """Views of the images in `pixels`, uint8 (N, S, S, 3), by position in the table and view id."""

    pixels: np.ndarray | Tensor
    labels: np.ndarray
    image_ids: Sequence[str]
    size: int
    seed: int
    config: AugmentConfig
    rare: frozenset[int] = frozenset()
    """Classes that `config.rand_augment = "rare"` means."""
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    """Where views are made, and stay."""

    def batch(self, keys: Sequence[tuple[int, int]]) -> Batch:
        """The views of `keys`, pairs (position, view id)."""
        positions, ids = (np.array(column, dtype=np.int64) for column in zip(*keys, strict=True))
        sources = self._sources(positions)
        views = draw_views(self.seed, [self.image_ids[i] for i in positions], ids, sources.shape[1], self.config)
        images = augment(sources, views, self.size)
        if self.config.rand_augment != "off":
            images = self._rand_augmented(images, self.labels[positions], views)
        return Batch(images, torch.from_numpy(self.labels[positions]).to(images.device), positions, ids)

    def _sources(self, positions: np.ndarray) -> Tensor:
        if isinstance(self.pixels, Tensor):
            return self.pixels[torch.from_numpy(positions).to(self.pixels.device)].to(self.device)
        return torch.from_numpy(self.pixels[positions]).to(self.device)

    def _rand_augmented(self, images: Tensor, labels: np.ndarray, views: Views) -> Tensor:
        from dspkd.data.rand_augment import rand_augment_batch

        every = self.config.rand_augment == "all"
        chosen = np.flatnonzero([every or int(label) in self.rare for label in labels])
        return rand_augment_batch(images, chosen, views.extra, self.config.rand_augment_magnitude)


class BalancedSampler:
    """One epoch of `(position, view)` pairs over the training part, fixed by (seed, epoch).

    An epoch has as many draws as the part has images. With balance 0 it is a permutation; otherwise class c is drawn
    with weight count_c^-balance per image. Draws are stratified, so that over an epoch every image of a class is
    used before one is used twice.
    """

    def __init__(self, positions: np.ndarray, labels: np.ndarray, *, balance: float, seed: int) -> None:
        self.positions, self.labels, self.balance, self.seed = positions, labels[positions], balance, seed
        self.epoch = 0

    def __len__(self) -> int:
        return len(self.positions)

    def __iter__(self) -> Iterator[tuple[int, int]]:
        rng = np.random.Generator(np.random.PCG64([self.seed, self.epoch, 0x5A17]))
        repeats: dict[int, int] = {}
        for position in self._draw(rng):
            occurrence = repeats.get(position, 0)
            repeats[position] = occurrence + 1
            yield position, self.epoch * VIEWS_PER_EPOCH + occurrence

    def _draw(self, rng: np.random.Generator) -> list[int]:
        total = len(self.positions)
        if self.balance == 0.0:
            return [int(p) for p in rng.permutation(self.positions)]
        present, counts = np.unique(self.labels, return_counts=True)
        share = counts ** (1.0 - self.balance)
        exact = total * share / share.sum()
        quota = np.floor(exact).astype(int)
        quota[np.argsort(quota - exact, kind="stable")[: total - quota.sum()]] += 1
        drawn: list[int] = []
        for label, wanted in zip(present, quota, strict=True):
            members = self.positions[self.labels == label]
            while wanted > 0:
                drawn.extend(int(p) for p in rng.permutation(members)[:wanted])
                wanted -= min(wanted, len(members))
        return [drawn[i] for i in rng.permutation(total)]


class ViewLoader:
    """The batches of one epoch of `sampler`; the last incomplete one is dropped, since batch norm suffers from it,
    unless it is the only one.

    `workers` threads make batches ahead; with 0 each is made when it is asked for. The batches are the same.
    """

    def __init__(self, views: TrainingViews, sampler: BalancedSampler, *, batch_size: int, workers: int = 0) -> None:
        self.views, self.sampler, self.batch_size, self.workers = views, sampler, batch_size, workers

    def __len__(self) -> int:
        return max(1, len(self.sampler) // self.batch_size)

    def __iter__(self) -> Iterator[Batch]:
        order = iter(self.sampler)
        groups = (list(islice(order, self.batch_size)) for _ in range(len(self)))
        if not self.workers:
            yield from map(self.views.batch, groups)
            return
        with ThreadPoolExecutor(self.workers) as pool:
            ahead: list[Future[Batch]] = [pool.submit(self.views.batch, keys) for keys in islice(groups, self.workers)]
            try:
                while ahead:
                    ready = ahead.pop(0)
                    ahead.extend(pool.submit(self.views.batch, keys) for keys in islice(groups, 1))
                    yield ready.result()
            finally:
                for future in ahead:
                    future.cancel()
