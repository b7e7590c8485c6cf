"""Builds and runs TensorRT engines on the machine that will use them.

One file for any such machine: Python 3.8 or later and TensorRT 8.6, 10 or 11, nothing else to build; numpy to run. An
engine works only with the TensorRT and the GPU that built it, so this file is sent to the device together with the
ONNX model, under the name build_engine.py. It imports nothing of dspkd.

    python3 build_engine.py probe                                     what this machine has
    python3 build_engine.py build                                     model.onnx -> model.engine, build.log, build.json
    python3 build_engine.py run --inputs x.npy --outputs y.npy        images -> probabilities

The precision stands in the ONNX file (float16 casts, QuantizeLinear and DequantizeLinear); nothing is calibrated here.
What a TensorRT offers is asked of its module, never concluded from its version.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import ctypes.util
import hashlib
import importlib
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, Iterator, NamedTuple  # noqa: UP035  collections.abc.Iterator[...] fails at import in 3.8

BUFFERS = ("cuda", "pycuda", "ctypes")
TRTEXEC = ("/usr/src/tensorrt/bin/trtexec", "/opt/tensorrt/bin/trtexec")
ERRORS_SHOWN = 5
FLOAT16, BFLOAT16 = 10, 16
ELEMENT_TYPES = {1: "float32", 2: "uint8", 3: "int8", 6: "int32", 7: "int64", FLOAT16: "float16", BFLOAT16: "bfloat16"}


class Failure(Exception):
    """An expected failure: one sentence with cause and fix."""


# Files ---------------------------------------------------------------------------------------------------------------


def write_aside(path: Path, data: bytes) -> None:
    """The file is there whole or not at all."""
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=str(path.resolve().parent))
    try:
        with os.fdopen(handle, "wb") as f:
            f.write(data)
            f.flush()
            os.fsync(f.fileno())
        temporary = Path(name)
        temporary.chmod(0o644)
        temporary.replace(path)
    except BaseException:
        Path(name).unlink()
        raise


def sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as f:
        for block in iter(lambda: f.read(1 << 20), b""):
            digest.update(block)
    return digest.hexdigest()


def first_line(text: Any) -> str:
    return (str(text).strip().splitlines() or [type(text).__name__])[0]


# The ONNX file -------------------------------------------------------------------------------------------------------


class Tensor(NamedTuple):
    name: str
    dtype: str
    shape: tuple[int, ...]
    """-1 where it is dynamic."""


class OnnxFacts(NamedTuple):
    inputs: list[Tensor]
    outputs: list[Tensor]
    nodes: list[tuple[str, str]]
    """(operator, name) in the file's order, which is how TensorRT numbers them."""
    flags: list[str]
    """Builder flags that a TensorRT without strongly typed networks needs for the types in this file."""


