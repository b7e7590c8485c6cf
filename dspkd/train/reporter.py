"""What a long run tells while it goes on. The loop calls a `Reporter`; how that looks is decided here alone."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

__all__ = ["Reporter", "RichReporter"]


class Reporter:
    """Says nothing. Subclass it to show something."""

    def message(self, text: str) -> None:
        """One line worth reading."""

    def progress(self, done: int, total: int, what: str) -> None:
        """`done` of `total` units of `what`."""

    def step(self, stage: str, epoch: int, epochs: int, step: int, steps: int, values: Mapping[str, float]) -> None:
        """One training step; `values` are loss terms and images/s so far in this epoch."""

    def close(self) -> None:
        """The work is over, well or badly."""


class RichReporter(Reporter):
    """A progress bar on stderr where that is a terminal; else a line per message and per finished epoch."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        self._console = Console(stderr=True, highlight=False)
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[values]}"),
            console=self._console,
            transient=True,
            disable=not sys.stderr.isatty(),
        )
        self._task: Any = None
        self._what = ""

    def message(self, text: str) -> None:
        self._console.print(text, soft_wrap=True, markup=False)

    def progress(self, done: int, total: int, what: str) -> None:
        self._show(what, done, total, "")

    def step(self, stage: str, epoch: int, epochs: int, step: int, steps: int, values: Mapping[str, float]) -> None:
        text = "  ".join(f"{name} {value:.4g}" for name, value in values.items())
        self._show(f"{stage} {epoch}/{epochs}", step, steps, text)

    def _show(self, what: str, done: int, total: int, values: str) -> None:
        if self._bar.disable:
            return
        self._bar.start()
        if what != self._what:
            if self._task is not None:
                self._bar.remove_task(self._task)
            self._task, self._what = self._bar.add_task(what, total=total, values=values), what
        self._bar.update(self._task, completed=done, total=total, values=values)

    def close(self) -> None:
        self._bar.stop()
