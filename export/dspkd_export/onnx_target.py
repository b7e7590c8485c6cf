"""ONNX: one file with a named dynamic batch, one with the static shape 1x3xHxW."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

import dspkd
from dspkd.errors import MissingDependencyError, VerificationError
from dspkd.preprocess import Preprocess
from dspkd.quiet import quiet_libraries
from dspkd.runtimes import load_model
from dspkd_export.golden import describe_model
from dspkd_export.job import Compiled, ExportJob
from dspkd_export.live_channels import Widths
from dspkd_export.qdq_graph import fuse_friendly
from dspkd_export.quantised_graph import int8_graph_of

__all__ = ["STATIC_FILE", "SYMMETRIC_PERCENTILE", "build_onnx", "compile_onnx", "metadata_of", "onnx_metadata"]

OPSET = 20
STATIC_FILE = "model_static.onnx"
CALIBRATION_BATCH = 16
# ONNX Runtime's fast convolutions work on blocks of channels (8, or 16 with AVX-512), depthwise ones on whole blocks
# alone. What a branch gives is sliced, so there it would bring nothing.
WIDTHS = Widths(inner=16)
# The operators of convolutional networks for which eight bits pay. Softmax and what follows it stay in float.
INT8_OPERATORS = [
    "Conv", "Gemm", "MatMul", "Add", "Mul", "Concat", "Slice", "Split", "MaxPool", "AveragePool",
    "GlobalAveragePool", "ReduceMean", "Relu", "Clip",
]  # fmt: skip
ASYMMETRIC: dict[str, Any] = {"op_types_to_quantize": INT8_OPERATORS, "extra_options": {"WeightSymmetric": True}}
# Where TensorRT's documentation wants them: at the inputs of the layers with weights and nowhere else, so that it can
# still fuse what follows a layer. After a ReLU half of a symmetric range is never used; cutting outliers makes up for
# it.
WEIGHTED_OPERATORS = ["Conv", "Gemm", "MatMul"]
SYMMETRIC_PERCENTILE = 99.99
SYMMETRIC: dict[str, Any] = {
    "op_types_to_quantize": WEIGHTED_OPERATORS,
    "extra_options": {
        "WeightSymmetric": True,
        "ActivationSymmetric": True,
        "QuantizeBias": False,
        "OpTypesToExcludeOutputQuantization": WEIGHTED_OPERATORS,
        "CalibPercentile": SYMMETRIC_PERCENTILE,
        # Histograms after each batch: otherwise every activation of every image is kept until the end.
        "CalibStridedMinMax": 1,
    },
}


def onnx_metadata(classes: tuple[str, ...], preprocess: Preprocess, *, takes_bytes: bool = False) -> dict[str, str]:
    """What is written into the model itself, so that the file alone still says what its numbers mean."""
    return {
        **{f"dspkd.{key}": text for key, text in describe_model(classes, preprocess).items()},
        "dspkd.input": f"{'uint8 NHWC RGB' if takes_bytes else 'float32 NCHW RGB in [0, 1]'}; "
        "normalisation is inside the graph",
        "dspkd.version": dspkd.__version__,
    }


def compile_onnx(job: ExportJob) -> Compiled:
    """Write model.onnx (dynamic batch) and model_static.onnx into the job's folder."""
    nodes = 0
    for name, dynamic in (("model.onnx", True), (STATIC_FILE, False)):
        model = build_onnx(job, dynamic=dynamic)
        (job.folder / name).write_bytes(model.SerializeToString(deterministic=True))
        nodes = len(model.graph.node)
    models = ("model.onnx", STATIC_FILE)
    return Compiled(
        models,
        {"opset": OPSET, "nodes": nodes, "dynamic_batch": True, "static_file": STATIC_FILE} | _quantisation(job),
        loaded={name: load_model("onnx", job.folder / name) for name in models},
    )


def _quantisation(job: ExportJob) -> dict[str, Any]:
    if job.precision != "int8":
        return {}
    if job.trained_int8:
        return {"trained_int8": True}
    activations = "uint8, affine, smallest and largest value"
    return {"quantisation": {"activations": activations, "weights": "int8, symmetric, per channel"}}


