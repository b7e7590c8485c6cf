"""Images per second: decoding once, and an epoch of training views, beside the usual ways.

python benchmarks/data_throughput.py DATA [--size 224] [--images 1500] [--rounds 3] [--enlarge PIXELS]

Decoding: the usual loop opens, converts and resizes one picture after the other with Pillow, to the network's input;
`prepare` is what a run does for training pixels, which have up to a quarter more, and the same loop at that side stands
beside it. Epoch: torchvision's ImageFolder behind a DataLoader with a worker for each
core and transforms of torchvision.v2; ours are views from the cache with a thread for each core. Both crop, resize,
mirror, turn and change colour in the same ranges and end in a batch of bytes. Ways take turns, the first round is not
counted, files were read before. Medians, and the smallest and largest round. --enlarge makes JPEGs of that side from
the images first, where only small ones are at hand: cameras and the ISIC archive give 1024 pixels and more. Prints
Markdown.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader
from torchvision.datasets import ImageFolder
from torchvision.transforms import v2

from dspkd.config import AugmentConfig
from dspkd.data.pixels import cached_pixels, largest_square
from dspkd.data.sources import read_table
from dspkd.data.table import Table
from dspkd.data.views import BalancedSampler, TrainingViews, ViewLoader
from dspkd.preprocess import Preprocess, load_rgb, resize_square
from dspkd.train.prepare import training_size
from dspkd_bench.environment import describe_environment

BATCH = 64
CORES = os.cpu_count() or 1


def usual_decoding(table: Table, side: int) -> int:
    for sample in table.samples:
        np.asarray(Image.open(sample.path).convert("RGB").resize((side, side), Image.Resampling.BILINEAR))
    return len(table)


def prepared(table: Table, side: int, *, for_training: bool) -> int:
    with tempfile.TemporaryDirectory() as folder:
        cached_pixels(table, Preprocess(size=side), for_training=for_training, cache_dir=Path(folder))
    return len(table)


def usual_epoch(folder: Path, size: int, config: AugmentConfig) -> Callable[[], int]:
    jitter = config.color_jitter
    transform = v2.Compose(
        [
            v2.ToImage(),
            v2.RandomResizedCrop(size, scale=(config.crop_scale, 1.0), ratio=(1.0, 1.0), antialias=True),
            v2.RandomHorizontalFlip(),
            v2.RandomChoice([v2.Lambda(lambda image, k=k: torch.rot90(image, k, (-2, -1))) for k in range(4)]),
            v2.ColorJitter(jitter, jitter, jitter),
        ]
    )
    loader = DataLoader(
        ImageFolder(str(folder), transform), batch_size=BATCH, shuffle=True, drop_last=True, num_workers=CORES
    )
    return lambda: sum(len(labels) for _, labels in loader)


def side_of(table: Table, size: int) -> int:
    return largest_square(table, np.arange(len(table)), training_size(size))


def our_epoch(table: Table, size: int, config: AugmentConfig, cache: Path) -> Callable[[], int]:
    form = Preprocess(size=side_of(table, size))
    pixels = cached_pixels(table, form, for_training=True, cache_dir=cache)
    ids = [sample.image_id for sample in table.samples]
    views = TrainingViews(pixels, table.labels, ids, size=size, seed=0, config=config)
    sampler = BalancedSampler(np.arange(len(table)), table.labels, balance=0.0, seed=0)
    loader = ViewLoader(views, sampler, batch_size=BATCH, workers=CORES)

    def epoch() -> int:
        sampler.epoch += 1
        return sum(len(batch.labels) for batch in loader)

    return epoch


def as_class_folders(table: Table, folder: Path) -> Path:
    for sample in table.samples:
        place = folder / table.classes[sample.label]
        place.mkdir(parents=True, exist_ok=True)
        (place / sample.path.name).symlink_to(sample.path.resolve())
    return folder


def enlarged(table: Table, side: int, folder: Path) -> Table:
    samples = []
    for sample in table.samples:
        path = folder / f"{sample.image_id}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(resize_square(load_rgb(sample.path), side, "bicubic")).save(path, quality=90)
        samples.append(replace(sample, path=path))
    return replace(table, samples=tuple(samples))


def in_turns(ways: dict[str, Callable[[], int]], rounds: int) -> dict[str, list[float]]:
    rates: dict[str, list[float]] = {name: [] for name in ways}
    for round_ in range(rounds + 1):
        for name, way in ways.items():
            started = time.perf_counter()
            count = way()
            if round_:
                rates[name].append(count / (time.perf_counter() - started))
    return rates


def main(data: Path, size: int, images: int, rounds: int, enlarge: int | None) -> None:
    torch.set_num_threads(1)
    table, config = read_table(data), AugmentConfig()
    chosen = np.linspace(0, len(table) - 1, min(images, len(table))).astype(int)
    table = replace(table, samples=tuple(table.samples[int(i)] for i in chosen))
    machine = describe_environment(1)
    with tempfile.TemporaryDirectory() as temporary:
        if enlarge is not None:
            table = enlarged(table, enlarge, Path(temporary) / "enlarged")
        pixels = np.median([np.prod(Image.open(sample.path).size) for sample in table.samples]) / 1e6
        print(f"{len(table)} images of {pixels:.2f} megapixels (median), {size} px, {machine['cpu']}, {CORES} cores\n")
        side = side_of(table, size)
        folder = as_class_folders(table, Path(temporary) / "folders")
        decoding = {
            f"Pillow, one after the other, {size} px": lambda: usual_decoding(table, size),
            f"Pillow, one after the other, {side} px": lambda: usual_decoding(table, side),
            f"prepare, {side} px, for training": lambda: prepared(table, side, for_training=True),
            f"prepare, {side} px, as judged": lambda: prepared(table, side, for_training=False),
        }
        epochs = {
            "ImageFolder and DataLoader": usual_epoch(folder, size, config),
            "views from the cache": our_epoch(table, size, config, Path(temporary) / "cache"),
        }
        for title, ways in (("decoding", decoding), ("epoch", epochs)):
            rates = in_turns(ways, rounds)
            usual = np.median(next(iter(rates.values())))
            print(f"| {title} | images/s [rounds] | / the first |")
            print("|---|---|---|")
            for name, values in rates.items():
                middle = np.median(values)
                print(f"| {name} | {middle:.0f} [{min(values):.0f}, {max(values):.0f}] | {middle / usual:.1f} |")
            print()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Decoding once, and an epoch of views, beside the usual ways.")
    parser.add_argument("data", type=Path)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--images", type=int, default=1500)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--enlarge", type=int)
    main(*vars(parser.parse_args()).values())
