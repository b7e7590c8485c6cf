"""The same weights as other runtimes take them from the network's library: what our artifacts are compared with.

Every peer gets the bare network, in the form that its runtime's own documentation exports: normalisation and softmax
are left out, which favours it. The answers of each are compared with PyTorch's before it may be timed; one that answers
wrongly is no peer. int8 is calibrated on the same images for all.
"""

from __future__ import annotations

import os
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from dspkd.errors import DspkdError, MissingDependencyError, UsageError, VerificationError
from dspkd.litert_converter import run_converter
from dspkd.quiet import quiet_libraries
from dspkd.runtimes import first_line, open_litert, to_input
from dspkd.student import Student, load_student
from dspkd_bench.subjects import Subject, short_name

__all__ = ["PEERS", "Peer", "Source", "StockExport", "build_peer", "chosen_peers", "normalised", "stock_subjects"]

Run = Callable[[np.ndarray], np.ndarray]

# Of the largest logit. float32 in another order stays far below it; bf16 and tf32 do not.
FP32_TOLERANCE = 1e-3
# Of the images. int8 moves a few over the border between two classes.
INT8_AGREEMENT = 0.8
CHECKED = 64


def _as_they_are(images: np.ndarray) -> np.ndarray:
    return images


@dataclass(frozen=True, slots=True)
class StockExport:
    """`run` takes what `input_of` makes of normalised images, float32 (N, 3, H, W), one at a time, and gives logits
    (1, K). What `input_of` does is not timed.
    """

    runtime: str
    """Name and version."""
    file: Path
    run: Run
    input_of: Run = _as_they_are


@dataclass(frozen=True)
class Source:
    """What every peer is made from, and the folder for its files, which have to stay while it is used.

    `images`, normalised float32 (N, 3, H, W), are what int8 is calibrated on; the first of them also check the answers.
    """

    student: Student
    folder: Path
    images: np.ndarray
    threads: int = 1

    @property
    def model(self) -> nn.Module:
        return self.student.model

    @property
    def image(self) -> torch.Tensor:
        return torch.from_numpy(self.images[:1])

    @cached_property
    def onnx(self) -> Path:
        """The network as torch.onnx.export writes it, batch 1. ONNX Runtime and OpenVINO read it."""
        path = self.folder / "stock.onnx"
        with quiet_libraries():
            program = torch.onnx.export(self.model, (self.image,), dynamo=True, input_names=["image"], verbose=False)
            assert program is not None
            program.optimize()
            program.save(str(path))
        return path

    @cached_property
    def expected(self) -> np.ndarray:
        """PyTorch's logits for the images that are checked."""
        with torch.inference_mode():
            logits: np.ndarray = self.model(torch.from_numpy(self.images[:CHECKED])).numpy()
        return logits


@dataclass(frozen=True, slots=True)
class Peer:
    """`build` has a function for each precision. `target` is the runtime, by the name that artifacts give it too."""

    title: str
    target: str
    install: str
    build: Mapping[str, Callable[[Source], StockExport]]


def normalised(student: Student, pixels: np.ndarray) -> np.ndarray:
    """uint8 pixels (N, H, W, 3) -> float32 (N, 3, H, W), normalised as the student was trained."""
    preprocess = student.card.preprocess
    mean, std = (np.array(values, np.float32).reshape(1, 3, 1, 1) for values in (preprocess.mean, preprocess.std))
    return np.ascontiguousarray((to_input(pixels) - mean) / std)


def chosen_peers(text: str) -> tuple[str, ...]:
    """`all`, or names with commas. UsageError for an unknown one."""
    names = tuple(PEERS) if text == "all" else tuple(dict.fromkeys(part.strip() for part in text.split(",")))
    for name in names:
        if name not in PEERS:
            raise UsageError(f"unknown peer {name!r}", hint=f"all, or some of {', '.join(PEERS)}")
    return names


def build_peer(name: str, precision: str, source: Source) -> StockExport:
    """Export, load and check. MissingDependencyError if its packages are not installed, VerificationError if it cannot
    take the network or answers otherwise than PyTorch.
    """
    peer = PEERS[name]
    try:
        export = peer.build[precision](source)
        answers = _answers(export, source.images[:CHECKED])
    except DspkdError:
        raise
    except ModuleNotFoundError as error:
        raise MissingDependencyError(f"{error.name} is not installed", hint=peer.install) from error
    except Exception as error:  # each runtime has exceptions of its own
        raise VerificationError(f"{peer.title} cannot take the network in {precision}: {first_line(error)}") from error
    _check(f"{peer.title} {precision}", precision, source.expected, answers)
    return export


