"""ExecuTorch with XNNPACK: a .pte program for batch 1."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from dspkd.errors import MissingDependencyError
from dspkd.quiet import quiet_libraries
from dspkd.runtimes import load_model
from dspkd_export.job import Compiled, ExportJob

__all__ = ["compile_executorch"]


def compile_executorch(job: ExportJob) -> Compiled:
    """Write model.pte into the job's folder. The number of delegates is among the details."""
    try:
        with quiet_libraries():
            from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
            from executorch.devtools.backend_debug import get_delegation_info
            from executorch.exir import to_edge_transform_and_lower
    except ModuleNotFoundError as error:
        raise MissingDependencyError(
            f"ExecuTorch export needs {error.name}", hint="pip install 'dspkd[executorch]'"
        ) from error

    module: nn.Module = job.module()
    if job.precision == "fp16":
        module = _HalfInside(module).eval()
    calibration = job.calibration_input() if job.precision == "int8" else None
    example = (torch.zeros(1, 3, job.size, job.size),)
    with quiet_libraries():
        exported = torch.export.export(module, example, strict=False)
        if calibration is not None:
            quantised = _quantise(exported.module(check_guards=False), torch.from_numpy(calibration))
            exported = torch.export.export(quantised, example, strict=False)
        lowered = to_edge_transform_and_lower(exported, partitioner=[XnnpackPartitioner()])
        graph = lowered.exported_program().graph_module
        info, outside = get_delegation_info(graph), _nodes_outside(graph)
        program = lowered.to_executorch()
    (job.folder / "model.pte").write_bytes(program.buffer)
    details = {
        "backend": "XNNPACK",
        "delegates": int(info.num_delegated_subgraphs),
        "delegated_nodes": int(info.num_delegated_nodes),
        "nodes_outside": int(info.num_non_delegated_nodes),
        "outside": outside,
    }
    return Compiled(("model.pte",), details, loaded={"model.pte": load_model("executorch", job.folder / "model.pte")})


class _HalfInside(nn.Module):
    """float32 at both ends, half precision between."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module.half()

    def forward(self, image: Tensor) -> Tensor:
        return self.module(image.half()).float()


def _quantise(graph: Any, images: Tensor) -> Any:
    """Post-training quantisation (PT2E): symmetric, weights per channel, ranges from `images`."""
    from executorch.backends.xnnpack.quantizer.xnnpack_quantizer import (
        XNNPACKQuantizer,
        get_symmetric_quantization_config,
    )
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e

    quantizer = XNNPACKQuantizer().set_global(get_symmetric_quantization_config(is_per_channel=True))
    prepared = prepare_pt2e(graph, quantizer)
    with torch.no_grad():
        for image in images:
            prepared(image[None])
    return convert_pt2e(prepared)


def _nodes_outside(graph: Any) -> list[dict[str, str]]:
    """Operators that the CPU runs by itself, each with the line of model code that it comes from."""
    found = []
    for node in graph.graph.nodes:
        if (
            node.op != "call_function"
            or "executorch_call_delegate" in str(node.target)
            or "getitem" in str(node.target)
        ):
            continue
        trace = [line.strip() for line in (node.meta.get("stack_trace") or "").splitlines() if line.strip()]
        found.append({"operator": str(getattr(node.target, "_name", node.target)), "code": trace[-1] if trace else ""})
    return found
