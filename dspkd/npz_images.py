"""Pictures inside an .npz archive (MedMNIST), streamed: an archive larger than the memory can be read.

A picture has the address ARCHIVE.npz/ARRAY/INDEX, so that whoever deals in paths deals in these, too.
"""

from __future__ import annotations

import os
import threading
import zipfile
import zlib
from collections import OrderedDict
from functools import lru_cache
from pathlib import Path
from typing import IO

import numpy as np

from dspkd.errors import DataError

__all__ = ["array_names", "array_shape", "picture_file", "picture_of", "read_array", "read_picture"]

_UNREADABLE = (OSError, ValueError, EOFError, KeyError, RuntimeError, zipfile.BadZipFile, zlib.error)
# Threads that decode in order ask for neighbours, a little out of order.
WINDOW = 64


def picture_of(path: Path) -> tuple[Path, str, int] | None:
    """(archive, array, index) of a picture inside an archive; None for any other path."""
    archive = path.parent.parent
    if archive.suffix.lower() != ".npz" or not path.name.isdecimal() or not archive.is_file():
        return None
    return archive, path.parent.name, int(path.name)


def picture_file(path: Path) -> Path:
    """The file on the disk that holds a picture: the archive, or `path` itself."""
    inside = picture_of(path)
    return inside[0] if inside else path


def array_names(archive: Path) -> tuple[str, ...]:
    try:
        with zipfile.ZipFile(archive) as opened:
            return tuple(name.removesuffix(".npy") for name in opened.namelist() if name.endswith(".npy"))
    except _UNREADABLE as error:
        raise _damaged(archive, error) from error


def read_array(archive: Path, array: str) -> np.ndarray:
    """A small array as a whole. Raises DataError, also for one of Python objects: those would have to be executed."""
    try:
        with np.load(archive, allow_pickle=False) as opened:
            return np.asarray(opened[array])
    except _UNREADABLE as error:
        raise _damaged(archive, error, array) from error


def array_shape(archive: Path, array: str) -> tuple[int, ...]:
    """Shape of an array of pictures, from its header alone. Raises DataError unless it is uint8 (N, H, W[, 3])."""
    try:
        with zipfile.ZipFile(archive) as opened, opened.open(f"{array}.npy") as f:
            shape, fortran, dtype = _header(f)
    except _UNREADABLE as error:
        raise _damaged(archive, error, array) from error
    if dtype != np.uint8 or fortran or not (len(shape) == 3 or (len(shape) == 4 and shape[3] == 3)):
        raise DataError(
            f"{archive}: {array} is {dtype} {shape}, no pictures", hint="pictures are uint8 (N, H, W) or (N, H, W, 3)"
        )
    return shape


def read_picture(archive: Path, array: str, index: int) -> np.ndarray:
    """uint8 (H, W) or (H, W, 3). Quick in ascending order, from several threads too; other orders unpack again."""
    stamp = archive.stat().st_mtime_ns
    return _stream(os.getpid(), archive, array, stamp).read(index)


class _Stream:
    def __init__(self, archive: Path, array: str) -> None:
        shape = array_shape(archive, array)
        self._where, self._count, self._shape = f"{archive}: {array}", shape[0], shape[1:]
        self._archive = archive
        try:
            self._file = zipfile.ZipFile(archive).open(f"{array}.npy")  # noqa: SIM115 - open as long as the stream lives
            _header(self._file)
            self._begin = self._file.tell()
        except _UNREADABLE as error:
            raise _damaged(archive, error, array) from error
        self._next = 0
        self._recent: OrderedDict[int, np.ndarray] = OrderedDict()
        self._lock = threading.Lock()

    def read(self, index: int) -> np.ndarray:
        if index >= self._count:
            raise DataError(f"{self._where} has {self._count} pictures, and none of index {index}")
        with self._lock:
            if index in self._recent:
                return self._recent[index]
            try:
                if not self._next <= index < self._next + WINDOW:
                    self._file.seek(self._begin + index * self._bytes)
                    self._next = index
                while self._next <= index:
                    self._keep(self._next, self._file.read(self._bytes))
                    self._next += 1
            except _UNREADABLE as error:
                raise _damaged(self._archive, error, f"picture {index}") from error
            return self._recent[index]

    @property
    def _bytes(self) -> int:
        return int(np.prod(self._shape))

    def _keep(self, index: int, data: bytes) -> None:
        self._recent[index] = np.frombuffer(data, np.uint8).reshape(self._shape)
        while len(self._recent) > 2 * WINDOW:
            self._recent.popitem(last=False)


# By process: after a fork two processes would move one file position.
@lru_cache(maxsize=8)
def _stream(process: int, archive: Path, array: str, stamp: int) -> _Stream:
    return _Stream(archive, array)


def _header(f: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype]:
    version = np.lib.format.read_magic(f)
    if version == (1, 0):
        return np.lib.format.read_array_header_1_0(f)
    if version == (2, 0):
        return np.lib.format.read_array_header_2_0(f)
    raise ValueError(f"array format {version} is unknown")


def _damaged(archive: Path, error: BaseException, array: str = "") -> DataError:
    what = f"{array} of " if array else ""
    return DataError(f"{what}archive {archive} cannot be read: {error}", hint="download it again")
