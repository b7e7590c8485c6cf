"""Running a compiled model on its own runtime: what evaluation, certificates and the bench have in common.

Each loader gives a function from images, as the model takes them, to (N, K) float32 probabilities. The runtimes are
optional packages and are imported when a model is loaded.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np

from dspkd.errors import DeviceError, MissingDependencyError, VerificationError
from dspkd.quiet import quiet_libraries

__all__ = ["RUNTIMES", "LiteRTProgram", "LoadedModel", "first_line", "load_model", "open_litert", "to_input"]

Run = Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True, slots=True)
class LoadedModel:
    runtime: str
    """Name and version, e.g. `onnxruntime 1.32.0`."""
    run: Run
    batch: int = 32
    """Images a call that suit it. More for a device far away, where each call is a round trip."""
    dtype: str = "float32"
    """Of its input: float32 in [0, 1], or uint8 (N, H, W, 3)."""
    layout: str = "NCHW"
    """Of float32 input: (N, 3, H, W), or NHWC."""

    def input_of(self, pixels: np.ndarray) -> np.ndarray:
        """uint8 pixels (N, H, W, 3) as `run` takes them."""
        return to_input(pixels, self.dtype, self.layout)

    def answer(self, pixels: np.ndarray) -> np.ndarray:
        """uint8 pixels (N, H, W, 3) -> probabilities (N, K)."""
        return self.run(self.input_of(pixels))


def to_input(pixels: np.ndarray, dtype: str = "float32", layout: str = "NCHW") -> np.ndarray:
    """uint8 (N, H, W, 3) -> float32 in [0, 1], (N, 3, H, W) or NHWC as `layout` says, or as it is for a model that
    takes uint8; contiguous.
    """
    if dtype == "uint8":
        return np.ascontiguousarray(pixels)
    turned = pixels if layout == "NHWC" else pixels.transpose(0, 3, 1, 2)
    return np.ascontiguousarray(turned, dtype=np.float32) / np.float32(255.0)


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "unknown"


def _load_onnx(path: Path, threads: int) -> LoadedModel:
    try:
        import onnxruntime
    except ModuleNotFoundError as error:
        raise MissingDependencyError(
            "running an ONNX artifact needs onnxruntime", hint="pip install 'dspkd[onnx]'"
        ) from error
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])

    def run(images: np.ndarray) -> np.ndarray:
        return session.run(["probabilities"], {"image": images})[0]

    def one_by_one(images: np.ndarray) -> np.ndarray:
        return np.concatenate([run(images[i : i + 1]) for i in range(len(images))])

    (image,) = session.get_inputs()
    return LoadedModel(
        f"onnxruntime {_version('onnxruntime')}",
        one_by_one if image.shape[0] == 1 else run,
        dtype="uint8" if image.type == "tensor(uint8)" else "float32",
    )


def _load_executorch(path: Path, threads: int) -> LoadedModel:
    try:
        import torch

        with quiet_libraries():
            from executorch.extension.pybindings import portable_lib
    except ModuleNotFoundError as error:
        raise MissingDependencyError(
            "running an ExecuTorch artifact needs executorch", hint="pip install 'dspkd[executorch]'"
        ) from error
    with quiet_libraries():
        # XNNPACK takes the size of the thread pool when a program is loaded.
        portable_lib._unsafe_reset_threadpool(threads)
    module = portable_lib._load_for_executorch(str(path))

    def run(images: np.ndarray) -> np.ndarray:
        # The runtime reads strided tensors as if they were contiguous.
        rows = [
            module.forward((torch.from_numpy(np.ascontiguousarray(images[i : i + 1])),))[0] for i in range(len(images))
        ]
        return np.concatenate([row.numpy() for row in rows])

    # ScalarType 0 is Byte.
    takes_bytes = module.method_meta("forward").input_tensor_meta(0).dtype() == 0
    return LoadedModel(f"executorch {_version('executorch')} XNNPACK", run, dtype="uint8" if takes_bytes else "float32")


def _load_openvino(path: Path, threads: int) -> LoadedModel:
    # ExecuTorch hands OpenVINO no settings, so `threads` has no effect, and it computes as the CPU does by default.
    try:
        import openvino
    except ModuleNotFoundError as error:
        raise MissingDependencyError(
            "running an OpenVINO program needs openvino", hint="pip install 'dspkd[openvino]'"
        ) from error
    arithmetic = openvino.Core().get_property("CPU", "INFERENCE_PRECISION_HINT").get_type_name()
    runtime = f"executorch {_version('executorch')} OpenVINO {_version('openvino')}, {arithmetic} on this CPU"
    return replace(_load_executorch(path, threads), runtime=runtime)


@dataclass(frozen=True, slots=True)
class LiteRTProgram:
    """A .tflite file in LiteRT's interpreter; XNNPACK is its default for the CPU."""

    taken: Mapping[str, Any]
    """Its one input, as the interpreter describes tensors."""
    given: Mapping[str, Any]
    run: Run
    """Takes and gives what the file does: no batch but its own, and levels where its ends are quantised."""


def open_litert(path: Path, threads: int) -> LiteRTProgram:
    """ModuleNotFoundError without ai-edge-litert, and what LiteRT raises for a file that it does not take."""
    with quiet_libraries():
        from ai_edge_litert.interpreter import Interpreter

        interpreter = Interpreter(str(path), num_threads=threads)
        interpreter.allocate_tensors()
    (taken,), (given,) = interpreter.get_input_details(), interpreter.get_output_details()

    def run(value: np.ndarray) -> np.ndarray:
        interpreter.set_tensor(taken["index"], value)
        interpreter.invoke()
        answer: np.ndarray = interpreter.get_tensor(given["index"])
        return answer

    return LiteRTProgram(taken, given, run)


def _load_litert(path: Path, threads: int) -> LoadedModel:
    try:
        program = open_litert(path, threads)
    except ModuleNotFoundError as error:
        raise MissingDependencyError(
            "running a LiteRT artifact needs ai-edge-litert", hint="pip install 'dspkd[litert]'"
        ) from error

    def run(images: np.ndarray) -> np.ndarray:
        return np.concatenate([program.run(images[i : i + 1]) for i in range(len(images))])

    dtype = "uint8" if program.taken["dtype"] is np.uint8 else "float32"
    return LoadedModel(f"ai-edge-litert {_version('ai-edge-litert')} XNNPACK", run, dtype=dtype, layout="NHWC")


def _load_tensorrt(path: Path, threads: int) -> LoadedModel:
    from dspkd.tensorrt_runtime import load_tensorrt

    return load_tensorrt(path, threads)


RUNTIMES: dict[str, Callable[[Path, int], LoadedModel]] = {
    "onnx": _load_onnx,
    "executorch": _load_executorch,
    "executorch-openvino": _load_openvino,
    "litert": _load_litert,
    "tensorrt": _load_tensorrt,
}


def load_model(target: str, path: Path, *, threads: int = 1) -> LoadedModel:
    """Load a model file on the runtime of `target`. VerificationError if the runtime refuses the file."""
    if target not in RUNTIMES:
        raise VerificationError(
            f"{path}: unknown target {target!r}", hint=f"known: {', '.join(RUNTIMES)}; or upgrade dspkd"
        )
    try:
        return RUNTIMES[target](path, threads)
    except (MissingDependencyError, DeviceError):
        raise
    except Exception as error:  # each runtime has exceptions of its own, derived from nothing but Exception
        raise VerificationError(
            f"{path} cannot be loaded by its runtime: {first_line(error)}", hint="export again"
        ) from error


def first_line(error: BaseException) -> str:
    """What an exception says, or its name if it says nothing."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
