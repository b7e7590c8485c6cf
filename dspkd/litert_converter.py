"""The Python that runs LiteRT's converter: it wants other versions of what dspkd uses, so it may be another one."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

from dspkd.errors import MissingDependencyError, VerificationError

__all__ = ["CONVERTER_PYTHON", "HOW_TO_INSTALL", "converter_python", "has_converter", "run_converter"]

CONVERTER_PYTHON = "DSPKD_LITERT_PYTHON"
HOW_TO_INSTALL = (
    "pip install litert-torch==0.10.0 into an environment of its own (it wants other versions than dspkd), and name "
    f"that Python in {CONVERTER_PYTHON}"
)


def converter_python() -> str:
    """The one that DSPKD_LITERT_PYTHON names, or this one."""
    return os.environ.get(CONVERTER_PYTHON) or sys.executable


def has_converter() -> bool:
    """Whether that Python has litert-torch. Nothing of it is imported: that takes half a minute. OSError if there is no
    such Python, subprocess.TimeoutExpired if it does not answer.
    """
    code = "import importlib.util, sys; sys.exit(importlib.util.find_spec('litert_torch') is None)"
    return subprocess.run([converter_python(), "-c", code], capture_output=True, timeout=60.0).returncode == 0


def run_converter(script: Path, *arguments: object) -> str:
    """Run one of the scripts for LiteRT's converter with that Python. Returns what it prints.

    Raises MissingDependencyError if that Python cannot be run or lacks a package, VerificationError with the
    converter's last line if it fails.
    """
    python = converter_python()
    command = [python, str(script), *map(str, arguments)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, errors="replace")
    except OSError as error:
        raise MissingDependencyError(
            f"{python} cannot be run: {error.strerror}", hint=f"{CONVERTER_PYTHON} names a Python with litert-torch"
        ) from error
    if done.returncode == 0:
        return done.stdout
    said = next(reversed(done.stderr.strip().splitlines()), "no reason given")
    if said.startswith(("ModuleNotFoundError: ", "importlib.metadata.PackageNotFoundError: ")):
        raise MissingDependencyError(f"LiteRT's converter cannot start in {python}: {said}", hint=HOW_TO_INSTALL)
    if done.returncode < 0:
        said = f"it was ended by {signal.Signals(-done.returncode).name}"
    raise VerificationError(
        f"LiteRT's converter in {python} fails: {said}",
        hint="free some memory, upgrade litert-torch there, or export this network to executorch or onnx",
    )