def _answers(export: StockExport, images: np.ndarray) -> np.ndarray:
    return np.concatenate([export.run(export.input_of(images[i : i + 1])) for i in range(len(images))])


def _check(what: str, precision: str, expected: np.ndarray, answers: np.ndarray) -> None:
    if answers.shape != expected.shape or not np.isfinite(answers).all():
        raise VerificationError(f"{what} answers with something else than {expected.shape} finite logits")
    if precision == "fp32":
        difference = float(np.abs(answers - expected).max() / np.abs(expected).max())
        if difference > FP32_TOLERANCE:
            raise VerificationError(
                f"{what} answers otherwise than PyTorch: a logit is off by {difference:.1e} of the largest"
            )
        return
    agreement = float((answers.argmax(1) == expected.argmax(1)).mean())
    if agreement < INT8_AGREEMENT:
        raise VerificationError(f"{what} gives another class than PyTorch for {1 - agreement:.0%} of the images")


@contextmanager
def stock_subjects(
    folders: Sequence[Path], names: Sequence[str], *, threads: int
) -> Iterator[tuple[list[Subject], dict[str, str]]]:
    """Stock exports in fp32 of the networks in `folders`, ready to be timed while the context lasts, and why the others
    are not among them. Their answers are checked on seeded noise.
    """
    subjects: list[Subject] = []
    failed: dict[str, str] = {}
    with tempfile.TemporaryDirectory() as temporary:
        for number, folder in enumerate(folders if names else ()):
            student = load_student(folder)
            place = Path(temporary) / str(number)
            place.mkdir()
            source = Source(student, place, normalised(student, _noise(student.card.preprocess.size)), threads)
            for name in names:
                title = f"{short_name(student.card.architecture)} {PEERS[name].title} fp32, stock"
                try:
                    subjects.append(_subject(title, name, build_peer(name, "fp32", source), student))
                except DspkdError as error:
                    failed[title] = str(error)
        yield subjects, failed


def _noise(size: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (4, size, size, 3), dtype=np.uint8)


def _subject(title: str, name: str, export: StockExport, student: Student) -> Subject:
    card = student.card
    return Subject(
        name=title,
        path=student.path,
        role="peer",
        architecture=card.architecture,
        num_classes=len(card.classes),
        size=card.preprocess.size,
        target=PEERS[name].target,
        precision="fp32",
        runtime=export.runtime,
        file_bytes=_bytes(export.file),
        weights_sha256=card.weights_sha256,
        validation=None,
        certificate=None,
        model_file=export.file,
        run=export.run,
        input_of=lambda pixels: export.input_of(normalised(student, pixels)),
    )


def _bytes(file: Path) -> int:
    """With what some runtimes keep beside it: weights under the same name with another ending."""
    return sum(beside.stat().st_size for beside in {file, file.with_suffix(".bin")} if beside.is_file())


# PyTorch ------------------------------------------------------------------------------------------


def _eager(source: Source) -> StockExport:
    return _in_pytorch(source, source.model, "eager")


def _compiled(source: Source) -> StockExport:
    with quiet_libraries():
        export = _in_pytorch(source, torch.compile(source.model), "compiled")
        export.run(source.images[:1])
    return export


def _in_pytorch(source: Source, model: Callable[[torch.Tensor], torch.Tensor], how: str) -> StockExport:
    torch.set_num_threads(source.threads)

    @torch.inference_mode()
    def run(image: np.ndarray) -> np.ndarray:
        return model(torch.from_numpy(image)).numpy()

    return StockExport(f"PyTorch {torch.__version__} {how}", source.student.path / "model.safetensors", run)


# ONNX Runtime -------------------------------------------------------------------------------------


def _onnxruntime(source: Source) -> StockExport:
    return _in_onnxruntime(source, source.onnx)


def _in_onnxruntime(source: Source, file: Path) -> StockExport:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = source.threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    return StockExport(
        f"onnxruntime {version('onnxruntime')}", file, lambda image: session.run(None, {"image": image})[0]
    )


