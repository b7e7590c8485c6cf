"""Our artifacts against the same weights as other runtimes take them from the library: one interleaved run.

python benchmarks/peers/compare.py RUN DATA [--size SIZE] [--seconds S] [--teacher ONNX_FILE]

Peers get the network of torchvision without normalisation and softmax, ours has both inside. Every peer that is
installed takes part: PyTorch eager and compiled, ONNX Runtime, OpenVINO (held to fp32, and int8 by NNCF), ncnn (fp16
storage and arithmetic off). int8 is calibrated on the same 128 training images. Batch 1, one thread. --teacher adds a
teacher's ONNX model on ONNX Runtime, for the ratio. Prints Markdown; a peer that fails says why.
"""

from __future__ import annotations

import argparse
import subprocess
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dspkd.cli.sharing import training_images
from dspkd.runtimes import load_model, to_input
from dspkd.student import Student, load_student
from dspkd.train.reporter import Reporter
from dspkd_bench.environment import describe_environment
from dspkd_bench.latency import Series, StopRule, latency_summary, measure_interleaved, ratio_of_medians
from dspkd_export.export import TARGETS
from dspkd_export.job import ExportJob

Call = Callable[[], object]
CALIBRATION = 128


class Peers:
    """The same network in each runtime's own usual form; every method gives a call with batch 1."""

    def __init__(self, student: Student, pixels: np.ndarray, folder: Path) -> None:
        self.model = student.model.eval()
        self.images = to_input(pixels)
        self.image = np.ascontiguousarray(self.images[:1])
        self.folder = folder
        self.onnx = folder / "stock.onnx"

    def export_onnx(self) -> None:
        program = torch.onnx.export(
            self.model, (torch.from_numpy(self.image),), dynamo=True, input_names=["image"], verbose=False
        )
        program.optimize()
        program.save(str(self.onnx))

    def eager(self) -> Call:
        image = torch.from_numpy(self.image)
        return torch.inference_mode()(lambda: self.model(image))

    def compiled(self) -> Call:
        image = torch.from_numpy(self.image)
        model = torch.compile(self.model)
        return torch.inference_mode()(lambda: model(image))

    def onnxruntime(self, file: Path | None = None) -> Call:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.log_severity_level = 3
        session = onnxruntime.InferenceSession(str(file or self.onnx), options, providers=["CPUExecutionProvider"])
        name = session.get_inputs()[0].name
        return lambda: session.run(None, {name: self.image})

    def onnxruntime_int8(self) -> Call:
        from onnxruntime.quantization import CalibrationDataReader, quantize_static
        from onnxruntime.quantization.shape_inference import quant_pre_process

        images = iter(self.images)

        class Reader(CalibrationDataReader):
            def get_next(self) -> Any:
                image = next(images, None)
                return None if image is None else {"image": image[None]}

        prepared, quantised = self.folder / "prepared.onnx", self.folder / "int8.onnx"
        quant_pre_process(str(self.onnx), str(prepared))
        quantize_static(str(prepared), str(quantised), Reader(), per_channel=True)
        return self.onnxruntime(quantised)

    def _openvino(self, model: Any) -> Call:
        import openvino

        settings = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": 1, "NUM_STREAMS": 1}
        request = openvino.Core().compile_model(model, "CPU", settings).create_infer_request()
        return lambda: request.infer({0: self.image}, share_inputs=True)

    def openvino(self) -> Call:
        import openvino

        return self._openvino(openvino.convert_model(str(self.onnx)))

    def openvino_int8(self) -> Call:
        import nncf
        import openvino

        data = nncf.Dataset([image[None] for image in self.images])
        return self._openvino(nncf.quantize(openvino.convert_model(str(self.onnx)), data))

    def ncnn(self) -> Call:
        import ncnn
        import pnnx

        path = self.folder / "stock.pt"
        torch.jit.trace(self.model, torch.from_numpy(self.image)).save(str(path))
        command = [pnnx.EXEC_PATH, path.name, f"inputshape={list(self.image.shape)}".replace(" ", ""), "fp16=0"]
        subprocess.run(command, cwd=self.folder, check=True, capture_output=True)
        net = ncnn.Net()
        net.opt.num_threads = 1
        for setting in ("use_fp16_packed", "use_fp16_storage", "use_fp16_arithmetic", "use_bf16_storage"):
            setattr(net.opt, setting, False)
        net.load_param(str(self.folder / "stock.ncnn.param"))
        net.load_model(str(self.folder / "stock.ncnn.bin"))
        picture = ncnn.Mat(self.image[0])

        def run() -> object:
            extractor = net.create_extractor()
            extractor.input("in0", picture)
            return np.array(extractor.extract("out0")[1])

        return run


