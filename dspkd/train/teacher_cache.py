"""What a frozen teacher said of training views, stored by (image, view) and shared by runs, methods and seeds.

    FOLDER/teacher-cache.json      what the answers belong to; sealed
    FOLDER/logits-00000.rows       the logits of every image's view in epoch 0, see `row_store`
    FOLDER/layer4-00000.rows ...   maps, and the HF attention, where a method reads them

A run asks the teacher for what is missing and stores it, so that filling needs no command of its own and goes on
wherever it was interrupted.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from filelock import FileLock
from torch import Tensor

from dspkd.data.views import VIEWS_PER_EPOCH, TrainingViews
from dspkd.errors import DataError
from dspkd.fileio import canonical_json, ensure_dir, read_sealed_json, sha256_bytes, write_sealed_json
from dspkd.student import Student
from dspkd.train.row_store import RowStore

__all__ = ["Slots", "TeacherCache", "cache_identity"]

MANIFEST = "teacher-cache.json"
FORMAT = 1
PROBES = 8


@dataclass(frozen=True)
class Slots:
    """Where the rows of each image stand in the file of one epoch's views. `first` and `count` go by position in the
    table; an image has as many rows as it can be drawn in an epoch.
    """

    first: np.ndarray
    count: np.ndarray

    @classmethod
    def of(cls, most_draws: np.ndarray) -> Slots:
        return cls(np.cumsum(most_draws) - most_draws, most_draws)

    @property
    def total(self) -> int:
        return int(self.count.sum())

    def rows(self, positions: np.ndarray, occurrences: np.ndarray) -> np.ndarray:
        """-1 for what has no place."""
        known = positions < len(self.count)
        index = np.where(known, positions, 0)
        placed = known & (occurrences < self.count[index])
        return np.where(placed, self.first[index] + occurrences, -1)


def cache_identity(
    views: TrainingViews, teacher: Student, slots: Slots, *, pixels: str, dtype: str, precision: str
) -> dict[str, str]:
    """Everything that an answer depends on, under the name that a refusal gives it. `pixels` says which they are.

    The transform is known by what it makes of a few pictures: whatever changes it (dspkd, torch, the kind of device)
    makes another cache.
    """
    card = teacher.card
    augmentation = views.config.model_dump(mode="json", exclude={"views", "seed"})
    ids = [[views.image_ids[i], int(n)] for i, n in enumerate(slots.count) if n]
    return {
        "images": sha256_bytes(canonical_json(ids)),
        "decoded pixels": pixels,
        "seed of the views": str(views.seed),
        "augmentation": canonical_json(augmentation).decode(),
        "view transform": _view_probe(views),
        "input size": str(views.size),
        "teacher's architecture": card.architecture,
        "teacher's weights": card.weights_sha256,
        "teacher's form": "batch norms folded",
        "teacher's classes": canonical_json(list(card.classes)).decode(),
        "teacher's preprocessing": canonical_json(card.preprocess.model_dump(mode="json")).decode(),
        "number format": dtype,
        "precision": precision,
        "device": views.device.type,
    }


def _view_probe(views: TrainingViews) -> str:
    side = int(views.pixels.shape[1])
    pictures = np.random.Generator(np.random.PCG64(0)).integers(0, 256, (PROBES, side, side, 3), dtype=np.uint8)
    probe = TrainingViews(
        pictures,
        np.zeros(PROBES, dtype=np.int64),
        [f"probe {i}" for i in range(PROBES)],
        size=views.size,
        seed=views.seed,
        config=views.config,
        rare=frozenset({0}),
        device=views.device,
    )
    made = probe.batch([(i, i) for i in range(PROBES)]).pixels
    return sha256_bytes(made.cpu().contiguous().numpy().tobytes())


class TeacherCache:
    """The stored answers of one teacher for one way of making views.

    Raises DataError if `folder` belongs to other ones, and says in what they differ; VerificationError if its manifest
    was edited.
    """

    def __init__(self, folder: Path, identity: Mapping[str, str], slots: Slots, *, dtype: str) -> None:
        self.folder, self.slots, self.dtype = ensure_dir(folder), slots, np.dtype(dtype)
        self._key = sha256_bytes(canonical_json(dict(identity)))
        self._stores: dict[tuple[str, int], RowStore] = {}
        with FileLock(folder / ".manifest.lock"):
            if not (folder / MANIFEST).is_file():
                manifest = {"kind": "teacher cache", "schema_version": FORMAT, "identity": dict(identity)}
                write_sealed_json(folder / MANIFEST, manifest)
        stored = read_sealed_json(folder / MANIFEST, kind="teacher cache", schema_version=FORMAT)["identity"]
        differing = [name for name in {**stored, **identity} if stored.get(name) != identity.get(name)]
        if differing:
            was, now = (", ".join(f"{name} {_short(of.get(name))}" for name in differing) for of in (stored, identity))
            raise DataError(
                f"teacher cache {folder} was made with another {', another '.join(differing)} (there: {was}; here: "
                f"{now})",
                hint="use --teacher-cache auto, which finds the right one or makes it, or name another folder",
            )

    @property
    def damaged(self) -> int:
        """Blocks that were found damaged, and made again."""
        return sum(len(store.damaged) for store in self._stores.values())

    def file_bytes(self, shape: tuple[int, ...]) -> int:
        """Of one epoch's views of a quantity (C, ...)."""
        return self._store_of("", 0, self._row_bytes(shape)).file_bytes

    def stored_bytes(self, *, without: frozenset[str] = frozenset()) -> int:
        """Bytes on the disk; of quantities other than `without`."""
        files = (path for path in self.folder.glob("*.rows") if path.name.rpartition("-")[0] not in without)
        return sum(path.stat().st_blocks * 512 for path in files)

    def read(
        self, name: str, shape: tuple[int, ...], positions: np.ndarray, views: np.ndarray
    ) -> tuple[Tensor, np.ndarray]:
        """float32 (B, *shape) of a quantity, and bool (B,), whether each is there."""
        data = np.zeros((len(positions), self._row_bytes(shape)), np.uint8)
        present = np.zeros(len(positions), bool)
        for epoch, members, rows in self._places(positions, views):
            data[members], present[members] = self._store(name, epoch, shape).read(rows)
        values = data.view(self.dtype).reshape(len(positions), *shape)
        return torch.from_numpy(values.astype(np.float32)), present

    def write(self, name: str, positions: np.ndarray, views: np.ndarray, values: np.ndarray) -> None:
        """Store (B, *shape) in the cache's number format. What is no finite number is left out, and asked for again."""
        finite = np.isfinite(values.reshape(len(values), -1)).all(1)
        positions, views, values = positions[finite], views[finite], np.ascontiguousarray(values[finite])
        data = values.reshape(len(values), -1).view(np.uint8)
        for epoch, members, rows in self._places(positions, views):
            self._store(name, epoch, values.shape[1:]).write(rows, data[members])

    def _places(self, positions: np.ndarray, views: np.ndarray) -> list[tuple[int, np.ndarray, np.ndarray]]:
        """For each epoch among `views`: it, the members of the batch that have a place in its file, and their rows."""
        epochs, occurrences = np.divmod(views, VIEWS_PER_EPOCH)
        rows = self.slots.rows(positions, occurrences)
        found = []
        for epoch in np.unique(epochs):
            members = np.flatnonzero((epochs == epoch) & (rows >= 0))
            if len(members):
                found.append((int(epoch), members, rows[members]))
        return found

    def _store(self, name: str, epoch: int, shape: tuple[int, ...]) -> RowStore:
        key = (name, epoch)
        if key not in self._stores:
            self._stores[key] = self._store_of(name, epoch, self._row_bytes(shape))
        return self._stores[key]

    def _store_of(self, name: str, epoch: int, row_bytes: int) -> RowStore:
        path = self.folder / f"{name}-{epoch:05d}.rows"
        return RowStore(path, rows=self.slots.total, row_bytes=row_bytes, identity=f"{self._key}/{name}/{epoch}")

    def _row_bytes(self, shape: tuple[int, ...]) -> int:
        return int(np.prod(shape)) * self.dtype.itemsize


def _short(value: str | None) -> str:
    return "none" if value is None else value if len(value) <= 24 else f"{value[:20]}..."