def _onnxruntime_int8(source: Source) -> StockExport:
    from onnxruntime.quantization import CalibrationDataReader, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    images = iter(source.images)

    class Reader(CalibrationDataReader):
        def get_next(self) -> Any:
            image = next(images, None)
            return None if image is None else {"image": image[None]}

    prepared, quantised = source.folder / "prepared.onnx", source.folder / "onnxruntime-int8.onnx"
    with quiet_libraries():
        quant_pre_process(str(source.onnx), str(prepared))
        quantize_static(str(prepared), str(quantised), Reader(), per_channel=True)
    return _in_onnxruntime(source, quantised)


# OpenVINO -----------------------------------------------------------------------------------------


def _openvino(source: Source) -> StockExport:
    import openvino

    return _in_openvino(source, openvino.Core().read_model(source.onnx), source.onnx)


def _in_openvino(source: Source, model: Any, file: Path) -> StockExport:
    import openvino

    # Without the hint it computes in bf16 where the CPU has it.
    settings = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": source.threads, "NUM_STREAMS": 1}
    request = openvino.Core().compile_model(model, "CPU", settings).create_infer_request()

    def run(image: np.ndarray) -> np.ndarray:
        # The request writes into the same memory again the next time.
        return np.array(request.infer({0: image}, share_inputs=True)[0])

    return StockExport(f"openvino {version('openvino')}", file, run)


def _openvino_int8(source: Source) -> StockExport:
    # Otherwise NNCF reports its use to its maker, without asking, as soon as it is imported.
    os.environ.setdefault("NNCF_CI", "1")
    import openvino

    with quiet_libraries():
        import nncf

        data = nncf.Dataset([image[None] for image in source.images])
        model = nncf.quantize(openvino.Core().read_model(source.onnx), data, subset_size=len(source.images))
    file = source.folder / "openvino-int8.xml"
    openvino.save_model(model, file, compress_to_fp16=False)
    export = _in_openvino(source, model, file)
    return StockExport(f"{export.runtime}, nncf {version('nncf')}", file, export.run)


# ncnn ---------------------------------------------------------------------------------------------


def _ncnn(source: Source) -> StockExport:
    import ncnn
    import pnnx

    path = source.folder / "stock.pt"
    with quiet_libraries():
        torch.jit.trace(source.model, source.image).save(str(path))
    shape = ",".join(map(str, source.images[:1].shape))
    command = [pnnx.EXEC_PATH, path.name, f"inputshape=[{shape}]", "fp16=0"]
    subprocess.run(command, cwd=source.folder, check=True, capture_output=True)
    net = ncnn.Net()
    net.opt.num_threads = source.threads
    for setting in ("use_fp16_packed", "use_fp16_storage", "use_fp16_arithmetic", "use_bf16_storage"):
        setattr(net.opt, setting, False)
    file = source.folder / "stock.ncnn.param"
    net.load_param(str(file))
    net.load_model(str(file.with_suffix(".bin")))

    def run(image: np.ndarray) -> np.ndarray:
        extractor = net.create_extractor()
        extractor.input("in0", ncnn.Mat(image[0]))
        return np.array(extractor.extract("out0")[1])[None]

    return StockExport(f"ncnn {version('ncnn')}", file, run)


# LiteRT -------------------------------------------------------------------------------------------


def _litert(source: Source) -> StockExport:
    return _in_litert(source, _converted_by_litert(source, "fp32"))


def _litert_int8(source: Source) -> StockExport:
    return _in_litert(source, _converted_by_litert(source, "int8"))


def _converted_by_litert(source: Source, precision: str) -> Path:
    """The converter brings many packages along, so it runs in a process of its own, with another Python if asked to."""
    import ai_edge_litert  # noqa: F401  before minutes are spent on converting

    fp32, int8 = source.folder / "stock.tflite", source.folder / "stock-int8.tflite"
    script = Path(__file__).with_name("litert_convert.py")
    card = source.student.card
    arguments = [card.architecture, source.student.path / "model.safetensors", len(card.classes), card.preprocess.size]
    if precision == "fp32":
        run_converter(script, "convert", *arguments, fp32)
        return fp32
    if not fp32.is_file():
        _converted_by_litert(source, "fp32")
    images = source.folder / "calibration.npy"
    np.save(images, source.images.transpose(0, 2, 3, 1))
    run_converter(script, "quantise", fp32, images, int8)
    return int8


