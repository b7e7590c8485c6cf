"""ExecuTorch with XNNPACK: a .pte program for batch 1."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from dspkd.errors import MissingDependencyError
from dspkd.quiet import quiet_libraries
from dspkd.runtimes import load_model
from dspkd_export.deploy_module import DeployModule
from dspkd_export.job import Compiled, ExportJob
from dspkd_export.live_channels import Widths
from dspkd_export.quantised_graph import int8_graph_of, xnnpack_quantiser

__all__ = [
    "MODEL_FILE",
    "HalfInside",
    "compile_executorch",
    "delegation_details",
    "quantised_by",
    "turn_before_quantising",
]

MODEL_FILE = "model.pte"
# XNNPACK takes a narrower and slower kernel for a float convolution when that computes fewer channels for nothing: for
# 116 and 232 channels on x86-64, with AVX2, in twice the time of 128 and 240.
FLOAT_WIDTHS = Widths(inner=16, outputs=16)


def compile_executorch(job: ExportJob) -> Compiled:
    """Write model.pte into the job's folder. The number of delegates is among the details."""
    try:
        with quiet_libraries():
            from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
            from executorch.exir import to_edge_transform_and_lower
    except ModuleNotFoundError as error:
        raise MissingDependencyError(
            f"ExecuTorch export needs {error.name}", hint="pip install 'dspkd[executorch]'"
        ) from error

    example = (job.example(1),)
    module: nn.Module
    if job.precision == "int8":
        module = int8_graph_of(job) if job.trained_int8 else job.module()
    else:
        module = job.module(FLOAT_WIDTHS)
        if job.precision == "fp16":
            module = HalfInside(module).eval()
    calibration = job.calibration_input() if job.precision == "int8" and not job.trained_int8 else None
    with quiet_libraries():
        if job.trained_int8:
            turn_before_quantising(module)
        exported = torch.export.export(module, example, strict=False)
        if calibration is not None:
            quantised = quantised_by(
                xnnpack_quantiser(), exported.module(check_guards=False), torch.from_numpy(calibration)
            )
            turn_before_quantising(quantised)
            exported = torch.export.export(quantised, example, strict=False)
        lowered = to_edge_transform_and_lower(exported, partitioner=[XnnpackPartitioner()])
        details = delegation_details("XNNPACK", lowered)
        program = lowered.to_executorch()
    (job.folder / MODEL_FILE).write_bytes(program.buffer)
    if job.trained_int8:
        details["trained_int8"] = True
    elif job.precision == "int8":
        details["quantisation"] = {
            "activations": "int8, affine, range from a histogram",
            "weights": "int8, symmetric, per channel",
        }
    return Compiled((MODEL_FILE,), details, loaded={MODEL_FILE: load_model("executorch", job.folder / MODEL_FILE)})


def delegation_details(backend: str, lowered: Any) -> dict[str, Any]:
    """What of a lowered program (`EdgeProgramManager`) its backend takes, and what is left to the CPU.

    Read before `to_executorch`, which adds nodes of its own.
    """
    from executorch.devtools.backend_debug import get_delegation_info

    graph = lowered.exported_program().graph_module
    info = get_delegation_info(graph)
    return {
        "backend": backend,
        "delegates": int(info.num_delegated_subgraphs),
        "delegated_nodes": int(info.num_delegated_nodes),
        "nodes_outside": int(info.num_non_delegated_nodes),
        "outside": _nodes_outside(graph),
    }


class HalfInside(nn.Module):
    """float32 at both ends and in the softmax, half precision between."""

    def __init__(self, module: DeployModule) -> None:
        super().__init__()
        self.half_module = module.half()
        self.half_module.gives_logits = True

    def forward(self, image: Tensor) -> Tensor:
        logits = self.half_module(image.half() if image.is_floating_point() else image).float()
        return self.half_module.probabilities(logits)


def quantised_by(quantizer: Any, graph: Any, images: Tensor) -> Any:
    """`graph` after post-training quantisation (PT2E) as `quantizer` annotates it, with ranges from `images`, one after
    the other. The result runs in PyTorch, which computes in float32 between the roundings.
    """
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e

    prepared = prepare_pt2e(graph, quantizer)
    with torch.no_grad():
        for image in images:
            prepared(image[None])
    return convert_pt2e(prepared)


def turn_before_quantising(graph: Any) -> None:
    """Let the picture become NHWC, as XNNPACK convolves it, while it is still float32. In place; nothing else changes.

    Left to itself the lowering turns it after it was quantised, and XNNPACK takes three times as long to move its bytes
    as its floats (0.12 and 0.04 ms of 1.5 for 224 px on an AMD EPYC).
    """
    quantise = torch.ops.quantized_decomposed.quantize_per_tensor.default
    for node in graph.graph.nodes:
        if node.op != "call_function" or node.target != quantise:
            continue
        picture = node.args[0]
        value = picture.meta.get("val")
        if value is not None and value.ndim == 4 and value.shape[1] == 3:
            with graph.graph.inserting_before(node):
                turned = graph.graph.call_function(
                    torch.ops.aten._to_copy.default, (picture,), {"memory_format": torch.channels_last}
                )
            node.replace_input_with(picture, turned)
            graph.recompile()
        # What is quantised first is the picture, or the network reads it in a way of its own.
        return


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
