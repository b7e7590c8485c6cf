"""The machine and the versions that a measurement was made with."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from dspkd_bench.agent import SYS, describe, read_text
from dspkd_bench.sensors import parse_l4t, parse_nvpmodel

__all__ = ["describe_environment", "facts", "load_average"]

PACKAGES = ("torch", "torchvision", "timm", "onnxruntime", "executorch", "ai-edge-litert", "numpy")


def describe_environment(threads: int) -> dict[str, Any]:
    """JSON-ready. What cannot be read is None, never guessed. Host name and user are left out on purpose."""
    said = describe()
    return {
        **{name: said[name] for name in ("cores", "affinity", "os", "machine", "python")},
        "cpu": said["cpu"] or platform.processor() or None,
        "governor": read_text(SYS / "devices/system/cpu/cpu0/cpufreq/scaling_governor"),
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


def facts(machine: Mapping[str, Any]) -> dict[str, str]:
    """{label: text} of what a board says of itself, out of the agent's `describe`; what cannot be read is left out."""
    found = {"board": machine.get("board")}
    try:
        l4t = parse_l4t(machine.get("l4t") or "")
        found |= {"L4T": l4t.release, "JetPack": str(l4t.jetpack) if l4t.jetpack else None}
    except ValueError:
        pass
    try:
        mode = parse_nvpmodel(machine.get("nvpmodel") or "")
        found["power mode"] = mode.name if mode.number is None else f"{mode.name} ({mode.number})"
    except ValueError:
        pass
    found["TensorRT"] = (machine.get("packages") or {}).get("tensorrt")
    return {label: text for label, text in found.items() if text}
