"""Random views of training images, each a pure function of (seed, image id, view id).

No generator state travels between workers, epochs or runs: any view can be made again, bit for bit, with any number of
workers and after a resume.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as transforms

from dspkd.config import AugmentConfig

__all__ = ["BalancedSampler", "ViewDataset", "augment", "make_loader", "pixels_to_tensor", "view_generator"]

VIEWS_PER_EPOCH = 1 << 20


def view_generator(seed: int, image_id: str, view: int) -> torch.Generator:
    """A generator whose stream is fixed by these three values alone."""
    digest = hashlib.blake2b(f"{seed}/{image_id}/{view}".encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "little") & 0x7FFF_FFFF_FFFF_FFFF)


def augment(image: Tensor, size: int, config: AugmentConfig, generator: torch.Generator) -> Tensor:
    """One random view: uint8 (3, S, S) with S >= size -> uint8 (3, size, size)."""

    def uniform(low: float, high: float) -> float:
        return low + (high - low) * float(torch.rand((), generator=generator))

    # Every number is drawn whether or not it is used, so that switching one augmentation off leaves the others as they
    # were.
    area, across, down = uniform(config.crop_scale, 1.0), uniform(0, 1), uniform(0, 1)
    flip, turns = uniform(0, 1) < 0.5, int(uniform(0, 4))
    brightness, contrast, saturation = (uniform(1 - config.color_jitter, 1 + config.color_jitter) for _ in range(3))

    side = max(1, round(image.shape[-1] * area**0.5))
    left, top = round(across * (image.shape[-1] - side)), round(down * (image.shape[-2] - side))
    view = transforms.resized_crop(
        image, top, left, side, side, [size, size], interpolation=InterpolationMode.BILINEAR, antialias=True
    )
    if config.flips and flip:
        view = view.flip(-1)
    if config.right_angles and turns:
        view = torch.rot90(view, turns, dims=(-2, -1))
    if config.color_jitter:
        view = transforms.adjust_brightness(view, brightness)
        view = transforms.adjust_contrast(view, contrast)
        view = transforms.adjust_saturation(view, saturation)
    return view


def pixels_to_tensor(pixels: np.ndarray) -> Tensor:
    """uint8 (N, H, W, 3) -> float32 (N, 3, H, W) in [0, 1]; normalisation is the network's first step, see
    `preprocess`.
    """
    return torch.from_numpy(np.ascontiguousarray(pixels.transpose(0, 3, 1, 2))).float().div_(255.0)


class ViewDataset(Dataset[tuple[Tensor, int]]):
    """Training views. Indexed by `(position, view)`, as `BalancedSampler` yields them; gives (uint8 (3, S, S),
    label).
    """

    def __init__(
        self,
        pixels: np.ndarray,
        labels: np.ndarray,
        image_ids: Sequence[str],
        *,
        size: int,
        seed: int,
        config: AugmentConfig,
    ) -> None:
        self.pixels, self.labels, self.image_ids = pixels, labels, image_ids
        self.size, self.seed, self.config = size, seed, config

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, key: Any) -> tuple[Tensor, int]:
        position, view = key
        image = torch.from_numpy(np.ascontiguousarray(self.pixels[position].transpose(2, 0, 1)))
        generator = view_generator(self.seed, self.image_ids[position], view)
        return augment(image, self.size, self.config, generator), int(self.labels[position])


class BalancedSampler(Sampler[tuple[int, int]]):
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


def make_loader(dataset: ViewDataset, sampler: BalancedSampler, *, batch_size: int, workers: int) -> DataLoader[Any]:
    """Batches of (uint8 (B, 3, S, S), int64 (B,)); the last incomplete batch is dropped, since batch norm
    suffers from it.
    """
    return DataLoader(
        dataset,
        batch_size=batch_size,
        sampler=sampler,
        num_workers=workers,
        drop_last=len(sampler) >= batch_size,
        pin_memory=torch.cuda.is_available(),
        persistent_workers=workers > 0,
        # A generator of its own: the loader would take its seeds from the global one, which dropout draws from too, at
        # moments that depend on the number of workers.
        generator=torch.Generator(),
    )
