"""TensorRT: an ONNX file that carries its precision, and the script that builds the engine where it will run.

An engine works only with the TensorRT and the GPU that built it. So the folder always holds a kit for building
(model.onnx, build_engine.py, README.md), and where a device with TensorRT is named or this machine is one, the engine
is built there, brought back and certified there.
"""

from __future__ import annotations

import json
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from dspkd import tensorrt_device
from dspkd.devices import Device, open_device
from dspkd.errors import DeviceError
from dspkd.fileio import write_text
from dspkd.runtimes import LoadedModel, load_model
from dspkd_export.job import Compiled, ExportJob
from dspkd_export.onnx_target import SYMMETRIC_PERCENTILE, build_onnx

__all__ = ["build_engine", "compile_tensorrt", "run_engine"]

# The newest that TensorRT 8.6's parser knows but for one operator, see `_pool_instead_of_mean`, and the oldest that
# torch exports without a conversion.
OPSET, IR_VERSION = 18, 8
BATCH = 512
BUILD_SECONDS = 3600
RUN_SECONDS = 600
ONNX, ENGINE, SCRIPT, LOG, REPORT = "model.onnx", "model.engine", "build_engine.py", "build.log", "build.json"

README = """\
# TensorRT, {precision}

Build the engine on the machine that will run it: it works only with the TensorRT and the GPU that built it.

    python3 {script} build

This turns {onnx} into {engine}, beside it {log} and {report}. It needs Python 3.8 or later and TensorRT's Python module
(on a Jetson: python3-libnvinfer), version {versions}. Without that module:

    python3 {script} build --trtexec /usr/src/tensorrt/bin/trtexec

Input: {input}, normalisation is inside. Output: float32 (N, {classes}) probabilities. The precision stands in
{onnx}; float32 parts are computed without TF32. Batches 1 to 32, best at 1; `--min-batch`, `--opt-batch` and
`--max-batch` change that. Any TensorRT tool reads the engine. To run it over a .npy file, with numpy and one of
cuda-python, PyCUDA and libcudart:

    python3 {script} run --inputs images.npy --outputs probabilities.npy
"""


def compile_tensorrt(job: ExportJob) -> Compiled:
    """Write the kit into the job's folder and, on a device that has TensorRT and a GPU, build and load the engine.

    Without `job.device` and without TensorRT here, the certificate is ONNX Runtime's, as a stand-in. DeviceError if a
    device that was named cannot be reached, lacks something or fails.
    """
    # The device first: it may be out of reach, and compiling takes longer than to find that out.
    with open_device(job.device) as device:
        found = probe(device)
        missing = _missing(found)
        if missing and job.device != "local":
            raise DeviceError(f"{job.device} cannot build TensorRT engines: {missing}", hint="install what is missing")
        details = _write_kit(job)
        if missing:
            # Each part names everything that was tried; the first is what to mend first.
            reason = (
                f"no TensorRT with a GPU on this machine ({missing.partition(';')[0]}): build with "
                f"--device ssh://host, or copy the folder there and run {SCRIPT}"
            )
            return Compiled((ONNX,), details, not_run=reason, stand_in={ONNX: load_model("onnx", job.folder / ONNX)})
        details["build"] = build_engine(device, job.folder)
    engine = LoadedModel(
        f"TensorRT {found['tensorrt']} on {found['gpu']}",
        partial(run_engine, job.device, (job.folder / ENGINE).read_bytes()),
        batch=BATCH,
        dtype=job.dtype,
    )
    return Compiled((ENGINE,), details, loaded={ENGINE: engine})


def _write_kit(job: ExportJob) -> dict[str, Any]:
    """model.onnx, build_engine.py and README.md in the job's folder. Returns what the manifest says of them."""
    model = build_onnx(job, dynamic=True, opset=OPSET, symmetric=True)
    means = _pool_instead_of_mean(model)
    model.ir_version = IR_VERSION
    (job.folder / ONNX).write_bytes(model.SerializeToString(deterministic=True))
    (job.folder / SCRIPT).write_bytes(_script().read_bytes())
    image = "uint8 (N, {0}, {0}, 3), RGB" if job.takes_bytes else "float32 (N, 3, {0}, {0}), RGB in [0, 1]"
    readme = README.format(
        precision=job.precision,
        script=SCRIPT,
        onnx=ONNX,
        engine=ENGINE,
        log=LOG,
        report=REPORT,
        input=image.format(job.size),
        classes=len(job.student.card.classes),
        versions="10 or 11; TensorRT 8 misreads a mean in this model" if means else "8.6, 10 or 11",
    )
    write_text(job.folder / "README.md", readme)
    details: dict[str, Any] = {"opset": OPSET, "nodes": len(model.graph.node), "dynamic_batch": True}
    details["oldest_tensorrt"] = "10" if means else "8.6"
    if job.precision == "int8":
        details["quantisation"] = {
            "activations": f"int8, symmetric, percentile {SYMMETRIC_PERCENTILE}",
            "weights": "int8, symmetric, per channel",
        }
    return details


def _script() -> Path:
    return Path(tensorrt_device.__file__)


