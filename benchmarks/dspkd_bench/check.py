"""One thing that `dspkd doctor` has looked at, and versions that are compared."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

__all__ = ["Check", "State", "numbers", "older"]

State = Literal["ok", "missing", "warning", "not needed"]


@dataclass(frozen=True, slots=True)
class Check:
    name: str
    state: State
    found: str
    fix: str | None = None
    """A command for the shell of this machine; None if there is nothing to do."""


def numbers(version: str) -> tuple[int, ...]:
    """Up to four, of what stands before a plus sign."""
    return tuple(int(part) for part in re.findall(r"\d+", version.partition("+")[0])[:4])


def older(version: str, than: str) -> bool:
    """Whether the first three numbers of a version are below; 1.5 is 1.5.0."""
    left, right = ((*numbers(text)[:3], 0, 0, 0)[:3] for text in (version, than))
    return left < right
