"""A device on which Ctrl-C is a lost connection."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from dspkd.devices import Completed, Device
from dspkd.errors import DeviceError
from dspkd_bench.recording import INTERRUPTED

__all__ = ["Interruptible"]


class Interruptible:
    """A device whose connection counts as lost on Ctrl-C: then what it has measured before is kept in the same way."""

    def __init__(self, device: Device) -> None:
        self._device = device
        self.interrupted = False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._device, name)

    def push(self, local: Path, remote_name: str) -> None:
        with self._lost_if_interrupted():
            self._device.push(local, remote_name)

    def run(self, argv: Sequence[str], *, timeout: float | None = None, stdout: IO[bytes] | None = None) -> Completed:
        with self._lost_if_interrupted():
            return self._device.run(argv, timeout=timeout, stdout=stdout)

    @contextmanager
    def _lost_if_interrupted(self) -> Iterator[None]:
        # Who takes a lost connection lightly would else go on with what was to be ended.
        if self.interrupted:
            raise DeviceError(INTERRUPTED)
        try:
            yield
        except KeyboardInterrupt as error:
            self.interrupted = True
            raise DeviceError(INTERRUPTED) from error
