"""The configuration that lies with a run, and whether a resume asks for the same one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from dspkd.config import RunConfig, load_toml, parse_run_config
from dspkd.errors import CheckpointError
from dspkd.fileio import canonical_json, sha256_bytes

__all__ = ["CONFIG_FILE", "check_same_config", "fingerprint", "other_config", "read_run_config"]

CONFIG_FILE = "config.toml"
# What may change between a kill and its resume without changing the result.
_NOT_PART_OF_THE_RESULT = {
    "out": ...,
    "device": ...,
    "data": {"workers": ..., "cache_dir": ...},
    "teacher_cache": ...,
}


def read_run_config(folder: Path) -> dict[str, Any]:
    """The resolved configuration stored with a run."""
    if not (folder / CONFIG_FILE).is_file():
        raise CheckpointError(f"{folder} holds no run: {CONFIG_FILE} is missing", hint="check --out")
    return load_toml(folder / CONFIG_FILE)


def fingerprint(config: RunConfig) -> str:
    """Hash of everything that decides the result."""
    values = config.model_dump(mode="json", exclude=_NOT_PART_OF_THE_RESULT)  # type: ignore[arg-type]
    if config.teacher_cache.where != "off" and config.teacher_cache.dtype != "float32":
        values["teacher_cache"] = config.teacher_cache.dtype
    return sha256_bytes(canonical_json(values))


def check_same_config(config: RunConfig) -> None:
    """The configuration stored with a run must be the one that is asked for now, however far the run has come."""
    stored = parse_run_config(load_toml(config.out / CONFIG_FILE), origin=str(config.out / CONFIG_FILE))
    if fingerprint(stored) != fingerprint(config):
        raise other_config(config)


def other_config(config: RunConfig) -> CheckpointError:
    stored, wanted = load_toml(config.out / CONFIG_FILE), config.model_dump(mode="json", exclude_none=True)
    changed = sorted(key for key in {*stored, *wanted} - {"out", "device"} if stored.get(key) != wanted.get(key))
    return CheckpointError(
        f"{config.out} was started with another configuration (differs in: {', '.join(changed) or 'data'})",
        hint="resume with the same settings, or start anew in another --out",
    )
