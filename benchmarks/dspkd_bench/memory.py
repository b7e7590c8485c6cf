"""Peak memory of one subject, measured in a process of its own: `python -m dspkd_bench.memory FOLDER THREADS`.

The peak resident set is the operating system's (VmHWM on Linux); the increase is that peak less the resident set once the
runtime's libraries are imported, since those are the host language's price and not the model's.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

__all__ = ["measure_memory"]

RUNS = 3


def measure_memory(folder: Path, *, threads: int, timeout_s: float = 300.0) -> dict[str, Any] | None:
    """{"peak_rss_mib", "increase_mib"} of loading `folder` and running it three times; None where /proc is not to be had."""
    if not Path("/proc/self/status").exists():
        return None
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    done = subprocess.run(
        [sys.executable, "-m", "dspkd_bench.memory", str(folder), str(threads)],
        capture_output=True,
        text=True,
        timeout=timeout_s,
        env=environment,
        check=False,
    )
    try:
        result: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    except (IndexError, ValueError):
        return None
    return result


def _status_mib(field: str) -> float:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) / 1024
    raise KeyError(field)


def _main(folder: Path, threads: int) -> None:
    import numpy as np

    import dspkd_bench.subjects
    from dspkd.artifact import is_artifact_dir, load_artifact

    target = load_artifact(folder).card.target if is_artifact_dir(folder) else "pytorch"
    if target == "onnx":
        import onnxruntime  # noqa: F401
    else:
        import torch

        import dspkd.student  # noqa: F401

        torch.zeros(1)
    if target == "executorch":
        from executorch.extension.pybindings import portable_lib  # noqa: F401
    before = _status_mib("VmRSS")
    subject = dspkd_bench.subjects.open_subject(folder, threads=threads)
    for _ in range(RUNS):
        subject.run(np.zeros((1, 3, subject.size, subject.size), dtype=np.float32))
    peak = _status_mib("VmHWM")
    print(json.dumps({"peak_rss_mib": round(peak, 1), "increase_mib": round(max(0.0, peak - before), 1)}))


if __name__ == "__main__":
    _main(Path(sys.argv[1]), int(sys.argv[2]))
