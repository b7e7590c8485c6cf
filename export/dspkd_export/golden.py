"""golden.npz: a few real pictures, the answers they must give, and what those answers mean.

ONNX files say their classes and preprocessing themselves, an ExecuTorch program or a LiteRT file does not. They stand
here too, so that for every target a second, hashed file of the folder contradicts a manifest that was edited and sealed
again.
"""

from __future__ import annotations

import json
import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dspkd.errors import VerificationError
from dspkd.preprocess import Preprocess

__all__ = ["Golden", "describe_model", "read_golden"]


@dataclass(frozen=True, slots=True)
class Golden:
    """`pixels` are uint8 (N, H, W, 3); `pytorch` and `deployed` are the probabilities (N, K) at export, `deployed` None
    where nothing of the artifact could run; `said["classes"]` and `said["preprocess"]` are JSON as `describe_model`
    writes it.
    """

    pixels: np.ndarray
    pytorch: np.ndarray
    deployed: np.ndarray | None
    said: dict[str, str]


def describe_model(classes: Sequence[str], preprocess: Preprocess) -> dict[str, str]:
    """What the numbers of a model mean, as JSON, for a place beside or inside the model."""
    return {
        "classes": json.dumps(list(classes)),
        "preprocess": json.dumps(preprocess.model_dump(mode="json"), sort_keys=True),
    }


def read_golden(path: Path) -> Golden:
    """Raises VerificationError if the file is damaged or lacks an entry."""
    try:
        # numpy leaves a file that it has opened itself open when it cannot read it.
        with path.open("rb") as f, np.load(f, allow_pickle=False) as stored:
            return Golden(
                stored["pixels"],
                stored["pytorch"],
                stored["deployed"] if "deployed" in stored.files else None,
                {key: str(stored[key]) for key in ("classes", "preprocess")},
            )
    except (OSError, EOFError, KeyError, ValueError, TypeError, zipfile.BadZipFile, zlib.error) as error:
        raise VerificationError(f"{path} cannot be read: {error}", hint="export again") from error
