"""Decode and resize every image once, into one memory-mapped array that all runs share.

The file's name carries a hash of the table's image files (name, size, modification time) and of the resize settings, so
a changed picture or setting gives another file and a stale cache is never read.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from dspkd.data.sources import Table
from dspkd.errors import DataError
from dspkd.fileio import atomic_file, canonical_json, ensure_dir, sha256_bytes
from dspkd.preprocess import Preprocess, load_rgb, resize_square

__all__ = ["cached_pixels", "default_cache_dir"]

Progress = Callable[[int, int, str], None]
# Counted up when `dspkd.preprocess` comes to give other pixels for the same file.
DECODER_VERSION = 2


def default_cache_dir() -> Path:
    """$DSPKD_CACHE, else the user's cache folder as XDG names it."""
    if chosen := os.environ.get("DSPKD_CACHE"):
        return Path(chosen)
    return Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "dspkd"


def cached_pixels(
    table: Table, size: int, interpolation: str, *, cache_dir: Path | None = None, progress: Progress | None = None
) -> np.ndarray:
    """All images of `table`, in its order, as uint8 (N, size, size, 3), memory-mapped read-only.

    Made on the first call, with as many threads as there are cores; `progress(done, total, what)` is called as it goes.
    Raises DataError naming the first image that cannot be decoded; nothing half-made is left behind.
    """
    folder = ensure_dir(cache_dir or default_cache_dir())
    path = folder / f"pixels-{size}-{interpolation}-{_key(table, size, interpolation)[:20]}.npy"
    if not path.is_file():
        with atomic_file(path) as temporary:
            _fill(temporary, table, size, interpolation, progress)
    return np.load(path, mmap_mode="r", allow_pickle=False)


def _key(table: Table, size: int, interpolation: str) -> str:
    files = []
    for sample in table.samples:
        try:
            stat = sample.path.stat()
            files.append([sample.image_id, str(sample.path), stat.st_size, stat.st_mtime_ns])
        except OSError:
            files.append([sample.image_id, str(sample.path), -1, -1])
    settings = Preprocess(size=size, interpolation="bicubic" if interpolation == "bicubic" else "bilinear")
    return sha256_bytes(canonical_json([DECODER_VERSION, settings.model_dump(mode="json"), files]))


def _fill(path: Path, table: Table, size: int, interpolation: str, progress: Progress | None) -> None:
    shape = (len(table), size, size, 3)
    array = np.lib.format.open_memmap(path, mode="w+", dtype=np.uint8, shape=shape)
    if hasattr(os, "posix_fallocate"):
        # Takes the space now: a full disk is an error here, and a crash when it is met through the memory map.
        with path.open("rb+") as f:
            os.posix_fallocate(f.fileno(), 0, path.stat().st_size)

    def decode(index: int) -> None:
        sample = table.samples[index]
        try:
            array[index] = resize_square(load_rgb(sample.path), size, interpolation)
        except DataError as error:
            if sample.listed is None:
                raise
            raise DataError(f"{sample.listed}: {error.message}", hint=error.hint) from error

    # Pillow releases the GIL while it decodes and resizes, so threads are enough and nothing is copied between
    # processes.
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        try:
            for done, _ in enumerate(_in_order(pool, decode, len(table)), start=1):
                if progress and (done % 64 == 0 or done == len(table)):
                    progress(done, len(table), f"decoding images at {size} px")
        except BaseException:
            pool.shutdown(wait=True, cancel_futures=True)
            raise
    array.flush()


def _in_order(pool: ThreadPoolExecutor, task: Callable[[int], None], count: int) -> Iterator[None]:
    yield from pool.map(task, range(count))