def ours(student: Student, images: Any, folder: Path, target: str, precision: str, *, rewrite: bool = True) -> Call:
    place = folder / f"{target}-{precision}-{rewrite}"
    place.mkdir()
    TARGETS[target].compile(ExportJob(student, place, precision, rewrite, images))
    file = place / ("model_static.onnx" if target == "onnx" else "model.pte")
    run, image = load_model(target, file, threads=1).run, to_input(images.pixels[:1])
    return lambda: run(image)


def main(run: Path, data: Path, size: int | None, seconds: float, teacher: Path | None) -> None:
    torch.set_num_threads(1)
    student = load_student(run)
    if size is not None:
        preprocess = student.card.preprocess.model_copy(update={"size": size})
        student = replace(student, card=student.card.model_copy(update={"preprocess": preprocess}))
    images = training_images(student, data, CALIBRATION, Reporter())
    calls: dict[tuple[str, str, str], Call] = {}
    problems = []
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        peers = Peers(student, images.pixels, folder)
        peers.export_onnx()
        wanted: dict[tuple[str, str, str], Callable[[], Call]] = {
            ("peer", "fp32", "PyTorch eager"): peers.eager,
            ("peer", "fp32", "torch.compile"): peers.compiled,
            ("peer", "fp32", "ONNX Runtime"): peers.onnxruntime,
            ("peer", "fp32", "OpenVINO"): peers.openvino,
            ("peer", "fp32", "ncnn"): peers.ncnn,
            ("peer", "int8", "ONNX Runtime"): peers.onnxruntime_int8,
            ("peer", "int8", "OpenVINO, NNCF"): peers.openvino_int8,
        }
        for target, title in (("executorch", "ExecuTorch XNNPACK"), ("onnx", "ONNX Runtime")):
            for precision in ("fp32", "int8"):
                for who, rewrite in (("ours", True), ("ours, not rewritten", False)):
                    wanted[who, precision, title] = lambda t=target, p=precision, r=rewrite: ours(
                        student, images, folder, t, p, rewrite=r
                    )  # type: ignore[misc]
        if teacher is not None:
            wanted["teacher", "fp32", "ONNX Runtime"] = lambda: peers.onnxruntime(teacher)
        for key, make in wanted.items():
            try:
                calls[key] = make()
                calls[key]()
            except Exception as error:  # each runtime has exceptions of its own
                calls.pop(key, None)
                problems.append((key, (str(error).strip().splitlines() or [type(error).__name__])[0]))
        stop = StopRule(warmup_rounds=20, min_rounds=100, max_rounds=5000, seconds=seconds)
        series = measure_interleaved({str(i): call for i, call in enumerate(calls.values())}, stop)
    show(student, dict(zip(calls, series.values(), strict=True)), problems)


def show(student: Student, series: dict[tuple[str, str, str], Series], problems: list[Any]) -> None:
    machine, rounds = describe_environment(1), len(next(iter(series.values())).ms)
    print(
        f"{student.card.architecture}, {student.card.preprocess.size} px, {machine['cpu']}, 1 thread, {rounds} rounds\n"
    )
    print("| precision | runtime | whose | p50, ms [95 %] | / best stock peer of that precision |")
    print("|---|---|---|---|---|")
    for precision in ("fp32", "int8"):
        rows = {key: values for key, values in series.items() if key[1] == precision}
        peers = {key: values for key, values in rows.items() if key[0] != "ours" and key[0] != "teacher"}
        best = min(peers.values(), key=lambda values: float(np.median(values.ms)))
        for (who, _, title), values in sorted(rows.items(), key=lambda row: float(np.median(row[1].ms))):
            summary, ratio = latency_summary(values.ms), ratio_of_medians(values.ms, best.ms)
            (low, high), (from_, to) = summary["p50_interval_ms"], ratio["interval"]
            print(
                f"| {precision} | {title} | {who} | {summary['p50_ms']:.2f} [{low:.2f}, {high:.2f}] "
                f"| {ratio['ratio']:.2f} [{from_:.2f}, {to:.2f}] |"
            )
    teacher = next((values for key, values in series.items() if key[0] == "teacher"), None)
    for precision in ("fp32", "int8") if teacher else ():
        own = [values for key, values in series.items() if key[:2] == ("ours", precision)]
        ratio = ratio_of_medians(teacher.ms, min(own, key=lambda values: float(np.median(values.ms))).ms)
        low, high = ratio["interval"]
        print(f"\nTeacher in ONNX Runtime fp32 / our best {precision}: {ratio['ratio']:.1f} [{low:.1f}, {high:.1f}]")
    for (who, precision, title), why in problems:
        print(f"\nNot measured: {title} {precision} ({who}): {why}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Our artifacts against stock exports of the same weights.")
    parser.add_argument("run", type=Path)
    parser.add_argument("data", type=Path)
    parser.add_argument("--size", type=int)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--teacher", type=Path)
    main(*vars(parser.parse_args()).values())
