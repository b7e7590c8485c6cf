"""One export: what a target's compiler is given."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dspkd.runtimes import LoadedModel, to_input
from dspkd.student import Student
from dspkd_export.calibration import Calibration, required_for_int8
from dspkd_export.deploy_module import DeployModule, deploy_module
from dspkd_export.live_channels import Widths

__all__ = ["Compiled", "ExportJob", "Target"]


@dataclass(frozen=True, slots=True)
class ExportJob:
    student: Student
    folder: Path
    """The compiler writes its files here."""
    precision: str
    rewrite: bool = True
    calibration: Calibration | None = None
    takes_bytes: bool = False
    """The input is uint8 (N, H, W, 3) instead of float32 in [0, 1], in the target's layout."""
    temperature: float = 1.0
    """Logits are divided by it (Guo et al. 2017): it moves confidence, never the class."""
    device: str = "local"
    """Where a target that compiles on its device does so: `local` or `ssh://[user@]host[:port]`."""

    @property
    def size(self) -> int:
        return self.student.card.preprocess.size

    def module(self, widths: Widths | None = None) -> DeployModule:
        return deploy_module(
            self.student,
            rewrite=self.rewrite,
            takes_bytes=self.takes_bytes,
            temperature=self.temperature,
            widths=widths,
        )

    @property
    def trained_int8(self) -> bool:
        """The student brings weights and scales of its own for int8 (`dspkd distill --stage qat`)."""
        return self.precision == "int8" and self.student.card.quantised is not None and self.rewrite

    def calibration_input(self) -> np.ndarray:
        """The calibration images as the module takes them. UsageError without any: no ranges are made up."""
        return to_input(required_for_int8(self.calibration).pixels, self.dtype)

    @property
    def dtype(self) -> str:
        """Of the model's input."""
        return "uint8" if self.takes_bytes else "float32"

    def example(self, batch: int) -> Tensor:
        """A blank input, as compilers want to see one."""
        return torch.from_numpy(to_input(np.zeros((batch, self.size, self.size, 3), dtype=np.uint8), self.dtype))


@dataclass(frozen=True, slots=True)
class Compiled:
    """What a target's compiler has made in the job's folder."""

    models: tuple[str, ...]
    """Names of the model files; the first is what a runtime loads by default."""
    details: dict[str, Any]
    """For the manifest, e.g. the number of delegates."""
    loaded: Mapping[str, LoadedModel] = field(default_factory=dict)
    """Model files on the target's own runtime, for the certificate. Empty if they cannot run here."""
    not_run: str = ""
    """Why `loaded` is empty."""
    stand_in: Mapping[str, LoadedModel] = field(default_factory=dict)
    """What the model files are made from, on a runtime that is here: shows that quantisation and graph are right, but
    not what the target's own kernels answer.
    """


@dataclass(frozen=True, slots=True)
class Target:
    compile: Callable[[ExportJob], Compiled]
    precisions: tuple[str, ...]
    batch: str | int
    """A name where the batch is dynamic."""
    packages: tuple[str, ...]
    """Whose versions the manifest records."""
    layout: str = "NCHW"
    """Of float32 input."""
