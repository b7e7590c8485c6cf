"""The network with eight-bit ranges and weights that were trained: one graph, from which every int8 target is made.

A student that went through `dspkd distill --stage qat` has, beside its float weights, a file with the weights and
scales of its fake-quantised graph. ExecuTorch programs and ONNX models are both lowered from that one graph, so they
share its scales.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from dspkd.errors import MissingDependencyError, VerificationError
from dspkd.quiet import quiet_libraries
from dspkd.student import read_quantised
from dspkd_export.deploy_module import DeployModule
from dspkd_export.job import ExportJob

__all__ = ["fake_quantised", "int8_graph_of", "load_graph_state", "observe_ranges", "xnnpack_quantiser"]

QUANTISER = "XNNPACK symmetric, weights per channel"


def xnnpack_quantiser(*, trainable: bool = False) -> Any:
    """Where XNNPACK computes in eight bits, and how. MissingDependencyError without executorch."""
    try:
        with quiet_libraries():
            from executorch.backends.xnnpack.quantizer.xnnpack_quantizer import (
                XNNPACKQuantizer,
                get_symmetric_quantization_config,
            )
    except ModuleNotFoundError as error:
        raise MissingDependencyError(
            f"int8 for ExecuTorch needs {error.name}", hint="pip install 'dspkd[executorch]'"
        ) from error
    return XNNPACKQuantizer().set_global(get_symmetric_quantization_config(is_per_channel=True, is_qat=trainable))


def fake_quantised(module: DeployModule, example: Tensor) -> Any:
    """A deployed network, batch dynamic, with fake quantisation (PT2E) wherever XNNPACK computes in eight bits: weights
    symmetric per channel, activations affine per tensor, tensors that are concatenated on one scale. Its parameters can
    be trained; its ranges must be observed or loaded first.

    `example` is an input of at least two images. MissingDependencyError without executorch.
    """
    quantiser = xnnpack_quantiser(trainable=True)
    with quiet_libraries():
        from torchao.quantization.pt2e.quantize_pt2e import prepare_qat_pt2e

        exported = torch.export.export(
            module,
            (example,),
            dynamic_shapes=({0: torch.export.Dim("batch", min=1, max=4096)},),
            strict=False,
        )
        return prepare_qat_pt2e(exported.module(check_guards=False), quantiser)


def observe_ranges(graph: nn.Module, wanted: bool) -> None:
    """Whether ranges go on following what passes through, or stay as they are."""
    for module in graph.modules():
        enabled = getattr(module, "observer_enabled", None)
        if isinstance(enabled, Tensor):
            enabled.fill_(int(wanted))


def int8_graph_of(job: ExportJob) -> Any:
    """The trained eight-bit graph of a job whose student has one: explicit quantize and dequantize operators, ready to
    be exported.

    Raises VerificationError if the stored weights and scales do not fit the graph, as after a change of torch or
    torchao.
    """
    with quiet_libraries():
        from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e

    student = job.student
    graph, state = fake_quantised(job.module(), job.example(2)), read_quantised(student)
    # The job's own: a model that takes bytes normalises them with other numbers.
    state.update({name: buffer for name, buffer in graph.named_buffers() if name in ("mean", "std")})
    try:
        load_graph_state(graph, state)
    except RuntimeError as error:
        made_with = {k: v for k, v in (student.card.quantised or {})["tools"].items() if k in ("torch", "torchao")}
        raise VerificationError(
            f"the eight-bit weights in {student.path} do not fit the graph that this torch makes: "
            f"{str(error).splitlines()[-1].strip()}",
            hint=f"use the versions that they were made with ({made_with}), or repeat --stage qat",
        ) from error
    with quiet_libraries():
        return convert_pt2e(graph)


def load_graph_state(graph: nn.Module, state: dict[str, Tensor]) -> None:
    """Weights and ranges of an earlier graph of the same network. RuntimeError if they do not fit."""
    # A graph that has seen no image has ranges of no or of another length.
    for name, buffer in graph.named_buffers():
        stored = state.get(name)
        if stored is not None and stored.shape != buffer.shape and name.rpartition(".")[2] in _RANGES:
            buffer.data = torch.empty_like(stored)
    graph.load_state_dict(state)


_RANGES = ("scale", "zero_point", "min_val", "max_val")
