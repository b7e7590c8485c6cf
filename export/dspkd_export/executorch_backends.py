"""ExecuTorch for other processors than the CPU's XNNPACK: phone GPUs, Apple devices, Intel, Arm Ethos-U.

One .pte program for batch 1 each, the same bytes for the same versions of the packages unless its function below says
otherwise. Only OpenVINO's runs where it is compiled; for the others a stand-in, the graph before lowering in PyTorch,
shows what precision and graph cost, and nothing about the processor's own kernels.
"""

from __future__ import annotations

import csv
import os
import tempfile
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from dspkd.errors import MissingDependencyError, UsageError
from dspkd.quiet import quiet_libraries
from dspkd.runtimes import LoadedModel, load_model
from dspkd_export.executorch_target import MODEL_FILE, HalfInside, delegation_details, quantised_by
from dspkd_export.job import Compiled, ExportJob, Target

__all__ = [
    "BACKENDS",
    "ETHOS_U",
    "compile_executorch_coreml",
    "compile_executorch_ethos_u",
    "compile_executorch_openvino",
    "compile_executorch_vulkan",
]

ETHOS_U = ("ethos-u55-128", "ethos-u55-256", "ethos-u65-256", "ethos-u85-256")
"""Accelerators, with their multiply-accumulates a cycle, as Vela names them."""


def compile_executorch_vulkan(job: ExportJob) -> Compiled:
    """Write model.pte for a GPU with Vulkan. fp16 computes in half precision between a float32 input and output.

    Raises MissingDependencyError without ExecuTorch.
    """
    try:
        with quiet_libraries():
            from executorch.backends.vulkan.partitioner.vulkan_partitioner import VulkanPartitioner
            from executorch.exir import to_edge_transform_and_lower
    except ModuleNotFoundError as error:
        raise _missing("Vulkan", "executorch", error) from error

    with quiet_libraries():
        exported = _exported(job)
        options = {"force_fp16": True} if job.precision == "fp16" else {}
        lowered = to_edge_transform_and_lower(exported, partitioner=[VulkanPartitioner(options)])
        details = _write(job, "Vulkan", lowered)
    return Compiled(
        (MODEL_FILE,),
        details,
        not_run="the Vulkan backend runs on a GPU, such as an Android phone's; it has not been run",
        stand_in={MODEL_FILE: _float_stand_in(job, exported)},
    )


def compile_executorch_coreml(job: ExportJob) -> Compiled:
    """Write model.pte for Core ML on Apple devices. fp16 computes in half precision between a float32 input and output.

    Core ML draws a new identifier for every model, so two exports differ in it. Raises MissingDependencyError without
    coremltools, which ExecuTorch brings along on macOS and on x86-64 Linux.
    """
    try:
        with quiet_libraries():
            import coremltools
            from executorch.backends.apple.coreml.compiler import CoreMLBackend
            from executorch.backends.apple.coreml.partition import CoreMLPartitioner
            from executorch.exir import to_edge_transform_and_lower
    except ModuleNotFoundError as error:
        raise _missing("Core ML", "executorch", error) from error

    if job.takes_bytes:
        raise UsageError("ExecuTorch's Core ML backend does not take uint8 input", hint="export it with float32 input")
    precision = coremltools.precision.FLOAT16 if job.precision == "fp16" else coremltools.precision.FLOAT32
    with quiet_libraries():
        exported = _exported(job)
        specs = CoreMLBackend.generate_compile_specs(compute_precision=precision)
        lowered = to_edge_transform_and_lower(exported, partitioner=[CoreMLPartitioner(compile_specs=specs)])
        details = _write(job, "Core ML", lowered)
    return Compiled(
        (MODEL_FILE,),
        details,
        not_run="the Core ML backend runs on Apple devices; it has not been run",
        stand_in={MODEL_FILE: _float_stand_in(job, exported)},
    )


