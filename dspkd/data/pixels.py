"""Decode and resize every image once, into one memory-mapped array that all runs share.

The file's name carries a hash of the table's image files (name, size, modification time) and of the resize settings, so
a changed picture or setting gives another file and a stale cache is never read. Beside the pixels lies a byte for each
image that says whether it is there: filling may be interrupted at any moment and goes on where it was, and only what is
asked for is decoded.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from filelock import FileLock
from PIL import Image

from dspkd.data.quick_jpeg import decode_plain_jpeg
from dspkd.data.shares import side_by_side
from dspkd.data.table import Table
from dspkd.errors import DataError, OutputError
from dspkd.fileio import atomic_file, canonical_json, ensure_dir, sha256_bytes, write_at
from dspkd.npz_images import array_shape, picture_file, picture_of
from dspkd.preprocess import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    Preprocess,
    clean_square,
    load_rgb,
    resize_square,
    resize_square_quickly,
)

__all__ = ["PixelCache", "cached_pixels", "default_cache_dir", "file_states", "largest_square", "pixel_cache"]

Progress = Callable[[int, int, str], None]
# Counted up when `dspkd.preprocess` comes to give other pixels for the same file.
DECODER_VERSION = 4
# Pixels are on the disk before they are said to be there, so many images at a time.
BLOCK = 256
# Progress is told about once for so many images.
REPORT = 64
# A JPEG for training is decoded at the smallest of its sizes (1, 1/2, 1/4, 1/8) that is still so much larger than what
# is wanted: the resizing after it then decides what the pixels look like.
TRAINING_REDUCTION = 1.5


def default_cache_dir() -> Path:
    """$DSPKD_CACHE, else the user's cache folder as XDG names it."""
    if chosen := os.environ.get("DSPKD_CACHE"):
        return Path(chosen)
    return Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "dspkd"


