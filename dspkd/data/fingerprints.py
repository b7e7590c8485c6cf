"""Every image of a table read once: hash of the file, size, thumbnail, or why it cannot be decoded."""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import accumulate, pairwise
from pathlib import Path

import numpy as np
from filelock import FileLock
from PIL import Image

from dspkd.data.near_duplicates import THUMBNAIL, find_near_duplicates
from dspkd.data.pixels import default_cache_dir, file_states
from dspkd.data.quick_jpeg import decode_plain_jpeg
from dspkd.data.shares import side_by_side
from dspkd.data.table import Table
from dspkd.errors import DataError
from dspkd.fileio import canonical_json, ensure_dir, sha256_bytes, sha256_file, write_json
from dspkd.npz_images import picture_of, read_picture
from dspkd.preprocess import load_rgb

__all__ = ["DuplicatePair", "Fingerprints", "duplicate_images", "find_duplicates", "take_fingerprints"]

Progress = Callable[[int, int, str], None]
# Counted up when other pairs come to be found in the same pictures.
FINDER_VERSION = 1
# Progress is told about once for so many images.
REPORT = 64


@dataclass(frozen=True)
class Fingerprints:
    """Per image, in the table's order. `faults` has the error of each that cannot be decoded, by position."""

    sha256: tuple[str, ...]
    sizes: np.ndarray
    """int64 (N, 2): width and height as stored; 0 where even that cannot be read."""
    thumbnails: np.ndarray
    """uint8 (N, 32, 32, 3) of the whole picture, upright, squeezed to a square."""
    faults: dict[int, DataError]


@dataclass(frozen=True, slots=True)
class DuplicatePair:
    """Positions in the table, `first` < `second`."""

    first: int
    second: int
    exact: bool
    orientation: str
    similarity: float


def take_fingerprints(table: Table, *, progress: Progress | None = None) -> Fingerprints:
    """Decode everything, on as many threads as there are cores. JPEGs are read to their end, at a reduced size."""
    count = len(table)
    hashes, faults = [""] * count, {}
    sizes = np.zeros((count, 2), np.int64)
    thumbnails = np.zeros((count, THUMBNAIL, THUMBNAIL, 3), np.uint8)

    def take(index: int) -> None:
        path = table.samples[index].path
        try:
            hashes[index] = _content_hash(path)
            sizes[index] = _size(path)
            plain = decode_plain_jpeg(path, 2 * THUMBNAIL)
            picture = load_rgb(path, at_least=2 * THUMBNAIL) if plain is None else Image.fromarray(plain)
        except DataError as error:
            faults[index] = error
            return
        thumbnails[index] = np.asarray(picture.resize((THUMBNAIL, THUMBNAIL), Image.Resampling.BOX))

    def take_some(indices: Sequence[int]) -> int:
        for index in indices:
            take(index)
        return len(indices)

    # Decoders and hashlib release the GIL.
    threads = os.cpu_count() or 1
    with warnings.catch_warnings(), ThreadPoolExecutor(threads) as pool:
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        shares = [share for team in side_by_side(range(count), threads) for share in team]
        try:
            for before, done in pairwise(accumulate(pool.map(take_some, shares), initial=0)):
                if progress and (done // REPORT > before // REPORT or done == count):
                    progress(done, count, "decoding images")
        except BaseException:
            pool.shutdown(wait=True, cancel_futures=True)
            raise
    return Fingerprints(tuple(hashes), sizes, thumbnails, dict(sorted(faults.items())))


def _content_hash(path: Path) -> str:
    if inside := picture_of(path):
        return sha256_bytes(read_picture(*inside).tobytes())
    try:
        return sha256_file(path)
    except OSError as error:
        raise DataError(
            f"image {path} cannot be read: {error.strerror or error}", hint="mend its permissions"
        ) from error


def _size(path: Path) -> tuple[int, int]:
    if inside := picture_of(path):
        height, width = read_picture(*inside).shape[:2]
        return width, height
    try:
        with Image.open(path) as header:
            return header.size
    except Exception:  # whatever is wrong with the file, decoding it says so better
        return 0, 0


def find_duplicates(prints: Fingerprints, *, progress: Progress | None = None) -> list[DuplicatePair]:
    """All pairs that show the same picture. Of files with the same bytes each is paired with the first of them."""
    first_of: dict[str, int] = {}
    pairs, originals = [], []
    for index, digest in enumerate(prints.sha256):
        if index in prints.faults:
            continue
        original = first_of.setdefault(digest, index)
        if original == index:
            originals.append(index)
        else:
            pairs.append(DuplicatePair(original, index, True, "as it is", 1.0))
    told = (lambda done, total: progress(done, total, "comparing images")) if progress else None
    for pair in find_near_duplicates(prints.thumbnails[originals], progress=told):
        first, second = originals[pair.first], originals[pair.second]
        pairs.append(DuplicatePair(first, second, False, pair.orientation, pair.similarity))
    return sorted(pairs, key=lambda pair: (pair.first, pair.second))


def duplicate_images(
    table: Table, *, cache_dir: Path | None = None, progress: Progress | None = None
) -> list[tuple[str, str]]:
    """Pairs of image ids that show the same picture, for `make_split`. What was found is kept in the cache, by the
    names, sizes and times of the files.
    """
    path = ensure_dir(cache_dir or default_cache_dir()) / f"duplicates-{_key(table)[:20]}.json"
    known = _read_pairs(path)
    if known is not None:
        return known
    # Of several processes one looks and the others wait for what it finds.
    with FileLock(path.with_suffix(".lock")):
        if (known := _read_pairs(path)) is not None:
            return known
        pairs = find_duplicates(take_fingerprints(table, progress=progress), progress=progress)
        found = [(table.samples[p.first].image_id, table.samples[p.second].image_id) for p in pairs]
        write_json(path, found)
    return found


def _key(table: Table) -> str:
    return sha256_bytes(canonical_json([FINDER_VERSION, sorted(file_states(table))]))


def _read_pairs(path: Path) -> list[tuple[str, str]] | None:
    try:
        return [(str(first), str(second)) for first, second in json.loads(path.read_bytes())]
    except (OSError, ValueError, TypeError):
        return None
