"""One export: what a target's compiler is given."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dspkd.runtimes import to_input
from dspkd.student import Student
from dspkd_export.calibration import Calibration, required_for_int8
from dspkd_export.deploy_module import DeployModule, deploy_module

__all__ = ["ExportJob"]


@dataclass(frozen=True, slots=True)
class ExportJob:
    student: Student
    folder: Path
    """The compiler writes its files here."""
    precision: str
    rewrite: bool = True
    calibration: Calibration | None = None

    @property
    def size(self) -> int:
        return self.student.card.preprocess.size

    def module(self) -> DeployModule:
        return deploy_module(self.student, rewrite=self.rewrite)

    def calibration_input(self) -> np.ndarray:
        """float32 (N, 3, H, W) in [0, 1]. UsageError without calibration images: no ranges are made up."""
        return to_input(required_for_int8(self.calibration).pixels)