def probe(device: Device) -> dict[str, Any]:
    """What the device has, see `probe` of the device script. DeviceError if that does not run."""
    device.push(_script(), SCRIPT)
    done = device.run_python([SCRIPT, "probe"], timeout=RUN_SECONDS)
    try:
        # Libraries may print warnings before it.
        return json.loads(done.stdout[done.stdout.index("{") :])
    except ValueError as error:
        raise DeviceError(
            f"{device.url}: {SCRIPT} does not run there: {done.last_line}", hint="it needs Python 3.8 or later"
        ) from error


def _missing(found: dict[str, Any]) -> str:
    """In one sentence, or empty if the device can build and run engines."""
    lacks = [found.get(f"{name}_error", "") for name in ("tensorrt", "numpy", "gpu") if found[name] is None]
    return "; ".join(lacks)


def build_engine(device: Device, folder: Path, *options: str) -> dict[str, Any]:
    """Build `folder`/model.onnx on `device`; engine, log and report come into `folder`. Returns the report.

    `options` are further ones of the device script's `build`. DeviceError with its reason if the build fails; then
    no engine is written.
    """
    device.push(_script(), SCRIPT)
    device.push(folder / ONNX, ONNX)
    done = device.run_python([SCRIPT, "build", *options], timeout=BUILD_SECONDS)
    if done.returncode != 0:
        raise DeviceError(
            f"{device.url} cannot build the engine: {done.last_line.removeprefix('error: ')}",
            hint=f"see {LOG} of a build by hand there",
        )
    for name in (LOG, REPORT, ENGINE):
        device.pull(name, folder / name)
    return json.loads((folder / REPORT).read_text(encoding="utf-8"))


def run_engine(url: str, engine: bytes, images: np.ndarray) -> np.ndarray:
    """float32 (N, 3, H, W) in [0, 1] or uint8 (N, H, W, 3) -> float32 (N, K) from an engine on the device.

    DeviceError if it fails.

    Each call opens the device anew: nothing stays there, and nobody has to close it.
    """
    with tempfile.TemporaryDirectory() as temporary, open_device(url) as device:
        folder = Path(temporary)
        (folder / ENGINE).write_bytes(engine)
        np.save(folder / "images.npy", _compact(images))
        device.push(_script(), SCRIPT)
        for name in (ENGINE, "images.npy"):
            device.push(folder / name, name)
        arguments = [SCRIPT, "run", "--engine", ENGINE, "--inputs", "images.npy", "--outputs", "answers.npy"]
        done = device.run_python(arguments, timeout=RUN_SECONDS)
        if done.returncode != 0:
            raise DeviceError(
                f"{url} cannot run the engine: {done.last_line.removeprefix('error: ')}", hint="build it again there"
            )
        device.pull("answers.npy", folder / "answers.npy")
        answers = np.load(folder / "answers.npy", allow_pickle=False)
    if answers.shape[:1] != images.shape[:1] or answers.dtype != np.float32:
        raise DeviceError(f"{url} answers {answers.dtype} {answers.shape} to {len(images)} images", hint="try again")
    return answers


def _compact(images: np.ndarray) -> np.ndarray:
    """Pixels (N, H, W, 3) if exactly those gave the images, a quarter of the bytes; otherwise the images."""
    if images.dtype == np.uint8:
        return images
    pixels = np.rint(images * np.float32(255.0)).astype(np.uint8)
    if np.array_equal(pixels.astype(np.float32) / np.float32(255.0), images):
        return np.ascontiguousarray(pixels.transpose(0, 2, 3, 1))
    return images


def _pool_instead_of_mean(model: Any) -> int:
    """The mean over height and width as GlobalAveragePool, in place. Returns how many other means are left.

    Since opset 18 the axes of ReduceMean are an input, which TensorRT 8's parser does not read: it would take the mean
    over everything.
    """
    import onnx

    constants = {weight.name: weight for weight in model.graph.initializer}
    # Inferred anew: what the file says of its values is from before the precision was written into it.
    bare = onnx.ModelProto()
    bare.CopyFrom(model)
    del bare.graph.value_info[:]
    values = onnx.shape_inference.infer_shapes(bare).graph.value_info
    shapes = {value.name: value.type.tensor_type.shape for value in values}
    nodes, left = [], 0
    for node in model.graph.node:
        nodes.append(node)
        if node.op_type != "ReduceMean" or len(node.input) != 2:
            continue
        left += 1
        rank = len(shapes[node.input[0]].dim) if node.input[0] in shapes else 0
        if rank != 4 or node.input[1] not in constants:
            continue
        axes = sorted(axis % rank for axis in onnx.numpy_helper.to_array(constants[node.input[1]]).tolist())
        if axes != [2, 3]:
            continue
        left -= 1
        keeps = all(attribute.i == 1 for attribute in node.attribute if attribute.name == "keepdims")
        node.op_type = "GlobalAveragePool"
        del node.input[1:], node.attribute[:]
        if not keeps:
            (flat,) = node.output
            node.output[0] = f"{flat}_pooled"
            nodes.append(
                onnx.helper.make_node("Flatten", [node.output[0]], [flat], name=f"{node.name}_flatten", axis=1)
            )
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    used = {name for node in model.graph.node for name in node.input}
    for weight in [weight for weight in model.graph.initializer if weight.name not in used]:
        model.graph.initializer.remove(weight)
    onnx.checker.check_model(model)
    return left
