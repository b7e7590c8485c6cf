"""Files that are either whole or not there: hashing, canonical JSON, write-aside-then-rename."""

from __future__ import annotations

import ctypes
import glob
import hashlib
import json
import math
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from dspkd.errors import OutputError, VerificationError

__all__ = [
    "atomic_dir",
    "atomic_file",
    "canonical_json",
    "ensure_dir",
    "ensure_file",
    "read_sealed_json",
    "remove_leftovers",
    "seal",
    "sha256_bytes",
    "sha256_file",
    "write_at",
    "write_json",
    "write_sealed_json",
    "write_text",
]

SEAL_KEY = "content_sha256"


def sha256_bytes(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def sha256_file(path: Path) -> str:
    with path.open("rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


def canonical_json(value: Any) -> bytes:
    """The one byte string of a JSON value that hashes are taken over (sorted keys, no spaces, NaN refused)."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()


def _cannot_write(path: Path, error: OSError) -> OutputError:
    return OutputError(f"cannot write {path}: {error.strerror or error}", hint="choose a writable place with --out")


def ensure_dir(path: Path) -> Path:
    """Make a folder that can be written to, or say in one sentence why not."""
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            pass
    except OSError as error:
        raise _cannot_write(path, error) from error
    return path


def ensure_file(path: Path) -> None:
    """OutputError where no file could be written to `path`; its folder is made. For what takes long to compute."""
    if path.is_dir():
        raise OutputError(f"cannot write {path}: it is a folder", hint="name a file in it with --out")
    ensure_dir(path.parent)


@contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; rename it there on success, remove it on failure.

    The contents reach the disk before the rename, so that a kill or a power cut leaves the old file or the new one.
    """
    ensure_dir(path.parent)
    try:
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".part" + path.suffix, dir=path.parent)
    except OSError as error:
        raise _cannot_write(path, error) from error
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        with temporary.open("rb+") as f:
            os.fsync(f.fileno())
        temporary.chmod(0o644)
        temporary.replace(path)
    except OSError as error:
        raise _cannot_write(path, error) from error
    finally:
        temporary.unlink(missing_ok=True)


def remove_leftovers(folder: Path, *, of: str = "") -> None:
    """Remove what a killed process was writing in `folder`, or of what it was writing there only `of`. Only where there
    is a single writer.
    """
    for path in folder.glob(f".{glob.escape(of)}.*.part*" if of else ".*.part*"):
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


@contextmanager
def atomic_dir(path: Path) -> Iterator[Path]:
    """Yield a temporary folder beside `path` that takes its place on success.

    A kill at any moment leaves the old folder or the new one at `path`, where the system can exchange two folders in
    one step (Linux, most file systems). Elsewhere the old one is first renamed aside, and a kill between the two
    renames leaves it under its `.old` name; never a mixture. What a kill has left half-written is removed by the next
    call for the same `path`.
    """
    ensure_dir(path.parent)
    if path.exists() and not path.is_dir():
        raise OutputError(f"cannot write {path}: it is a file, not a folder", hint="choose another --out")
    remove_leftovers(path.parent, of=path.name)
    temporary = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".part", dir=path.parent))
    old = path.with_name(f".{path.name}.old")
    try:
        yield temporary
        temporary.chmod(0o755)
        if not (path.exists() and _exchange(temporary, path)):
            _replace_in_two_steps(path, temporary, old)
        shutil.rmtree(old, ignore_errors=True)
    except OSError as error:
        raise _cannot_write(path, error) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _replace_in_two_steps(path: Path, temporary: Path, old: Path) -> None:
    if path.exists():
        shutil.rmtree(old, ignore_errors=True)
        path.replace(old)
    try:
        temporary.replace(path)
    except BaseException:
        if old.exists():
            old.replace(path)
        raise


def _exchange(one: Path, other: Path) -> bool:
    """Exchange two folders in one step. False, and nothing done, where the system cannot."""
    try:
        renameat2 = ctypes.CDLL(None, use_errno=True).renameat2
    except (OSError, AttributeError):  # no such function before glibc 2.28, nor outside Linux
        return False
    at_current_folder, exchange = -100, 2
    return bool(renameat2(at_current_folder, os.fsencode(one), at_current_folder, os.fsencode(other), exchange) == 0)


def write_at(file: int, content: bytes, place: int) -> None:
    """All of `content` into an open file, however little the system takes at a time. Raises OSError."""
    while content:
        written = os.pwrite(file, content, place)
        content, place = content[written:], place + written


def write_text(path: Path, text: str) -> None:
    with atomic_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def _json_text(value: Any) -> str:
    return json.dumps(value, indent=2, allow_nan=False) + "\n"


def write_json(path: Path, value: Any) -> None:
    write_text(path, _json_text(value))


def seal(value: dict[str, Any]) -> dict[str, Any]:
    """Return `value` with a hash of its own content, so that an edit by hand is noticed."""
    body = {k: v for k, v in value.items() if k != SEAL_KEY}
    return {**body, SEAL_KEY: sha256_bytes(canonical_json(body))}


def write_sealed_json(path: Path, value: dict[str, Any]) -> None:
    write_json(path, seal(value))


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"{text} is no number that JSON knows")
    return number


def read_sealed_json(path: Path, *, kind: str, schema_version: int) -> dict[str, Any]:
    """Read a manifest written by `write_sealed_json`.

    Raises VerificationError if the file is missing, no JSON, of another kind, of a newer schema, or was edited, be it
    by one byte: the seal covers the content, and the comparison with what `write_sealed_json` would write covers spaces
    and digits beyond a float's precision.
    """
    try:
        data = path.read_bytes()
        # NaN and infinities cannot have been written here, and nothing can be hashed that contains them.
        value = json.loads(data.decode("utf-8"), parse_float=_finite, parse_constant=_finite)
    except FileNotFoundError as error:
        raise VerificationError(
            f"{path} does not exist: {path.parent} is not a dspkd {kind} folder", hint="check the path"
        ) from error
    except (OSError, ValueError) as error:
        raise VerificationError(f"{path} cannot be read as JSON: {error}", hint=f"make the {kind} again") from error
    if not isinstance(value, dict) or value.get("kind") != kind:
        found = value.get("kind") if isinstance(value, dict) else type(value).__name__
        raise VerificationError(f"{path} is of kind {found!r}, expected {kind!r}")
    version = value.get("schema_version")
    if not isinstance(version, int) or version > schema_version:
        raise VerificationError(
            f"{path} has schema version {version!r}; this dspkd reads up to {schema_version}", hint="upgrade dspkd"
        )
    if seal(value)[SEAL_KEY] != value.get(SEAL_KEY) or _json_text(value).encode() != data:
        raise VerificationError(
            f"{path} was edited after it was written: its content does not match its {SEAL_KEY}",
            hint=f"make the {kind} again with the settings that you want",
        )
    return value
