"""How long one inference of each network takes (Table 6 of the paper), from what `dspkd bench` has measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from dspkd.errors import DataError, first_fault

__all__ = ["Bench", "latency_rows", "parse_bench"]


class _Part(BaseModel):
    # A reader of the schema ignores keys that it does not know.
    model_config = ConfigDict(frozen=True, extra="ignore", allow_inf_nan=False)


class _Latency(_Part):
    p50_ms: float = Field(gt=0.0)
    p90_ms: float = Field(gt=0.0)
    p50_interval_ms: tuple[float, float]


class _Complexity(_Part):
    size: int


class _Validity(_Part):
    verdict: str = "valid"
    reasons: tuple[str, ...] = ()


class _Subject(_Part):
    name: str
    role: str
    architecture: str
    runtime: str
    precision: str
    provider: str | None = None
    weights_sha256: str
    complexity: _Complexity
    latency: _Latency
    validity: _Validity = _Validity()


class _Interval(_Part):
    ratio: float
    interval: tuple[float, float]


class _Ratio(_Part):
    subject: str
    teacher: str
    same_runtime: bool
    latency: _Interval


class _Environment(_Part):
    cpu: str | None
    threads: int


class _Device(_Part):
    name: str | None


class Bench(_Part):
    """What the tables need of a results.json of `dspkd bench`; times in milliseconds, intervals of 95 %."""

    created: str
    command: str = ""
    environment: _Environment
    device: _Device | None = None
    subjects: tuple[_Subject, ...] = Field(min_length=1)
    ratios: tuple[_Ratio, ...] = ()
    interrupted: str | None = None


def parse_bench(values: Mapping[str, Any], *, origin: str) -> Bench:
    """Raises DataError naming the file, the key and the value."""
    try:
        return Bench.model_validate(values)
    except ValidationError as error:
        fault = first_fault(error, with_value=False)
        raise DataError(f"{origin}: {fault}", hint="measure again with `dspkd bench --out FILE`") from error


def latency_rows(
    bench: Bench, networks: Sequence[Mapping[str, Any]], runs: Mapping[tuple[str, str], Mapping[str, str]]
) -> dict[str, Any]:
    """The times of `networks` (those of results.json); `runs` are the names of each one's runs by the hash of their
    weights, its key role and name.

    A network has the times of its own weights where they were measured, else those of its architecture at its size with
    other weights, which are as good for time: `matched_by` says which.
    """
    rows: list[dict[str, Any]] = []
    used: set[str] = set()
    for network in networks:
        own = runs[network["role"], network["name"]]
        measured: list[tuple[_Subject, str | None]] = [
            (subject, own[subject.weights_sha256]) for subject in bench.subjects if subject.weights_sha256 in own
        ]
        if not measured:
            measured = [(subject, None) for subject in bench.subjects if _alike(subject, network)]
        for subject, run in measured:
            used.add(subject.name)
            rows.append(_row(bench, subject, network, run))
    device = (bench.device and bench.device.name) or bench.environment.cpu
    return {
        "created": bench.created,
        "command": bench.command,
        "device": device,
        "threads": bench.environment.threads,
        "interrupted": bench.interrupted,
        "rows": rows,
        "of_other_networks": [subject.name for subject in bench.subjects if subject.name not in used],
    }


def _alike(subject: _Subject, network: Mapping[str, Any]) -> bool:
    return (subject.architecture, subject.complexity.size) == (network["architecture"], network["size"])


def _row(bench: Bench, subject: _Subject, network: Mapping[str, Any], run: str | None) -> dict[str, Any]:
    ratio = next((ratio for ratio in bench.ratios if ratio.subject == subject.name), None)
    stock = "stock export, " if subject.role == "peer" else ""
    provider = f" on {subject.provider}" if subject.provider not in (None, "cpu") else ""
    return {
        **{key: network[key] for key in ("role", "name", "label", "architecture", "parameters", "macs", "size")},
        "subject": subject.name,
        "runtime": f"{stock}{subject.runtime}{provider}, {subject.precision}",
        "p50_ms": subject.latency.p50_ms,
        "p50_interval_ms": list(subject.latency.p50_interval_ms),
        "p90_ms": subject.latency.p90_ms,
        "teacher_over_student": ratio.model_dump(mode="json") if ratio else None,
        "matched_by": "architecture" if run is None else "weights",
        "run": run,
        "verdict": subject.validity.verdict,
        "reasons": list(subject.validity.reasons),
    }
