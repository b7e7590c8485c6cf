"""Numbers and names as the report writes them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

__all__ = ["FILTERS", "ROLES", "RUNTIMES", "count", "ms", "percent", "short_name", "times", "unbroken"]

ROLES = {
    "teacher": "Teacher",
    "baseline": "Student alone",
    "student": "Student distilled",
    "peer": "Stock export",
}
RUNTIMES = {
    "pytorch": "PyTorch",
    "torch-compile": "torch.compile",
    "onnx": "ONNX Runtime",
    "executorch": "ExecuTorch",
    "tensorrt": "TensorRT",
    "openvino": "OpenVINO",
    "litert": "LiteRT",
}


def times(value: float) -> str:
    """12.94 -> 12.9×."""
    digits = 2 if value < 9.995 else 1 if value < 99.95 else 0
    return f"{value:.{digits}f}×"


def unbroken(text: str) -> str:
    """A number stays on the line of its percent sign."""
    return text.replace(" %", "\u00a0%")


def percent(value: float) -> str:
    """0.5937 -> 59.4; the unit stands in the heading."""
    return f"{100 * value:.1f}"


def ms(value: float) -> str:
    """Three digits that count, as far as there are any."""
    digits = 3 if value < 0.9995 else 2 if value < 9.995 else 1 if value < 999.5 else 0
    return f"{value:.{digits}f}"


def count(value: float) -> str:
    """1262000 -> 1.262 M."""
    for factor, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= factor:
            return f"{value / factor:.3f} {unit}" if value < 100 * factor else f"{value / factor:.1f} {unit}"
    return f"{value:.0f}"


def short_name(subject: Mapping[str, Any]) -> str:
    """torchvision/shufflenet_v2_x1_0 -> shufflenet_v2_x1_0."""
    return str(subject["architecture"]).rpartition("/")[2]


def _tiny(value: float) -> str:
    """2.4e-06 -> 2.4·10⁻⁶."""
    if value == 0:
        return "0"
    digits, _, exponent = f"{value:.1e}".partition("e")
    return f"{digits}·10{str(int(exponent)).translate(str.maketrans('-0123456789', '⁻⁰¹²³⁴⁵⁶⁷⁸⁹'))}"


def _rest(name: str, role: str) -> str:
    """What a run's name says beyond its role, which stands before it: "teacher, resnet18" -> "resnet18"."""
    title = ROLES[role].lower()
    return name[len(title) :].lstrip(" ,:-") if name.lower().startswith(title) else name


FILTERS: dict[str, Callable[..., str]] = {
    "score": percent,
    "rest": _rest,
    "times": times,
    "ms": ms,
    "count": count,
    "mb": lambda value: f"{value / 1e6:.2f}",
    "tiny": _tiny,
    "percent": lambda value: unbroken(f"{100 * value:.2f} %"),
}