def build_onnx(job: ExportJob, *, dynamic: bool, opset: int = OPSET, symmetric: bool = False) -> Any:
    """The ModelProto of a job, at its precision, complete with metadata and checked.

    `dynamic`: the batch is named, otherwise 1. `symmetric`: int8 activations with zero point 0 and bias in float, as
    TensorRT asks for. MissingDependencyError without onnx and onnxscript.
    """
    try:
        import onnx
        import onnxscript  # noqa: F401  torch's exporter needs it
    except ModuleNotFoundError as error:
        raise MissingDependencyError(f"ONNX export needs {error.name}", hint="pip install 'dspkd[onnx]'") from error
    # The trained scales have zero points, which a symmetric model must not have.
    trained = job.trained_int8 and not symmetric
    # Two images: with one, torch.export may take the batch for the constant 1.
    example = job.example(2 if dynamic else 1)
    # TensorRT lays channels out by itself, and trained scales belong to the graph that they were trained in.
    module = int8_graph_of(job) if trained else job.module(None if symmetric else WIDTHS)
    model = _quietly_export(module, example, dynamic, opset).model_proto
    if trained:
        model = fuse_friendly(model)
    if job.precision == "fp16":
        model = _to_half(model)
    if job.precision == "int8" and not trained:
        batch = CALIBRATION_BATCH if dynamic else 1
        model = _quantise(model, job.calibration_input(), batch=batch, symmetric=symmetric)
    onnx.helper.set_model_props(
        model, onnx_metadata(job.student.card.classes, job.student.card.preprocess, takes_bytes=job.takes_bytes)
    )
    model.producer_name, model.producer_version = "dspkd", dspkd.__version__
    _forget_where_it_was_made(model)
    onnx.checker.check_model(model)
    return model


def _quietly_export(module: torch.nn.Module, example: torch.Tensor, dynamic: bool, opset: int) -> Any:
    shapes = ({0: torch.export.Dim("batch", min=1, max=4096)},) if dynamic else None
    with quiet_libraries():
        return torch.onnx.export(
            module,
            (example,),
            dynamo=True,
            opset_version=opset,
            input_names=["image"],
            output_names=["probabilities"],
            dynamic_shapes=shapes,
            external_data=False,
            optimize=True,
            verbose=False,
        )


def _to_half(model: Any) -> Any:
    """float16 weights and arithmetic, float32 at both ends and in the softmax."""
    import onnx_ir
    from onnxruntime.transformers.float16 import DEFAULT_OP_BLOCK_LIST, convert_float_to_float16

    with quiet_libraries():
        half = convert_float_to_float16(
            model, keep_io_types=True, op_block_list=[*DEFAULT_OP_BLOCK_LIST, "Softmax", "Sub", "Div"]
        )
    # The converter appends its casts at the end of the graph.
    sorted_model = onnx_ir.from_proto(half)
    sorted_model.graph.sort()
    return onnx_ir.to_proto(sorted_model)


def _quantise(model: Any, images: np.ndarray, *, batch: int, symmetric: bool) -> Any:
    """Explicit QuantizeLinear/DequantizeLinear pairs: weights int8 per channel, activations uint8 (int8 if `symmetric`)
    with ranges from `images` (N, 3, H, W).
    """
    import onnx
    from onnxruntime.quantization import (
        CalibrationDataReader,
        CalibrationMethod,
        QuantFormat,
        QuantType,
        quantize_static,
    )

    class Reader(CalibrationDataReader):
        def __init__(self) -> None:
            self.set_range(0, len(self))

        def __len__(self) -> int:
            return -(-len(images) // batch)

        def set_range(self, start_index: int, end_index: int) -> None:
            starts = range(start_index * batch, min(end_index * batch, len(images)), batch)
            self.batches = iter([{"image": images[i : i + batch]} for i in starts])

        def get_next(self) -> Any:
            return next(self.batches, None)

    with tempfile.TemporaryDirectory() as temporary, quiet_libraries():
        target = Path(temporary) / "int8.onnx"
        quantize_static(
            model,
            str(target),
            Reader(),
            quant_format=QuantFormat.QDQ,
            per_channel=True,
            activation_type=QuantType.QInt8 if symmetric else QuantType.QUInt8,
            calibrate_method=CalibrationMethod.Percentile if symmetric else CalibrationMethod.MinMax,
            weight_type=QuantType.QInt8,
            **(SYMMETRIC if symmetric else ASYMMETRIC),
        )
        return onnx.load(str(target))


def _forget_where_it_was_made(model: Any) -> None:
    """The exporter notes source lines and paths of this machine at every node; a model that is shared must not
    carry them.
    """
    model.doc_string = ""
    for node in model.graph.node:
        node.doc_string = ""
        del node.metadata_props[:]
    for value in (*model.graph.input, *model.graph.output, *model.graph.value_info, *model.graph.initializer):
        value.doc_string = ""
        del value.metadata_props[:]
    del model.graph.metadata_props[:]


def metadata_of(path: Path) -> dict[str, str]:
    """metadata_props of a model file, read without running it. VerificationError if it is no ONNX model."""
    try:
        import onnx
    except ModuleNotFoundError as error:
        raise MissingDependencyError(
            "checking an ONNX artifact needs onnx", hint="pip install 'dspkd[onnx]'"
        ) from error
    try:
        model = onnx.load(str(path), load_external_data=False)
    except Exception as error:  # protobuf's DecodeError derives from nothing but Exception
        raise VerificationError(f"{path} cannot be read as an ONNX model: {error}", hint="export again") from error
    return {entry.key: entry.value for entry in model.metadata_props}