def compile_executorch_openvino(job: ExportJob) -> Compiled:
    """Write model.pte for OpenVINO on the CPU, and run it here.

    ExecuTorch imports the model without any setting, so the CPU's default arithmetic applies, for fp32 too: bf16 where
    the CPU has it. Which it is here stands in the runtime's name and in details["arithmetic"]. The environment variable
    ONEDNN_MAX_CPU_ISA=AVX512_CORE_VNNI keeps OpenVINO to float32.

    The first export of a process gives the same bytes in every process; a later one differs in the names of nodes,
    which OpenVINO numbers through. int8 is quantised by NNCF. Raises MissingDependencyError without openvino or nncf.
    """
    # Otherwise NNCF reports its use to its maker, without asking, as soon as it is imported.
    os.environ.setdefault("NNCF_CI", "1")
    try:
        with quiet_libraries():
            import nncf  # noqa: F401  the partitioner's package imports it
            import openvino
            from executorch.backends.openvino.partitioner import OpenvinoPartitioner
            from executorch.backends.openvino.quantizer import QuantizationMode, quantize_model
            from executorch.exir import to_edge_transform_and_lower
            from executorch.exir.backend.backend_details import CompileSpec
    except ModuleNotFoundError as error:
        raise _missing("OpenVINO", "openvino", error) from error

    calibration = torch.from_numpy(job.calibration_input()) if job.precision == "int8" else None
    with quiet_libraries():
        exported = _exported(job)
        if calibration is not None:
            graph = quantize_model(
                exported.module(check_guards=False),
                calibration_dataset=[image[None] for image in calibration],
                mode=QuantizationMode.INT8_SYM,
                subset_size=len(calibration),
            )
            exported = _exported(job, graph)
        partitioner = OpenvinoPartitioner([CompileSpec("device", b"CPU")])
        lowered = to_edge_transform_and_lower(exported, partitioner=[partitioner])
        details = _write(job, "OpenVINO", lowered)
        arithmetic = openvino.Core().get_property("CPU", "INFERENCE_PRECISION_HINT").get_type_name()
        loaded = load_model("executorch-openvino", job.folder / MODEL_FILE)
    return Compiled(
        (MODEL_FILE,),
        {**details, "device": "CPU", "arithmetic": arithmetic},
        loaded={MODEL_FILE: loaded},
    )


def compile_executorch_ethos_u(job: ExportJob, accelerator: str) -> Compiled:
    """Write model.pte for an Arm Ethos-U (one of ETHOS_U), which computes in int8 only.

    details["cycle_model"] is what Vela, the compiler of these processors, expects an inference to cost: an estimate
    that depends on nothing but the graph, and no measurement. It is there if the whole network is one delegate.
    Raises MissingDependencyError without Vela or TOSA's serializer.
    """
    try:
        with quiet_libraries():
            import ethosu.vela  # noqa: F401  the backend notices its absence only when it compiles
            import tosa_serializer  # noqa: F401  as above
            from executorch.backends.arm.ethosu import EthosUCompileSpec, EthosUPartitioner
            from executorch.backends.arm.quantizer import EthosUQuantizer, get_symmetric_quantization_config
            from executorch.exir import to_edge_transform_and_lower
    except ModuleNotFoundError as error:
        raise _missing("Ethos-U", "ethos-u", error) from error

    calibration = torch.from_numpy(job.calibration_input())
    with quiet_libraries(), tempfile.TemporaryDirectory() as intermediates:
        # Vela writes its cycle model beside the other intermediate files, which are otherwise gone when it returns.
        spec = EthosUCompileSpec(accelerator).dump_intermediate_artifacts_to(intermediates)
        quantizer = EthosUQuantizer(spec)
        quantizer.set_global(get_symmetric_quantization_config(is_per_channel=True))
        exported = _exported(job)
        graph = quantised_by(quantizer, exported.module(check_guards=False), calibration)
        lowered = to_edge_transform_and_lower(_exported(job, graph), partitioner=[EthosUPartitioner(spec)])
        _forget_intermediates(lowered, intermediates)
        details = _write(job, "Ethos-U", lowered)
        details["accelerator"] = accelerator
        if details["delegates"] == 1:  # each delegate overwrites the figures of the one before
            details["cycle_model"] = _cycle_model(Path(intermediates))
    return Compiled(
        (MODEL_FILE,),
        details,
        not_run=f"the Ethos-U backend runs on a microcontroller with {accelerator}; it has not been run",
        stand_in={MODEL_FILE: _in_pytorch(job, graph, "PyTorch PT2E, the graph before lowering")},
    )


