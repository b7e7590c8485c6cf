"""The machine and the versions that a measurement was made with."""

from __future__ import annotations

import os
import platform
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from dspkd_bench.agent import describe, read_text

__all__ = ["describe_environment", "load_average"]

PACKAGES = ("torch", "torchvision", "timm", "onnxruntime", "executorch", "numpy")


def describe_environment(threads: int) -> dict[str, Any]:
    """JSON-ready. What cannot be read is None, never guessed. Host name and user are left out on purpose."""
    said = describe()
    return {
        **{name: said[name] for name in ("cores", "os", "machine", "python")},
        "cpu": said["cpu"] or platform.processor() or None,
        "governor": read_text("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor"),
        "load_average_1min": load_average(),
        "threads": threads,
        "packages": {name: _version(name) for name in PACKAGES},
    }


def load_average() -> float | None:
    """Processes that ran or wanted to, on average over the last minute; well above 0 means that something else was
    running.
    """
    return round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