@dataclass(frozen=True)
class PixelCache:
    """Where the pixels of one table after one preprocessing lie. `path` is a .npy file, uint8 (N, size, size, 3)."""

    table: Table
    preprocess: Preprocess
    for_training: bool
    path: Path

    @property
    def done_path(self) -> Path:
        return self.path.with_suffix(".done")

    def missing(self, positions: np.ndarray) -> np.ndarray:
        """Those of `positions` that are not decoded yet."""
        return positions[~self._done()[positions]]

    def fill(self, positions: np.ndarray, progress: Progress | None = None) -> int:
        """Decode what of `positions` is missing, with a thread for each core; how many images that were.

        Of several processes one fills and the others wait for it. Raises DataError naming the first image that cannot
        be decoded (the others stay), OutputError if the disk is full.
        """
        if not len(self.missing(positions)) and self.path.is_file():
            return 0
        with FileLock(self.path.with_suffix(".lock")):
            self._make_files()
            if not self._is_whole():
                raise self._damaged()
            missing = self.missing(positions)
            if len(missing):
                self._decode(missing, progress)
        return len(missing)

    def open(self) -> np.memmap:
        """Memory-mapped, read-only. Images that were never asked for are black."""
        mapped: np.memmap = np.load(self.path, mmap_mode="r", allow_pickle=False)
        return mapped

    def _done(self) -> np.ndarray:
        """bool (N,)"""
        try:
            marks = np.fromfile(self.done_path, dtype=np.uint8)
        except FileNotFoundError:
            marks = np.zeros(len(self.table), np.uint8)
        if len(marks) != len(self.table) or (marks.any() and not self._is_whole()):
            raise self._damaged()
        return marks.astype(bool)

    def _damaged(self) -> DataError:
        return DataError(f"pixel cache {self.path} is damaged", hint=f"remove {self.path} and {self.done_path.name}")

    def _is_whole(self) -> bool:
        try:
            return self.open().shape == (len(self.table), self.preprocess.size, self.preprocess.size, 3)
        except (OSError, ValueError):
            return False

    def _make_files(self) -> None:
        if not self.path.is_file():
            with atomic_file(self.path) as temporary:
                shape = (len(self.table), self.preprocess.size, self.preprocess.size, 3)
                np.lib.format.open_memmap(temporary, mode="w+", dtype=np.uint8, shape=shape)
                if hasattr(os, "posix_fallocate"):
                    # Takes the space now: a full disk is an error here, and a crash when it is met through the map.
                    with temporary.open("rb+") as f:
                        os.posix_fallocate(f.fileno(), 0, temporary.stat().st_size)
        if not self.done_path.is_file():
            with atomic_file(self.done_path) as temporary:
                temporary.write_bytes(bytes(len(self.table)))

    def _decode(self, positions: np.ndarray, progress: Progress | None) -> None:
        marks = np.memmap(self.done_path, dtype=np.uint8, mode="r+")
        header = self.open().offset

        def store(there: list[int]) -> None:
            os.fsync(file)
            marks[there] = 1
            marks.flush()

        # Decoders and resamplers release the GIL, so threads are enough and nothing is copied between processes.
        threads = os.cpu_count() or 1
        with (
            self.path.open("rb+", buffering=0) as opened,
            ThreadPoolExecutor(1) as disk,
            ThreadPoolExecutor(threads) as pool,
        ):
            file = opened.fileno()
            stored: Future[None] | None = None
            done = 0
            for start in range(0, len(positions), BLOCK):
                block = [int(i) for i in positions[start : start + BLOCK]]
                teams = [
                    [pool.submit(self._decode_some, file, header, share) for share in shares]
                    for shares in side_by_side(block, threads)
                ]
                try:
                    for team in teams:
                        shares = [future.result() for future in team]
                        if failures := [share.failure for share in shares if share.failure]:
                            raise min(failures, key=lambda failure: block.index(failure[0]))[1]
                        before_it, done = done, done + sum(len(share.there) for share in shares)
                        if progress and (done // REPORT > before_it // REPORT or done == len(positions)):
                            progress(done, len(positions), f"decoding images at {self.preprocess.size} px")
                except BaseException:
                    pool.shutdown(wait=True, cancel_futures=True)
                    raise
                finally:
                    # Reaches the disk while the next block is decoded.
                    before, stored = stored, disk.submit(store, _done_by(teams))
                if before is not None:
                    before.result()
            if stored is not None:
                stored.result()

    def _decode_some(self, file: int, header: int, indices: Sequence[int]) -> _Share:
        share = _Share()
        for index in indices:
            try:
                # Not through the map: a fault for every 4 KiB costs a third of what decoding a small picture does.
                content = self._decode_one(index).tobytes()
                write_at(file, content, header + index * len(content))
            except Exception as error:
                share.failure = index, error
                break
            share.there.append(index)
        return share

    def _decode_one(self, index: int) -> np.ndarray:
        sample, wanted = self.table.samples[index], self.preprocess
        try:
            pixels = self._quickly(sample.path) if self.for_training else self._as_judged(sample.path)
        except DataError as error:
            if sample.listed is None:
                raise
            raise DataError(f"{sample.listed}: {error.message}", hint=error.hint) from error
        if pixels.shape != (wanted.size, wanted.size, 3) or pixels.dtype != np.uint8:
            raise AssertionError(f"{pixels.dtype} {pixels.shape} would be written over a neighbour")
        return pixels

    def _as_judged(self, path: Path) -> np.ndarray:
        wanted = self.preprocess
        return resize_square(clean_square(load_rgb(path), wanted.cleaning), wanted.size, wanted.interpolation)

    def _quickly(self, path: Path) -> np.ndarray:
        wanted = self.preprocess
        if wanted.cleaning.is_on:
            # Decoded in full: whether a picture has hairs must not depend on what it is for.
            pixels = np.asarray(clean_square(load_rgb(path), wanted.cleaning))
        else:
            enough = int(TRAINING_REDUCTION * wanted.size)
            plain = decode_plain_jpeg(path, enough)
            pixels = np.asarray(load_rgb(path, at_least=enough)) if plain is None else plain
        return resize_square_quickly(pixels, wanted.size, wanted.interpolation)


@dataclass
class _Share:
    """What one thread has done of what it took."""

    there: list[int] = field(default_factory=list)
    """Indices of images that are in the file."""
    failure: tuple[int, Exception] | None = None
    """At which image it stopped, and why."""


def _done_by(teams: Sequence[Sequence[Future[_Share]]]) -> list[int]:
    """All that is in the file; shares that were cancelled or never begun are not."""
    futures = (future for team in teams for future in team)
    return [index for future in futures if future.done() and not future.cancelled() for index in future.result().there]


def pixel_cache(
    table: Table, preprocess: Preprocess, *, for_training: bool = False, cache_dir: Path | None = None
) -> PixelCache:
    """The cache that belongs to these images and this preprocessing, mean and std aside; nothing is decoded yet.

    `for_training` takes quicker ways (large JPEGs decoded at a reduced size, another resampler), which move a pixel by
    a few levels. What judges a model is decoded as `dspkd.preprocess` says.
    """
    folder = ensure_dir(cache_dir or default_cache_dir())
    name = f"{'training' if for_training else 'pixels'}-{preprocess.size}-{preprocess.interpolation}"
    path = folder / f"{name}-{_key(table, preprocess, for_training)[:20]}.npy"
    return PixelCache(table, preprocess, for_training, path)


def cached_pixels(
    table: Table,
    preprocess: Preprocess,
    *,
    positions: Sequence[int] | np.ndarray | None = None,
    for_training: bool = False,
    cache_dir: Path | None = None,
    progress: Progress | None = None,
) -> np.ndarray:
    """Images of `table`, in its order, as uint8 (N, size, size, 3), memory-mapped read-only.

    Those at `positions` (None: all) are there; each is decoded when it is first asked for. `progress(done, total,
    what)` is called as it goes. Raises as `PixelCache.fill`.
    """
    cache = pixel_cache(table, preprocess, for_training=for_training, cache_dir=cache_dir)
    wanted = np.arange(len(table)) if positions is None else np.asarray(positions, dtype=np.int64)
    try:
        cache.fill(wanted, progress)
    except OSError as error:
        raise OutputError(
            f"pixel cache {cache.path} cannot be written: {error.strerror or error}",
            hint="choose another place with DSPKD_CACHE",
        ) from error
    return cache.open()


def largest_square(table: Table, positions: np.ndarray, enough: int) -> int:
    """Side of the largest centred square that any of these images has, from their headers; `enough` as soon as one has
    that. An image that cannot be read does not count: decoding it says what is wrong.
    """
    largest = 0
    archives: dict[tuple[Path, str], int] = {}
    for index in positions:
        path = table.samples[int(index)].path
        try:
            if inside := picture_of(path):
                archive, array, _ = inside
                if (archive, array) not in archives:
                    archives[archive, array] = min(array_shape(archive, array)[1:3])
                side = archives[archive, array]
            else:
                with Image.open(path) as opened:
                    side = min(opened.size)
        except (DataError, OSError, SyntaxError, ValueError, Image.DecompressionBombError):
            continue
        largest = max(largest, side)
        if largest >= enough:
            return enough
    return largest or enough


def _key(table: Table, preprocess: Preprocess, for_training: bool) -> str:
    settings = preprocess.model_copy(update={"mean": IMAGENET_MEAN, "std": IMAGENET_STD})
    reduction = TRAINING_REDUCTION if for_training else None
    return sha256_bytes(
        canonical_json([DECODER_VERSION, reduction, settings.model_dump(mode="json"), file_states(table)])
    )


def file_states(table: Table) -> list[list[str | int]]:
    """[image id, path, bytes, modification time] of each image: what a cache of something made from them is known by.
    -1 for a file that is not there.
    """
    states: list[list[str | int]] = []
    for sample in table.samples:
        # The same file from another working folder is the same.
        place = str(sample.path.absolute())
        try:
            stat = picture_file(sample.path).stat()
            states.append([sample.image_id, place, stat.st_size, stat.st_mtime_ns])
        except OSError:
            states.append([sample.image_id, place, -1, -1])
    return states
