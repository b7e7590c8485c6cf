"""ExecuTorch with XNNPACK: a .pte program for batch 1."""

from __future__ import annotations

import contextlib
import io
import warnings
from pathlib import Path
from typing import Any

import torch

from dspkd.errors import MissingDependencyError
from dspkd.quiet import quiet_native_code
from dspkd.student import Student

__all__ = ["compile_executorch"]


def compile_executorch(student: Student, folder: Path, precision: str) -> dict[str, Any]:
    """Write model.pte into `folder`. Returns details for the manifest, the number of delegates among them."""
    try:
        with quiet_native_code():
            from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
            from executorch.devtools.backend_debug import get_delegation_info
            from executorch.exir import to_edge_transform_and_lower
    except ModuleNotFoundError as error:
        raise MissingDependencyError(
            f"ExecuTorch export needs {error.name}", hint="pip install 'dspkd[executorch]'"
        ) from error
    from dspkd_export.deploy_module import deploy_module

    size = student.card.preprocess.size
    module = deploy_module(student)
    with quiet_native_code(), warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        exported = torch.export.export(module, (torch.zeros(1, 3, size, size),), strict=False)
        lowered = to_edge_transform_and_lower(exported, partitioner=[XnnpackPartitioner()])
        info = get_delegation_info(lowered.exported_program().graph_module)
        program = lowered.to_executorch()
    (folder / "model.pte").write_bytes(program.buffer)
    return {
        "backend": "XNNPACK",
        "delegates": int(info.num_delegated_subgraphs),
        "delegated_nodes": int(info.num_delegated_nodes),
        "nodes_outside": int(info.num_non_delegated_nodes),
    }
