"""Every error that dspkd expects, as one tree.

    DspkdError               1  the base: anything below may be caught as this
      UsageError             2  flags that do not go together
        ConfigError          2  a TOML file or `--set` with a wrong key or value
      DataError              1  images, tables, labels, splits
      ModelError             1  unknown model, weights that do not fit
      CheckpointError        1  nothing to resume from, or it belongs to another run
      OutputError            1  the destination cannot be written
      GateError              3  a result is below its required margin
      VerificationError      4  a student or an artifact differs from its manifest
      MissingDependencyError 5  an optional package is not installed
      DeviceError            5  a device is not there or lacks something
      InconclusiveError      6  the measurement cannot decide

The number is the exit code of the command line. An expected error prints its cause and the fix, never a traceback;
a traceback means a bug in dspkd.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pydantic import ValidationError

__all__ = [
    "CheckpointError",
    "ConfigError",
    "DataError",
    "DeviceError",
    "DspkdError",
    "GateError",
    "InconclusiveError",
    "MissingDependencyError",
    "ModelError",
    "OutputError",
    "UsageError",
    "VerificationError",
    "first_fault",
]


class DspkdError(Exception):
    """An expected failure: `message` names the file and the value, `hint` says how to fix it."""

    exit_code = 1

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message} ({self.hint})" if self.hint else self.message


class UsageError(DspkdError):
    exit_code = 2


class ConfigError(UsageError):
    pass


class DataError(DspkdError):
    pass


class ModelError(DspkdError):
    pass


class CheckpointError(DspkdError):
    pass


class OutputError(DspkdError):
    pass


class GateError(DspkdError):
    exit_code = 3


class VerificationError(DspkdError):
    exit_code = 4


class MissingDependencyError(DspkdError):
    exit_code = 5


class DeviceError(DspkdError):
    exit_code = 5


class InconclusiveError(DspkdError):
    exit_code = 6


def first_fault(error: ValidationError, *under: object, whole: str = "all of it", with_value: bool = True) -> str:
    """The first thing that pydantic found wrong, as `key: what (got value)`. `under` are the keys of the tables that it
    lies in, and `whole` is said where no key is to blame.
    """
    fault = error.errors()[0]
    key = ".".join(map(str, (*under, *fault["loc"]))) or whole
    return f"{key}: {fault['msg']}" + (f" (got {fault.get('input')!r})" if with_value else "")