def _missing(backend: str, extra: str, error: ModuleNotFoundError) -> MissingDependencyError:
    return MissingDependencyError(
        f"ExecuTorch export for {backend} needs {error.name}", hint=f"pip install 'dspkd[{extra}]'"
    )


def _exported(job: ExportJob, graph: nn.Module | None = None) -> Any:
    """The job's network, or what has been made of it, as a graph for one image."""
    return torch.export.export(graph or job.module(), (job.example(1),), strict=False)


def _write(job: ExportJob, backend: str, lowered: Any) -> dict[str, Any]:
    details = delegation_details(backend, lowered)
    (job.folder / MODEL_FILE).write_bytes(lowered.to_executorch().buffer)
    return details


def _float_stand_in(job: ExportJob, exported: Any) -> LoadedModel:
    """The backends halve the precision inside, when they lower: their graph alone would show nothing of it."""
    if job.precision == "fp16":
        return _in_pytorch(job, HalfInside(job.module()).eval(), "PyTorch, half precision inside")
    return _in_pytorch(job, exported.module(check_guards=False), "PyTorch, the graph before lowering")


def _in_pytorch(job: ExportJob, module: nn.Module, runtime: str) -> LoadedModel:
    @torch.no_grad()
    def run(images: np.ndarray) -> np.ndarray:
        # An exported graph has the batch of its example.
        return np.concatenate([module(torch.from_numpy(images[i : i + 1])).numpy() for i in range(len(images))])

    return LoadedModel(f"{runtime}, torch {torch.__version__}", run, dtype=job.dtype)


def _forget_intermediates(lowered: Any, folder: str) -> None:
    """Compile settings become part of the program; a temporary folder has no place in it."""
    from executorch.exir.lowered_backend_module import get_lowered_submodules

    for _, module, _ in get_lowered_submodules(lowered.exported_program().graph_module):
        module.compile_specs[:] = [spec for spec in module.compile_specs if spec.value != folder.encode()]


def _cycle_model(folder: Path) -> dict[str, Any]:
    """Vela's summary of one compiled network. Cycles count at `clock_hz`; traffic is what an inference moves."""
    (file,) = folder.glob("output/*_summary_*.csv")
    with file.open(newline="") as lines:
        (row,) = csv.DictReader(lines)
    areas = [area for area in ("sram", "dram", "on_chip_flash", "off_chip_flash") if float(row[f"{area}_memory_used"])]
    return {
        "tool": f"Vela {version('ethos-u-vela')}",
        "system_config": row["system_config"],
        "memory_mode": row["memory_mode"],
        "clock_hz": int(float(row["core_clock"])),
        "cycles": int(float(row["cycles_total"])),
        "npu_cycles": int(float(row["cycles_npu"])),
        "estimated_ms": round(float(row["inference_time"]) * 1e3, 6),
        "macs": int(float(row["nn_macs"])),
        # Vela states it in KiB.
        "memory_bytes": {area: int(float(row[f"{area}_memory_used"]) * 1024) for area in areas},
        "traffic_bytes": {area: int(float(row[f"{area}_total_bytes"])) for area in areas},
    }


BACKENDS: dict[str, Target] = {
    # int8 stops at Vulkan's depthwise convolution, which wants a multiple of four channels: the student has 58.
    "executorch-vulkan": Target(compile_executorch_vulkan, ("fp32", "fp16"), 1, ("executorch",)),
    "executorch-coreml": Target(compile_executorch_coreml, ("fp32", "fp16"), 1, ("executorch", "coremltools")),
    "executorch-openvino": Target(compile_executorch_openvino, ("fp32", "int8"), 1, ("executorch", "openvino", "nncf")),
    **{
        f"executorch-{accelerator}": Target(
            partial(compile_executorch_ethos_u, accelerator=accelerator),
            ("int8",),
            1,
            ("executorch", "torchao", "ethos-u-vela", "tosa-tools"),
        )
        for accelerator in ETHOS_U
    },
}
"""Targets by name."""
