"""Peak memory of one subject, in a process of its own: `python -m dspkd_bench.memory FOLDER THREADS PROVIDER`.

The peak resident set is the operating system's (VmHWM on Linux), of loading and of running three times. The
increases are over the resident set once the runtime's libraries are imported, since those are the host language's
price and not the model's: `increase_mib` at the peak, `resident_increase_mib` after the last run. Loading a PyTorch
model holds its weights twice for a moment, which belongs to the peak. Pages of libraries that are first touched by
a run are counted as the model's. `load_ms` and `first_inference_ms` are of the same fresh process: the cold start,
the imports left out.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from dspkd_bench.agent import memory_kib, reset_peak

__all__ = ["measure_memory", "memory_record"]

RUNS = 3


def measure_memory(
    folder: Path, *, threads: int, provider: str = "cpu", timeout_s: float = 300.0
) -> dict[str, Any] | None:
    """{"peak_rss_mib", "increase_mib", "resident_increase_mib", "load_ms", "first_inference_ms"}.

    None where it cannot be measured: no /proc (not Linux), or the process of its own fails or takes longer than
    `timeout_s`.
    """
    if not Path("/proc/self/status").exists():
        return None
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    try:
        done = subprocess.run(
            [sys.executable, "-m", "dspkd_bench.memory", str(folder), str(threads), provider],
            capture_output=True,
            text=True,
            timeout=timeout_s,
            env=environment,
            check=True,
        )
        result: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    except (OSError, subprocess.SubprocessError, IndexError, ValueError):
        return None
    return result


def memory_record(before_mib: float, peak_mib: float, resident_mib: float) -> dict[str, float]:
    """Resident sets after the imports, at the peak, and after the last run."""
    values = {
        "peak_rss_mib": peak_mib,
        "increase_mib": max(0.0, peak_mib - before_mib),
        "resident_increase_mib": max(0.0, resident_mib - before_mib),
    }
    return {name: round(value, 1) for name, value in values.items()}


def _status_mib(field: str) -> float:
    kib = memory_kib(field)
    if kib is None:
        raise KeyError(field)
    return kib / 1024


def _main(folder: Path, threads: int, provider: str) -> None:
    import numpy as np

    import dspkd_bench.subjects
    from dspkd.artifact import is_artifact_dir, load_artifact

    target = load_artifact(folder).card.target if is_artifact_dir(folder) else "pytorch"
    if target == "onnx":
        import onnxruntime  # noqa: F401
    elif target == "litert":
        import ai_edge_litert.interpreter  # noqa: F401
    else:
        import timm  # noqa: F401
        import torch
        import torchvision  # noqa: F401

        import dspkd.student  # noqa: F401

        torch.zeros(1)
    if target == "executorch":
        from executorch.extension.pybindings import portable_lib  # noqa: F401
    reset_peak()
    before = _status_mib("VmRSS")
    subject = dspkd_bench.subjects.open_subject(folder, threads=threads, provider=provider)
    image = subject.input_of(np.zeros((1, subject.size, subject.size, 3), dtype=np.uint8))
    started = time.perf_counter()
    subject.run(image)
    first_ms = (time.perf_counter() - started) * 1e3
    for _ in range(RUNS - 1):
        subject.run(image)
    peak = _status_mib("VmHWM")
    resident = _status_mib("VmRSS")
    values = memory_record(before, peak, resident)
    print(json.dumps({**values, "load_ms": subject.load_ms, "first_inference_ms": first_ms}))


if __name__ == "__main__":
    _main(Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3])