def _varint(data: memoryview, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7


def _fields(data: memoryview) -> Iterator[tuple[int, Any]]:
    """(number, value) of each field of a protobuf message; int for a varint, otherwise its bytes."""
    at = 0
    while at < len(data):
        key, at = _varint(data, at)
        kind = key & 7
        if kind == 0:
            value, at = _varint(data, at)
            yield key >> 3, value
            continue
        if kind == 2:
            size, at = _varint(data, at)
        elif kind in (1, 5):
            size = 8 if kind == 1 else 4
        else:
            raise ValueError(f"wire type {kind}")
        if at + size > len(data):
            raise ValueError("it ends early")
        yield key >> 3, data[at : at + size]
        at += size


def _all(data: memoryview, number: int) -> list[Any]:
    return [value for field, value in _fields(data) if field == number]


def _text(data: memoryview, number: int) -> str:
    return "".join(str(value, "utf-8") for value in _all(data, number))


def read_onnx(path: Path) -> OnnxFacts:
    """What a builder has to know of an ONNX file; a device has no onnx package. Failure if it is none.

    Field numbers: onnx.proto (ModelProto.graph 7; GraphProto.node 1, initializer 5, input 11; and so on).
    """
    try:
        graphs = _all(memoryview(path.read_bytes()), 7)
        graph = graphs[0]
        nodes = [(_text(node, 4), _text(node, 3)) for node in _all(graph, 1)]
        weights = {_text(tensor, 8): next(iter(_all(tensor, 2)), 0) for tensor in _all(graph, 5)}
        # A file of an old IR version lists its weights among the inputs.
        inputs = [_read_tensor(value) for value in _all(graph, 11) if _text(value, 1) not in weights]
        outputs = [_read_tensor(value) for value in _all(graph, 12)]
    except FileNotFoundError:
        raise Failure(f"{path} does not exist: give the ONNX file with --onnx") from None
    except (IndexError, ValueError, TypeError) as error:
        raise Failure(f"{path} is no ONNX model ({first_line(error)}): copy it again") from None
    if not inputs or not nodes:
        raise Failure(f"{path} is no ONNX model (no inputs or no nodes): copy it again")
    dtypes = {ELEMENT_TYPES.get(t, "") for t in weights.values()} | {entry.dtype for entry in inputs}
    flags = [flag for dtype, flag in (("float16", "FP16"), ("bfloat16", "BF16")) if dtype in dtypes]
    if any(operator == "QuantizeLinear" for operator, _ in nodes):
        flags.append("INT8")
    return OnnxFacts(inputs, outputs, nodes, flags)


def _read_tensor(value: memoryview) -> Tensor:
    tensor = _all(_all(value, 2)[0], 1)[0]
    shape = []
    for dimension in (d for s in _all(tensor, 2) for d in _all(s, 1)):
        sizes = _all(dimension, 1)
        shape.append(int(sizes[0]) if sizes else -1)
    code = next(iter(_all(tensor, 1)), 0)
    return Tensor(_text(value, 1), ELEMENT_TYPES.get(code, f"type {code}"), tuple(shape))


def profile_shapes(facts: OnnxFacts, batches: tuple[int, int, int]) -> dict[str, list[tuple[int, ...]]]:
    """{input: its shapes at the smallest, best and largest batch} of every dynamic input."""
    smallest, best, largest = batches
    if not 1 <= smallest <= best <= largest:
        raise Failure(f"batches {smallest}, {best}, {largest} are not in order: need 1 <= min <= opt <= max")
    shapes = {}
    for name, _, shape in facts.inputs:
        if -1 in shape[1:]:
            raise Failure(f"input {name} has the shape {shape}: only the first dimension, the batch, may be dynamic")
        if shape and shape[0] == -1:
            shapes[name] = [(batch, *shape[1:]) for batch in batches]
    return shapes


# Building ------------------------------------------------------------------------------------------------------------


def import_tensorrt(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        found = find_trtexec()
        other = f"use --trtexec {found}" if found else "or give --trtexec PATH"
        raise Failure(
            f"no Python module {name} here ({first_line(error)}): on a Jetson install python3-libnvinfer, {other}"
        ) from None


def find_trtexec() -> str | None:
    return shutil.which("trtexec") or next((path for path in TRTEXEC if os.access(path, os.X_OK)), None)


def make_logger(trt: Any) -> Any:
    class Logger(trt.ILogger):
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.lines: list[str] = []
            self.errors: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            level = str(severity).rsplit(".", 1)[-1]
            if level == "VERBOSE":
                return
            self.lines.append(f"[{level}] {message}")
            if "ERROR" in level:
                self.errors.append(message)

        def last_error(self) -> str:
            return first_line(self.errors[-1]) if self.errors else "it gives no reason"

    return Logger()


def build(args: argparse.Namespace) -> None:
    """model.onnx -> the engine, its log and its report. Without --trtexec by TensorRT's Python module."""
    onnx, engine = Path(args.onnx), Path(args.engine)
    facts = read_onnx(onnx)
    shapes = profile_shapes(facts, (args.min_batch, args.opt_batch, args.max_batch))
    started = time.monotonic()
    log: list[str] = []
    try:
        if args.trtexec:
            plan, report = _build_with_trtexec(args, facts, shapes, log)
        else:
            plan, report = _build_with_module(args, facts, shapes, log)
    finally:
        write_aside(Path(args.log), ("\n".join(log) + "\n").encode())
    seconds = time.monotonic() - started
    write_aside(engine, plan)
    report = {
        **report,
        "python": platform.python_version(),
        "platform": f"{platform.system()} {platform.machine()}",
        "gpu": _gpu_name(),
        "profile": shapes,
        "engine_bytes": len(plan),
        "engine_sha256": hashlib.sha256(plan).hexdigest(),
        "onnx_sha256": sha256(onnx),
        "seconds": round(seconds, 1),
    }
    write_aside(Path(args.report), (json.dumps(report, indent=2) + "\n").encode())
    print(f"{engine}: {len(plan)} bytes, built in {seconds:.1f} s with TensorRT {report['tensorrt']}")


def _build_with_module(
    args: argparse.Namespace, facts: OnnxFacts, shapes: dict[str, list[tuple[int, ...]]], log: list[str]
) -> tuple[bytes, dict[str, Any]]:
    trt = import_tensorrt(args.trt_module)
    logger = make_logger(trt)
    logger.lines = log
    builder = trt.Builder(logger)
    # The parser holds the weights: it has to live until the engine is built.
    network, _parser, network_flags = _parse(trt, builder, logger, Path(args.onnx), facts)
    config = builder.create_builder_config()
    builder_flags = [] if "STRONGLY_TYPED" in network_flags else facts.flags
    for flag in builder_flags:
        if not hasattr(trt.BuilderFlag, flag):
            raise Failure(f"{args.onnx} needs {flag}, which TensorRT {trt.__version__} does not offer")
        config.set_flag(getattr(trt.BuilderFlag, flag))
    # On by default; ten bits of mantissa would not be the float32 that was asked for.
    cleared = ["TF32"] if hasattr(trt.BuilderFlag, "TF32") and not args.tf32 else []
    for flag in cleared:
        config.clear_flag(getattr(trt.BuilderFlag, flag))
    if args.workspace_mib is not None:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, args.workspace_mib << 20)
    _set_compute_capabilities(trt, config, args.compute_capability)
    cache = _load_timing_cache(config, args.timing_cache)
    if shapes:
        profile = builder.create_optimization_profile()
        for name, (smallest, best, largest) in shapes.items():
            profile.set_shape(name, smallest, best, largest)
        if config.add_optimization_profile(profile) < 0:
            raise Failure(f"TensorRT refuses the batches of {args.onnx}: {logger.last_error()}")
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise Failure(f"{args.onnx} cannot be built: {logger.last_error()}; see {args.log}")
    if cache is not None:
        write_aside(Path(args.timing_cache), bytes(config.get_timing_cache().serialize()))
    return bytes(plan), {
        "builder": trt.__name__,
        "tensorrt": str(trt.__version__),
        "network_flags": network_flags,
        "builder_flags": builder_flags,
        "cleared_flags": cleared,
        "compute_capabilities": args.compute_capability,
        "workspace_mib": args.workspace_mib,
        "timing_cache": cache is not None,
        "inputs": _describe(network.get_input(i) for i in range(network.num_inputs)),
        "outputs": _describe(network.get_output(i) for i in range(network.num_outputs)),
        "layers": network.num_layers,
    }


def _new_network(trt: Any, builder: Any) -> tuple[Any, list[str]]:
    """A network whose batch is explicit and whose types are those of the file, in the words of this TensorRT."""
    offered = trt.NetworkDefinitionCreationFlag
    names = [name for name in ("EXPLICIT_BATCH", "STRONGLY_TYPED") if hasattr(offered, name)]
    return builder.create_network(sum(1 << int(getattr(offered, name)) for name in names)), names


def _parse(trt: Any, builder: Any, logger: Any, onnx: Path, facts: OnnxFacts) -> tuple[Any, Any, list[str]]:
    data = onnx.read_bytes()
    network, flags = _new_network(trt, builder)
    parser = trt.OnnxParser(network, logger)
    if not parser.parse(data):
        problems = _problems(trt, builder, logger, data, facts, parser)
        shown = "; ".join(problems[:ERRORS_SHOWN]) or logger.last_error()
        more = f"; and {len(problems) - ERRORS_SHOWN} more" if len(problems) > ERRORS_SHOWN else ""
        raise Failure(f"TensorRT {trt.__version__} cannot parse {onnx}: {shown}{more}")
    return network, parser, flags


def _problems(trt: Any, builder: Any, logger: Any, data: bytes, facts: OnnxFacts, failed: Any) -> list[str]:
    """Every node that this TensorRT does not take. Parsing may have stopped at the first, so all nodes are asked for:
    those that it takes come back in groups, the others in none.
    """
    # The parser does not keep its network alive.
    network, _ = _new_network(trt, builder)
    parser = trt.OnnxParser(network, logger)
    if hasattr(parser, "supports_model_v2"):
        parser.supports_model_v2(data)
        groups = [parser.get_subgraph_nodes(i) for i in range(parser.num_subgraphs)]
    else:
        groups = [nodes for nodes, _ in parser.supports_model(data)[1]]
    reasons: dict[int, str] = {}
    for errors in (failed, parser):
        for i in range(errors.num_errors):
            error = errors.get_error(i)
            reason = first_line(error.desc())
            # The text of an assertion, which for a missing operator is no more than this.
            reasons.setdefault(error.node(), "not supported" if reason == "false" else reason)
    taken = {node for nodes in groups for node in nodes}
    for node in range(len(facts.nodes) if taken else 0):
        if node not in taken:
            reasons.setdefault(node, "not supported")
    return [f"{_node(node, facts)}: {reason}" for node, reason in sorted(reasons.items())]


def _node(index: int, facts: OnnxFacts) -> str:
    if not 0 <= index < len(facts.nodes):
        return "the model"
    operator, name = facts.nodes[index]
    return f"node {index} ({operator} {name!r})"


def _set_compute_capabilities(trt: Any, config: Any, names: list[str]) -> None:
    if not names:
        return
    if not hasattr(config, "set_compute_capability"):
        raise Failure(f"TensorRT {trt.__version__} builds for the GPU it runs on: leave --compute-capability out")
    offered = [name for name in trt.ComputeCapability.__members__ if name.startswith("SM")]
    for name in names:
        if name not in offered:
            raise Failure(f"unknown --compute-capability {name}: choose from {', '.join(offered)}")
    config.num_compute_capabilities = len(names)
    for i, name in enumerate(names):
        config.set_compute_capability(getattr(trt.ComputeCapability, name), i)


def _load_timing_cache(config: Any, path: str | None) -> Any:
    """The cache in use, or None where none was asked for or none is offered."""
    if path is None or not hasattr(config, "create_timing_cache"):
        return None
    stored = Path(path).read_bytes() if Path(path).exists() else b""
    cache = config.create_timing_cache(stored)
    # One of another TensorRT or GPU only costs the time that it would have saved.
    if stored and (cache is None or not config.set_timing_cache(cache, False)):
        stored, cache = b"", config.create_timing_cache(b"")
    if not stored:
        config.set_timing_cache(cache, False)
    return cache


def _describe(tensors: Iterator[Any]) -> list[dict[str, Any]]:
    names = {"FLOAT": "float32", "HALF": "float16"}
    described = []
    for tensor in tensors:
        dtype = str(tensor.dtype).rsplit(".", 1)[-1]
        shape = [int(size) for size in tensor.shape]
        described.append({"name": tensor.name, "shape": shape, "dtype": names.get(dtype, dtype.lower())})
    return described


def _gpu_name() -> str | None:
    try:
        with contextlib.closing(open_buffers("auto")) as buffers:
            return str(buffers.gpu)
    except Failure:
        return None


def _build_with_trtexec(
    args: argparse.Namespace, facts: OnnxFacts, shapes: dict[str, list[tuple[int, ...]]], log: list[str]
) -> tuple[bytes, dict[str, Any]]:
    if args.compute_capability:
        raise Failure("trtexec builds for the GPU it runs on: leave --compute-capability out")
    offered = _run([args.trtexec, "--help"]).stdout
    with tempfile.TemporaryDirectory(dir=str(Path(args.engine).resolve().parent)) as temporary:
        plan = Path(temporary) / "engine"
        switches = _trtexec_switches(args, facts, shapes, offered)
        done = _run([args.trtexec, f"--onnx={args.onnx}", f"--saveEngine={plan}", *switches])
        log += done.stdout.splitlines()
        if done.returncode or not plan.exists():
            errors = [line for line in log if "[E]" in line]
            reason = first_line(errors[0]) if errors else f"exit code {done.returncode}"
            raise Failure(f"{args.trtexec} cannot build {args.onnx}: {reason}; see {args.log}")
        version = re.search(r"\[TensorRT v(\d+)\]", done.stdout)
        return plan.read_bytes(), {
            "builder": "trtexec",
            "tensorrt": version.group(1) if version else "unknown",
            "switches": [switch if "Cache" not in switch else "--timingCacheFile" for switch in switches],
            "inputs": [entry._asdict() for entry in facts.inputs],
            "outputs": [entry._asdict() for entry in facts.outputs],
        }


def _run(argv: list[str]) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(argv, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    except OSError as error:
        raise Failure(f"{argv[0]} cannot be run ({error.strerror}): give trtexec's path with --trtexec") from None


def _trtexec_switches(
    args: argparse.Namespace, facts: OnnxFacts, shapes: dict[str, list[tuple[int, ...]]], offered: str
) -> list[str]:
    """For the trtexec whose help text is `offered`."""

    def offers(switch: str) -> bool:
        return re.search(rf"(?<![\w-]){switch}(?![\w-])", offered) is not None

    # Only the engine is wanted, no timing of it.
    switches = [next(switch for switch in ("--skipInference", "--buildOnly", "") if not switch or offers(switch))]
    if offers("--stronglyTyped"):
        switches.append("--stronglyTyped")
    else:
        switches += [f"--{flag.lower()}" for flag in facts.flags if offers(f"--{flag.lower()}")]
    if not args.tf32 and offers("--noTF32"):
        switches.append("--noTF32")
    for switch, index in (("--minShapes", 0), ("--optShapes", 1), ("--maxShapes", 2)):
        if shapes:
            sizes = (f"{name}:{'x'.join(map(str, shape[index]))}" for name, shape in shapes.items())
            switches.append(f"{switch}={','.join(sizes)}")
    if args.workspace_mib is not None:
        switch = "--memPoolSize=workspace:" if offers("--memPoolSize") else "--workspace="
        switches.append(f"{switch}{args.workspace_mib}")
    if args.timing_cache is not None and offers("--timingCacheFile"):
        switches.append(f"--timingCacheFile={args.timing_cache}")
    return [switch for switch in switches if switch]


# Buffers -------------------------------------------------------------------------------------------------------------
#
# Each class is the same small interface over another way to CUDA: `gpu`, `stream` (a handle as TensorRT takes it),
# allocate, copy_in, copy_out, synchronise, free, close. Copies are asynchronous: the arrays must live until
# `synchronise`. All of them use the primary context, which the runtime API and PyTorch use too.


class CudaPythonBuffers:
    """NVIDIA's cuda-python: `cuda.bindings.driver`, before version 12.6 `cuda.cuda`."""

    name = "cuda.bindings"

    def __init__(self) -> None:
        try:
            self._driver = importlib.import_module("cuda.bindings.driver")
        except ImportError:
            self._driver = importlib.import_module("cuda.cuda")
        self._call("cuInit", 0)
        self._device = self._call("cuDeviceGet", 0)
        self.gpu = bytes(self._call("cuDeviceGetName", 256, self._device)).split(b"\0")[0].decode()
        self._call("cuCtxSetCurrent", self._call("cuDevicePrimaryCtxRetain", self._device))
        self._stream = self._call("cuStreamCreate", 1)
        self.stream = int(self._stream)

    def _call(self, function: str, *arguments: Any) -> Any:
        error, *results = getattr(self._driver, function)(*arguments)
        if int(error) != 0:
            raise Failure(f"{function}: {getattr(error, 'name', error)}")
        return results[0] if results else None

    def allocate(self, size: int) -> int:
        return int(self._call("cuMemAlloc", size))

    def copy_in(self, address: int, array: Any) -> None:
        self._call("cuMemcpyHtoDAsync", address, array.ctypes.data, array.nbytes, self._stream)

    def copy_out(self, array: Any, address: int) -> None:
        self._call("cuMemcpyDtoHAsync", array.ctypes.data, address, array.nbytes, self._stream)

    def synchronise(self) -> None:
        self._call("cuStreamSynchronize", self._stream)

    def free(self, address: int) -> None:
        self._call("cuMemFree", address)

    def close(self) -> None:
        self._call("cuStreamDestroy", self._stream)
        self._call("cuDevicePrimaryCtxRelease", self._device)


class PyCudaBuffers:
    name = "pycuda"

    def __init__(self) -> None:
        self._driver = importlib.import_module("pycuda.driver")
        self._driver.init()
        device = self._driver.Device(0)
        self.gpu = device.name()
        self._context = device.retain_primary_context()
        self._context.push()
        self._stream = self._driver.Stream()
        self.stream = int(self._stream.handle)
        self._allocations: dict[int, Any] = {}

    def allocate(self, size: int) -> int:
        allocation = self._driver.mem_alloc(size)
        self._allocations[int(allocation)] = allocation
        return int(allocation)

    def copy_in(self, address: int, array: Any) -> None:
        self._driver.memcpy_htod_async(address, array, self._stream)

    def copy_out(self, array: Any, address: int) -> None:
        self._driver.memcpy_dtoh_async(array, address, self._stream)

    def synchronise(self) -> None:
        self._stream.synchronize()

    def free(self, address: int) -> None:
        self._allocations.pop(address).free()

    def close(self) -> None:
        # PyCUDA's objects must go while their context is still current.
        self._allocations.clear()
        del self._stream
        self._context.pop()
        self._context.detach()


class CtypesBuffers:
    """libcudart, which every machine with TensorRT has."""

    name = "ctypes"
    LIBRARIES = (
        "libcudart.so", "libcudart.so.13", "libcudart.so.12", "libcudart.so.11.0",
        "/usr/local/cuda/lib64/libcudart.so",
    )  # fmt: skip
    TO_DEVICE, TO_HOST = 1, 2

    def __init__(self) -> None:
        self._library = self._load()
        count = ctypes.c_int()
        self._call("cudaGetDeviceCount", ctypes.byref(count))
        if count.value < 1:
            raise Failure("no GPU")
        self._call("cudaSetDevice", ctypes.c_int(0))
        # cudaDeviceProp grows with every version, but always begins with the name.
        properties = ctypes.create_string_buffer(1 << 16)
        self._call("cudaGetDeviceProperties", properties, ctypes.c_int(0))
        self.gpu = properties.value.decode()
        handle = ctypes.c_void_p()
        self._call("cudaStreamCreateWithFlags", ctypes.byref(handle), ctypes.c_uint(1))
        self.stream = int(handle.value or 0)

    def _load(self) -> Any:
        found = ctypes.util.find_library("cudart")
        for name in (*self.LIBRARIES, *([found] if found else [])):
            try:
                return ctypes.CDLL(name)
            except OSError:
                continue
        raise Failure("libcudart was not found")

    def _call(self, function: str, *arguments: Any) -> None:
        error = getattr(self._library, function)(*arguments)
        if error:
            describe = self._library.cudaGetErrorString
            describe.restype = ctypes.c_char_p
            raise Failure(f"{function}: {describe(error).decode()}")

    def _copy(self, to: int, source: int, size: int, kind: int) -> None:
        self._call(
            "cudaMemcpyAsync",
            ctypes.c_void_p(to),
            ctypes.c_void_p(source),
            ctypes.c_size_t(size),
            ctypes.c_int(kind),
            ctypes.c_void_p(self.stream),
        )

    def allocate(self, size: int) -> int:
        pointer = ctypes.c_void_p()
        self._call("cudaMalloc", ctypes.byref(pointer), ctypes.c_size_t(size))
        return int(pointer.value or 0)

    def copy_in(self, address: int, array: Any) -> None:
        self._copy(address, array.ctypes.data, array.nbytes, self.TO_DEVICE)

    def copy_out(self, array: Any, address: int) -> None:
        self._copy(array.ctypes.data, address, array.nbytes, self.TO_HOST)

    def synchronise(self) -> None:
        self._call("cudaStreamSynchronize", ctypes.c_void_p(self.stream))

    def free(self, address: int) -> None:
        self._call("cudaFree", ctypes.c_void_p(address))

    def close(self) -> None:
        self._call("cudaStreamDestroy", ctypes.c_void_p(self.stream))


def open_buffers(kind: str) -> Any:
    """The first kind that works here; Failure with the reason of each that does not."""
    classes = {"cuda": CudaPythonBuffers, "pycuda": PyCudaBuffers, "ctypes": CtypesBuffers}
    reasons = []
    for name in BUFFERS if kind == "auto" else (kind,):
        try:
            return classes[name]()
        except Exception as error:  # without a driver each library raises something else
            reasons.append(f"{name}: {first_line(error)}")
    raise Failure(f"no usable GPU here ({'; '.join(reasons)}): check the driver and CUDA")


# Running -------------------------------------------------------------------------------------------------------------


class Engine:
    """An engine with one input, float32 (N, 3, H, W) or uint8 (N, H, W, 3), and one output, float32 (N, K).

    Failure if it does not load here.
    """

    def __init__(self, path: Path, *, trt_module: str = "tensorrt", buffers: str = "auto") -> None:
        trt = import_tensorrt(trt_module)
        if not path.is_file():
            raise Failure(f"{path} does not exist: build it first")
        self._buffers = open_buffers(buffers)
        self._reserved: dict[str, tuple[int, int]] = {}
        try:
            self._load(trt, path)
        except BaseException:
            self.close()
            raise

    def _load(self, trt: Any, path: Path) -> None:
        logger = make_logger(trt)
        self._runtime = trt.Runtime(logger)
        self._engine = self._runtime.deserialize_cuda_engine(path.read_bytes())
        if self._engine is None:
            raise Failure(
                f"{path} does not load with TensorRT {trt.__version__} on {self.gpu} ({logger.last_error()}): "
                "build it on this machine"
            )
        names = [self._engine.get_tensor_name(i) for i in range(self._engine.num_io_tensors)]
        modes = {name: self._engine.get_tensor_mode(name) for name in names}
        inputs = [name for name in names if modes[name] == trt.TensorIOMode.INPUT]
        outputs = [name for name in names if modes[name] == trt.TensorIOMode.OUTPUT]
        if len(inputs) != 1 or len(outputs) != 1:
            raise Failure(f"{path} has inputs {inputs} and outputs {outputs}: one of each is expected")
        (self.input,), (self.output,) = inputs, outputs
        dtypes = {name: str(self._engine.get_tensor_dtype(name)).rsplit(".", 1)[-1] for name in names}
        if dtypes[self.input] not in ("FLOAT", "UINT8") or dtypes[self.output] != "FLOAT":
            raise Failure(f"{path} has the types {dtypes}: a FLOAT or UINT8 input and a FLOAT output are expected")
        self.dtype = "uint8" if dtypes[self.input] == "UINT8" else "float32"
        shape = tuple(self._engine.get_tensor_shape(self.input))
        self.dynamic = shape[0] == -1
        self.max_batch = int(self._engine.get_tensor_profile_shape(self.input, 0)[2][0]) if self.dynamic else shape[0]
        self.image_shape = shape[1:]
        self.version = f"TensorRT {trt.__version__}"
        self._context = self._engine.create_execution_context()
        if self._context is None:
            raise Failure(f"{path}: no execution context ({logger.last_error()}): is the GPU's memory full?")
        self._logger = logger

    @property
    def gpu(self) -> str:
        return str(self._buffers.gpu)

    @property
    def buffers(self) -> str:
        return str(self._buffers.name)

    def run(self, images: Any, *, batch: int | None = None) -> Any:
        """float32 (N, 3, H, W) in [0, 1] or uint8 pixels (N, H, W, 3) -> float32 (N, K), `batch` images at a time.

        Pixels go into any engine, float32 only into one that takes it.
        """
        import numpy as np

        if len(images) == 0:
            raise Failure("no images to run")
        size = min(batch or self.max_batch, self.max_batch)
        rows = []
        for start in range(0, len(images), size):
            part = images[start : start + size]
            if part.dtype == np.uint8 and part.ndim == 4 and self.dtype == "float32":
                part = part.transpose(0, 3, 1, 2).astype(np.float32) / np.float32(255.0)
            if part.shape[1:] != self.image_shape or part.dtype != self.dtype:
                raise Failure(
                    f"images are {part.dtype} {part.shape[1:]}, the engine takes {self.dtype} {self.image_shape}"
                )
            count = len(part)
            if not self.dynamic:
                # A fixed batch is filled up with the last image.
                part = np.concatenate([part, np.repeat(part[-1:], self.max_batch - count, axis=0)])
            rows.append(self._execute(np.ascontiguousarray(part))[:count])
        return np.concatenate(rows)

    def _execute(self, images: Any) -> Any:
        import numpy as np

        buffers, context = self._buffers, self._context
        self._check(context.set_input_shape(self.input, tuple(images.shape)), "set_input_shape")
        answers = np.empty(tuple(context.get_tensor_shape(self.output)), np.float32)
        source, target = self._reserve(self.input, images.nbytes), self._reserve(self.output, answers.nbytes)
        for name, address in ((self.input, source), (self.output, target)):
            self._check(context.set_tensor_address(name, address), "set_tensor_address")
        buffers.copy_in(source, images)
        self._check(context.execute_async_v3(buffers.stream), "execute_async_v3")
        buffers.copy_out(answers, target)
        buffers.synchronise()
        return answers

    def _reserve(self, name: str, size: int) -> int:
        """The address of at least `size` bytes for a tensor, kept for the next call."""
        address, reserved = self._reserved.get(name, (0, 0))
        if reserved < size:
            if reserved:
                self._buffers.free(address)
            address, reserved = self._buffers.allocate(size), size
            self._reserved[name] = address, reserved
        return address

    def _check(self, worked: bool, call: str) -> None:
        if not worked:
            raise Failure(f"{call} failed: {self._logger.last_error()}")

    def close(self) -> None:
        """In this order: TensorRT's objects hold memory of the context that the buffers keep."""
        self._context = self._engine = self._runtime = None
        for address, _ in self._reserved.values():
            self._buffers.free(address)
        self._reserved.clear()
        self._buffers.close()


def run(args: argparse.Namespace) -> None:
    try:
        import numpy as np
    except ImportError:
        raise Failure("running needs numpy: install python3-numpy") from None
    try:
        # Mapped: the images of a whole validation part need not fit into the device's memory.
        images = np.load(args.inputs, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise Failure(f"{args.inputs} cannot be read as a .npy file: {first_line(error)}") from None
    with contextlib.closing(Engine(Path(args.engine), trt_module=args.trt_module, buffers=args.buffers)) as engine:
        started = time.monotonic()
        answers = engine.run(images, batch=args.batch)
        report = {
            "runtime": engine.version,
            "gpu": engine.gpu,
            "buffers": engine.buffers,
            "images": len(images),
            "seconds": round(time.monotonic() - started, 3),
        }
    outputs = Path(args.outputs)
    with tempfile.TemporaryDirectory(dir=str(outputs.resolve().parent)) as temporary:
        np.save(str(Path(temporary) / "answers.npy"), answers)
        (Path(temporary) / "answers.npy").replace(outputs)
    if args.report:
        write_aside(Path(args.report), (json.dumps(report, indent=2) + "\n").encode())


# This machine --------------------------------------------------------------------------------------------------------


def probe(args: argparse.Namespace) -> None:
    """One JSON object: what there is, and for what is missing the reason."""
    found: dict[str, Any] = {
        "python": platform.python_version(),
        "platform": f"{platform.system()} {platform.machine()}",
        "trtexec": find_trtexec(),
        "jetson": None,
    }
    with contextlib.suppress(OSError):
        found["jetson"] = first_line(Path("/etc/nv_tegra_release").read_text(encoding="utf-8"))
    for key, module in (("tensorrt", args.trt_module), ("numpy", "numpy")):
        try:
            found[key] = str(importlib.import_module(module).__version__)
        except Exception as error:  # a broken installation raises anything
            found[key], found[f"{key}_error"] = None, first_line(error)
    try:
        with contextlib.closing(open_buffers(args.buffers)) as buffers:
            found["buffers"], found["gpu"] = buffers.name, buffers.gpu
    except Failure as error:
        found["buffers"], found["gpu"], found["gpu_error"] = None, None, str(error)
    print(json.dumps(found, indent=2))


def parse_arguments(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Build and run TensorRT engines on the machine that will use them.")
    commands = parser.add_subparsers(dest="command", required=True)
    shared = argparse.ArgumentParser(add_help=False)
    shared.add_argument("--trt-module", default="tensorrt", choices=["tensorrt", "tensorrt_rtx"])
    shared.add_argument("--buffers", default="auto", choices=["auto", *BUFFERS], help="the way to GPU memory")

    command = commands.add_parser("build", parents=[shared], help="an ONNX file -> an engine")
    command.add_argument("--onnx", default="model.onnx")
    command.add_argument("--engine", default="model.engine")
    command.add_argument("--log", default="build.log")
    command.add_argument("--report", default="build.json")
    command.add_argument("--timing-cache", help="file of measured kernels: a later build is quicker")
    command.add_argument("--min-batch", type=int, default=1)
    command.add_argument("--opt-batch", type=int, default=1, help="the batch that kernels are chosen for")
    command.add_argument("--max-batch", type=int, default=32)
    command.add_argument("--workspace-mib", type=int, help="scratch memory; TensorRT's default: all that the GPU has")
    command.add_argument("--tf32", action="store_true", help="let float32 be computed with 10 bits of mantissa")
    command.add_argument("--compute-capability", nargs="+", default=[], metavar="SM89", help="only tensorrt_rtx")
    command.add_argument("--trtexec", metavar="PATH", help="build with trtexec, where there is no Python module")
    command.set_defaults(function=build)

    command = commands.add_parser("run", parents=[shared], help="images -> probabilities")
    command.add_argument("--engine", default="model.engine")
    command.add_argument("--inputs", required=True, help=".npy: float32 (N, 3, H, W) in [0, 1] or uint8 (N, H, W, 3)")
    command.add_argument("--outputs", required=True, help=".npy: float32 (N, K)")
    command.add_argument("--batch", type=int, help="images a call; default: the engine's largest batch")
    command.add_argument("--report", help="JSON: versions and seconds")
    command.set_defaults(function=run)

    command = commands.add_parser("probe", parents=[shared], help="what this machine has, as JSON")
    command.set_defaults(function=probe)
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    args = parse_arguments(sys.argv[1:] if argv is None else argv)
    try:
        args.function(args)
    except Failure as failure:
        print(f"error: {failure}", file=sys.stderr)
        return 1
    except OSError as error:
        print(f"error: {error.filename or 'a file'}: {error.strerror or error}", file=sys.stderr)
        return 1
    except Exception as error:  # the libraries raise what they like; a traceback helps nobody on a board
        print(f"error: {type(error).__name__}: {first_line(error)}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