def _in_litert(source: Source, file: Path) -> StockExport:
    program = open_litert(file, source.threads)

    def input_of(images: np.ndarray) -> np.ndarray:
        return _quantised(np.ascontiguousarray(images.transpose(0, 2, 3, 1)), program.taken)

    def run(image: np.ndarray) -> np.ndarray:
        return _dequantised(program.run(image), program.given)

    return StockExport(f"ai-edge-litert {version('ai-edge-litert')} XNNPACK", file, run, input_of)


def _quantised(values: np.ndarray, tensor: Mapping[str, Any]) -> np.ndarray:
    """As the tensor takes them: LiteRT's int8 programs have int8 at their ends, other runtimes floats."""
    if np.issubdtype(tensor["dtype"], np.floating):
        return values
    scale, zero = tensor["quantization"]
    limits = np.iinfo(tensor["dtype"])
    return np.clip(np.rint(values / scale) + zero, limits.min, limits.max).astype(tensor["dtype"])


def _dequantised(levels: np.ndarray, tensor: Mapping[str, Any]) -> np.ndarray:
    if np.issubdtype(tensor["dtype"], np.floating):
        return levels
    scale, zero = tensor["quantization"]
    return (levels.astype(np.float32) - np.float32(zero)) * np.float32(scale)


# ExecuTorch ---------------------------------------------------------------------------------------


def _executorch(source: Source) -> StockExport:
    return _lowered(source, source.model, source.folder / "stock.pte")


def _executorch_int8(source: Source) -> StockExport:
    with quiet_libraries():
        from executorch.backends.xnnpack.quantizer.xnnpack_quantizer import (
            XNNPACKQuantizer,
            get_symmetric_quantization_config,
        )
        from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e

        quantizer = XNNPACKQuantizer().set_global(get_symmetric_quantization_config(is_per_channel=True))
        graph = torch.export.export(source.model, (source.image,), strict=False).module()
        prepared = prepare_pt2e(graph, quantizer)
        with torch.no_grad():
            for image in source.images:
                prepared(torch.from_numpy(image[None]))
        return _lowered(source, convert_pt2e(prepared), source.folder / "stock-int8.pte")


def _lowered(source: Source, model: nn.Module, file: Path) -> StockExport:
    with quiet_libraries():
        from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
        from executorch.exir import to_edge_transform_and_lower
        from executorch.extension.pybindings import portable_lib

        exported = torch.export.export(model, (source.image,), strict=False)
        program = to_edge_transform_and_lower(exported, partitioner=[XnnpackPartitioner()]).to_executorch()
        file.write_bytes(program.buffer)
        # XNNPACK takes the size of the thread pool when a program is loaded.
        portable_lib._unsafe_reset_threadpool(source.threads)
        module = portable_lib._load_for_executorch(str(file))

    def run(image: np.ndarray) -> np.ndarray:
        # The memory that the output lies in is used again by the next call.
        return module.forward((torch.from_numpy(image),))[0].numpy().copy()

    return StockExport(f"executorch {version('executorch')} XNNPACK", file, run)


PEERS: dict[str, Peer] = {
    "pytorch": Peer("PyTorch eager", "pytorch", "", {"fp32": _eager}),
    "torch-compile": Peer("torch.compile", "torch-compile", "", {"fp32": _compiled}),
    "onnxruntime": Peer(
        "ONNX Runtime", "onnx", "pip install 'dspkd[onnx]'", {"fp32": _onnxruntime, "int8": _onnxruntime_int8}
    ),
    "openvino": Peer("OpenVINO", "openvino", "pip install openvino nncf", {"fp32": _openvino, "int8": _openvino_int8}),
    "ncnn": Peer("ncnn", "ncnn", "pip install ncnn pnnx", {"fp32": _ncnn}),
    "litert": Peer("LiteRT", "litert", "pip install 'dspkd[litert]'", {"fp32": _litert, "int8": _litert_int8}),
    "executorch": Peer(
        "ExecuTorch XNNPACK",
        "executorch",
        "pip install 'dspkd[executorch]'",
        {"fp32": _executorch, "int8": _executorch_int8},
    ),
}
"""By the names that `dspkd bench --peers` takes."""
