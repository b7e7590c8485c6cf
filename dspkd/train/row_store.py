"""Rows of numbers in a file that several processes read and write, each row whole or absent.

    FILE    uint32 (blocks,)            a checksum for each block of rows; 0: never written
            bytes (rows * row_bytes)    the rows; one that is all zeros is absent

The file has its full size from the start and takes space on the disk only for blocks that were written. Reading goes
through a memory map; writing does not, because a full disk met through a map is a crash and not an error. A checksum
covers the block's place too. A block whose checksum is wrong (a changed byte, a kill while it was written) counts as
absent until it is written again.
"""

from __future__ import annotations

import os
import zlib
from pathlib import Path

import numpy as np
from filelock import FileLock, Timeout

from dspkd.fileio import atomic_file, write_at

__all__ = ["RowStore"]

BLOCK_BYTES = 2048
# Another process holds the lock for as long as it takes to write what it has gathered.
LOCK_SECONDS = 60


class RowStore:
    """`rows` rows of `row_bytes` bytes. `identity` is what the file is known by: rows of another are never taken."""

    def __init__(self, path: Path, *, rows: int, row_bytes: int, identity: str) -> None:
        self.path, self.rows, self.row_bytes = path, rows, row_bytes
        self.rows_per_block = max(1, BLOCK_BYTES // row_bytes)
        self.blocks = -(-rows // self.rows_per_block)
        self.damaged: set[int] = set()
        """Blocks that were found damaged, whether or not they have been written again."""
        self._salt = zlib.crc32(identity.encode())
        self._lock = FileLock(path.with_name(f".{path.name}.lock"), timeout=LOCK_SECONDS)
        self._map: np.ndarray | None = None

    @property
    def file_bytes(self) -> int:
        return 4 * self.blocks + self.rows * self.row_bytes

    def read(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """uint8 (N, row_bytes) and bool (N,), whether each of `rows`, int64 (N,), is there."""
        found = np.zeros((len(rows), self.row_bytes), np.uint8)
        if self._mapped() is None:
            return found, np.zeros(len(rows), bool)
        blocks = rows // self.rows_per_block
        for block in np.unique(blocks):
            content = self._whole_block(int(block))
            if content is not None:
                members = blocks == block
                found[members] = content[rows[members] - block * self.rows_per_block]
        return found, np.asarray(found.any(1))

    def write(self, rows: np.ndarray, data: np.ndarray) -> None:
        """Put uint8 (N, row_bytes) in their places, int64 (N,). Raises OSError (a full disk) and OutputError."""
        with self._lock:
            self._make_file()
            blocks = rows // self.rows_per_block
            with self.path.open("rb+", buffering=0) as f:
                for block in np.unique(blocks):
                    members = blocks == block
                    self._write_block(f.fileno(), int(block), rows[members], data[members])

    def _write_block(self, file: int, block: int, rows: np.ndarray, data: np.ndarray) -> None:
        first, size = self._extent(block)
        stored = int.from_bytes(os.pread(file, 4, 4 * block), "little")
        before = self._valid(block, os.pread(file, size, self._place(block)), stored)
        content = np.zeros((size // self.row_bytes, self.row_bytes), np.uint8) if before is None else before.copy()
        content[rows - first] = data
        write_at(file, content.tobytes(), self._place(block))
        write_at(file, self._sum(block, content.tobytes()).to_bytes(4, "little"), 4 * block)

    def _whole_block(self, block: int) -> np.ndarray | None:
        content = self._block_in_map(block)
        if content is None and self._sum_in_map(block):
            # Perhaps it was being written just now.
            try:
                with self._lock:
                    content = self._block_in_map(block)
            except Timeout:
                return None
            if content is None:
                self.damaged.add(block)
        return content

    def _block_in_map(self, block: int) -> np.ndarray | None:
        assert self._map is not None
        place, size = self._place(block), self._extent(block)[1]
        # Copied before it is checked: what is in the map may change at any time.
        return self._valid(block, self._map[place : place + size].tobytes(), self._sum_in_map(block))

    def _sum_in_map(self, block: int) -> int:
        assert self._map is not None
        return int.from_bytes(self._map[4 * block : 4 * block + 4].tobytes(), "little")

    def _valid(self, block: int, content: bytes, stored: int) -> np.ndarray | None:
        if stored == 0 or self._sum(block, content) != stored:
            return None
        return np.frombuffer(content, np.uint8).reshape(-1, self.row_bytes)

    def _sum(self, block: int, content: bytes) -> int:
        return zlib.crc32(content, zlib.crc32(block.to_bytes(8, "little"), self._salt)) or 1

    def _extent(self, block: int) -> tuple[int, int]:
        """First row and bytes of a block."""
        first = block * self.rows_per_block
        return first, min(self.rows_per_block, self.rows - first) * self.row_bytes

    def _place(self, block: int) -> int:
        return 4 * self.blocks + block * self.rows_per_block * self.row_bytes

    def _mapped(self) -> np.ndarray | None:
        if not self._has_right_size():
            self._map = None  # also where it had been: reading a map beyond the file's end is a crash
        elif self._map is None:
            self._map = np.memmap(self.path, np.uint8, mode="r")
        return self._map

    def _has_right_size(self) -> bool:
        return self.path.is_file() and self.path.stat().st_size == self.file_bytes

    def _make_file(self) -> None:
        if not self._has_right_size():
            self._map = None
            with atomic_file(self.path) as temporary:
                os.truncate(temporary, self.file_bytes)
