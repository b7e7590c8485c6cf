"""What the operators of ExecuTorch programs take, one by one, as XNNPACK itself measures them.

Warm: the program runs again and again. Cold: before every call 64 MB of other memory are gone through, so that neither
weights nor activations are in a cache, as with a device that does something else in between.
"""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dspkd.quiet import quiet_libraries

__all__ = ["operator_table", "operator_times"]

RUNS = 100
OTHER_MEMORY = np.zeros(8_000_000)
# They only hold others.
OUTER = ("Method::execute", "DELEGATE_CALL", "OPERATOR_CALL")


def operator_times(program: Path, image: np.ndarray, *, cold: bool) -> dict[str, tuple[int, float]]:
    """{kind of operator: (how many, milliseconds of all of them in one call)}, the median of each over 100 calls.

    `image` float32 (1, 3, H, W). One thread, if the pool of this process has one.
    """
    with quiet_libraries(), tempfile.TemporaryDirectory() as folder:
        from executorch.devtools import Inspector
        from executorch.extension.pybindings import portable_lib

        module = portable_lib._load_for_executorch(str(program), enable_etdump=True)
        for _ in range(RUNS):
            if cold:
                np.add(OTHER_MEMORY, 1.0, out=OTHER_MEMORY)
            module.forward((torch.from_numpy(image),))
        dump = Path(folder) / "dump.etdp"
        module.write_etdump_result_to_file(str(dump))
        blocks: list[Any] = Inspector(etdump_path=str(dump)).event_blocks
    counts: Counter[str] = Counter()
    times: Counter[str] = Counter()
    for event in (event for block in blocks for event in block.events):
        # What happens only while the program is loaded has been seen once.
        if event.name not in OUTER and event.perf_data is not None and len(event.perf_data.raw) == RUNS:
            kind = event.name.partition(" #")[0]
            counts[kind] += 1
            times[kind] += float(np.median(event.perf_data.raw))
    return {kind: (counts[kind], ms) for kind, ms in times.most_common()}


def operator_table(programs: Mapping[str, Path], image: np.ndarray) -> str:
    """Markdown: a row for each kind of operator, two columns, warm and cold, for each program."""
    columns = {
        (name, state): operator_times(file, image, cold=state == "cold")
        for name, file in programs.items()
        for state in ("warm", "cold")
    }
    kinds = dict.fromkeys(kind for found in columns.values() for kind in found)
    lines = [
        "| operator | " + " | ".join(f"{name}, {state}, ms" for name, state in columns) + " |",
        "|---|" + "---|" * len(columns),
    ]
    for kind in kinds:
        cells = (f"{found[kind][1]:.3f} ({found[kind][0]})" if kind in found else "" for found in columns.values())
        lines.append(f"| {kind} | {' | '.join(cells)} |")
    sums = (f"{sum(ms for _, ms in found.values()):.3f}" for found in columns.values())
    return "\n".join([*lines, f"| all | {' | '.join(sums)} |"])
