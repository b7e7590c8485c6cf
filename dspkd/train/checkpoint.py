"""Checkpoints that a kill cannot spoil: written aside, synced, renamed; tensors and plain values only."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import torch

from dspkd.errors import CheckpointError
from dspkd.fileio import atomic_file

__all__ = ["CHECKPOINT_VERSION", "read_checkpoint", "write_checkpoint"]

CHECKPOINT_VERSION = 2


def write_checkpoint(path: Path, state: dict[str, Any]) -> None:
    with atomic_file(path) as temporary:
        torch.save({"version": CHECKPOINT_VERSION, **state}, temporary)


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Raises CheckpointError if the file is missing, damaged, or of another version. Never unpickles code."""
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise CheckpointError(f"{path} does not exist: nothing to resume", hint="start without --resume") from error
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError, ValueError) as error:
        raise CheckpointError(
            f"checkpoint {path} cannot be read: {error}", hint="start anew in another --out"
        ) from error
    if not isinstance(state, dict) or state.get("version") != CHECKPOINT_VERSION:
        raise CheckpointError(
            f"checkpoint {path} was written by another version of dspkd", hint="start anew in another --out"
        )
    return state
