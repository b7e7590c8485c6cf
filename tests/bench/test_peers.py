"""Stock exports of the same weights: those that are installed answer as PyTorch does; one that does not is no peer."""

import os
import subprocess
import sys
from importlib.resources import files
from types import ModuleType

import numpy as np
import pytest
import torch
from lively import SIZE, student_of
from results_schema import check_schema

from dspkd.errors import MissingDependencyError, UsageError, VerificationError
from dspkd.fileio import write_json
from dspkd.student import load_student, save_student
from dspkd_bench import peers
from dspkd_bench.bench import BenchConfig, run_bench
from dspkd_bench.latency import StopRule
from dspkd_bench.peers import PEERS, Peer, Source, StockExport, build_peer, chosen_peers, normalised

QUICK = StopRule(warmup_rounds=1, min_rounds=8, max_rounds=8, seconds=0.0)
NEEDS = {
    "pytorch": (),
    "onnxruntime": ("onnxruntime", "onnxscript"),
    "openvino": ("openvino", "onnxscript"),
    "ncnn": ("ncnn", "pnnx"),
    "litert": ("ai_edge_litert", "litert_torch"),
    "executorch": ("executorch",),
}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A small network that answers every image differently."""
    folder = tmp_path_factory.mktemp("run")
    student = student_of("timm/resnet10t", folder)
    save_student(folder, student.model, student.card)
    return folder


@pytest.fixture(scope="module")
def source(run, tmp_path_factory):
    student = load_student(run)
    rng = np.random.default_rng(0)
    pixels = (rng.integers(0, 256, (12, SIZE, SIZE, 3)) * rng.uniform(0, 1, (12, 1, 1, 3))).astype(np.uint8)
    return Source(student, tmp_path_factory.mktemp("peers"), normalised(student, pixels))


@pytest.fixture
def made_up(monkeypatch):
    """Registers a peer that answers with PyTorch's logits, changed."""

    def register(change=lambda logits: logits, precision="fp32", build=None):
        def usual(source):
            @torch.no_grad()
            def run(image):
                return change(source.model(torch.from_numpy(image)).numpy())

            return StockExport("made up 1.0", source.student.path / "model.safetensors", run)

        peer = Peer("Made up", "made-up", "pip install nothing", {precision: build or usual})
        monkeypatch.setitem(PEERS, "made-up", peer)

    return register


def test_normalised_as_in_training(source):
    pixels = np.full((1, SIZE, SIZE, 3), 255, np.uint8)
    image = normalised(source.student, pixels)
    assert image.shape == (1, 3, SIZE, SIZE)
    # The card's mean and std are (0.3, 0.5, 0.6) and (0.2, 0.25, 0.3).
    np.testing.assert_allclose(image[0, :, 0, 0], [0.7 / 0.2, 0.5 / 0.25, 0.4 / 0.3], rtol=1e-5)


@pytest.mark.parametrize("name", NEEDS)
def test_a_peer_answers_as_pytorch_does(name, source):
    for package in NEEDS[name]:
        pytest.importorskip(package)
    export = build_peer(name, "fp32", source)
    assert export.file.stat().st_size > 1000
    assert any(character.isdigit() for character in export.runtime)
    answers = np.concatenate([export.run(export.input_of(source.images[i : i + 1])) for i in range(4)])
    with torch.no_grad():
        expected = source.model(torch.from_numpy(source.images[:4])).numpy()
    assert len({tuple(row) for row in expected.round(3).tolist()}) == 4, "every image would be answered alike"
    np.testing.assert_allclose(answers, expected, atol=1e-3 * np.abs(expected).max())


def test_int8_is_smaller_and_mostly_of_the_same_class(source):
    for package in NEEDS["onnxruntime"]:
        pytest.importorskip(package)
    int8 = PEERS["onnxruntime"].build["int8"](source)
    assert int8.file.stat().st_size < 0.5 * source.onnx.stat().st_size
    answers = np.concatenate([int8.run(int8.input_of(source.images[i : i + 1])) for i in range(12)])
    assert (answers.argmax(1) == source.expected.argmax(1)).mean() >= 0.5


def test_answers_within_the_tolerance_are_accepted(made_up, source):
    made_up(lambda logits: logits * np.float32(1 + 1e-5))
    assert build_peer("made-up", "fp32", source).runtime == "made up 1.0"


@pytest.mark.parametrize(
    ("precision", "change", "message"),
    [
        ("fp32", lambda logits: logits[:, ::-1], "otherwise than PyTorch"),
        ("fp32", lambda logits: logits * np.float32(1 + 2**-8), "otherwise than PyTorch"),
        ("fp32", lambda logits: logits * np.float32(np.nan), "finite logits"),
        ("fp32", lambda logits: logits[:, :1], "finite logits"),
        ("int8", lambda logits: -logits, "another class than PyTorch for 100%"),
    ],
    ids=["other class", "bf16", "nan", "one logit", "int8"],
)
def test_a_peer_with_a_wrong_answer_is_refused(made_up, source, precision, change, message):
    made_up(change, precision)
    with pytest.raises(VerificationError, match=message):
        build_peer("made-up", precision, source)


def test_what_is_missing_or_fails_says_why(made_up, source):
    def not_there(source):
        import dspkd_no_such_package  # noqa: F401

    made_up(build=not_there)
    with pytest.raises(MissingDependencyError, match=r"dspkd_no_such_package.*pip install nothing"):
        build_peer("made-up", "fp32", source)

    def broken(source):
        raise RuntimeError("no kernel for this\nand a trace")

    made_up(build=broken)
    with pytest.raises(VerificationError, match=r"Made up cannot take the network in fp32: no kernel for this$"):
        build_peer("made-up", "fp32", source)


def converter(folder, line, status):
    """A Python that says `line` on stderr and ends with `status`."""
    script = folder / "python"
    script.write_text(f"#!/bin/sh\necho 'loading' >&2\necho \"{line}\" >&2\nexit {status}\n")
    script.chmod(0o755)
    return script


def test_int8_at_the_ends_of_a_litert_program(monkeypatch, tmp_path):
    """A program that gives its input back, in levels of 0.1 with zero at 3."""

    class Interpreter:
        def __init__(self, path, num_threads): ...
        def allocate_tensors(self): ...
        def invoke(self): ...

        def get_input_details(self):
            return [{"index": 0, "dtype": np.int8, "quantization": (0.1, 3)}]

        get_output_details = get_input_details

        def set_tensor(self, index, value):
            assert value.dtype == np.int8 and value.shape == (1, 1, 3, 3)
            self.value = value

        def get_tensor(self, index):
            return self.value

    package, module = ModuleType("ai_edge_litert"), ModuleType("ai_edge_litert.interpreter")
    module.Interpreter = Interpreter
    monkeypatch.setitem(sys.modules, "ai_edge_litert", package)
    monkeypatch.setitem(sys.modules, "ai_edge_litert.interpreter", module)
    monkeypatch.setattr(peers, "version", lambda name: "0")
    image = np.array([-99.0, -12.0, -0.5, 0.0, 0.04, 0.06, 1.0, 12.0, 99.0], np.float32).reshape(1, 3, 1, 3)
    export = peers._in_litert(Source(None, tmp_path, image), tmp_path / "x.tflite")
    answer = export.run(export.input_of(image)).transpose(0, 3, 1, 2)
    expected = np.array([-13.1, -12.0, -0.5, 0.0, 0.0, 0.1, 1.0, 12.0, 12.4], np.float32).reshape(1, 3, 1, 3)
    np.testing.assert_allclose(answer, expected, atol=1e-5)


def test_the_converter_of_litert_may_be_another_python(monkeypatch, source, tmp_path):
    monkeypatch.setitem(sys.modules, "ai_edge_litert", ModuleType("ai_edge_litert"))
    monkeypatch.setenv("DSPKD_LITERT_PYTHON", str(converter(tmp_path, "ModuleNotFoundError: No module named 'x'", 1)))
    with pytest.raises(MissingDependencyError, match=r"No module named 'x'.*litert-torch.*DSPKD_LITERT_PYTHON"):
        build_peer("litert", "fp32", source)
    monkeypatch.setenv("DSPKD_LITERT_PYTHON", str(converter(tmp_path, "RuntimeError: no such operator", 1)))
    with pytest.raises(VerificationError, match=r"converter in .*python fails: RuntimeError: no such operator"):
        build_peer("litert", "fp32", source)
    monkeypatch.setenv("DSPKD_LITERT_PYTHON", str(tmp_path / "nowhere"))
    with pytest.raises(MissingDependencyError, match="nowhere cannot be run"):
        build_peer("litert", "fp32", source)


STAND_IN = """
import statistics
from pathlib import Path

statistics.median([1])

def to_channel_last_io(model, args):
    return model

class convert:
    def __init__(self, model, inputs):
        self.said = f"{sum(p.numel() for p in model.parameters())} {list(inputs[0].shape)} {model.training}"

    def export(self, path):
        Path(path).write_text(self.said)
"""


def test_the_converter_gets_the_network_and_needs_nothing_of_dspkd(run, source, tmp_path):
    (tmp_path / "litert_torch.py").write_text(STAND_IN)
    out = tmp_path / "out.tflite"
    script = files("dspkd_bench") / "litert_convert.py"
    arguments = ["convert", "timm/resnet10t", run / "model.safetensors", "5", str(SIZE), out]
    # Our `statistics` would be taken for Python's.
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    subprocess.run([sys.executable, script, *arguments], env=environment, check=True, capture_output=True)
    parameters = sum(p.numel() for p in source.model.parameters())
    assert out.read_text() == f"{parameters} [1, {SIZE}, {SIZE}, 3] False"


def test_names_of_peers():
    assert chosen_peers("all") == tuple(PEERS)
    assert chosen_peers("ncnn, onnxruntime,ncnn") == ("ncnn", "onnxruntime")
    with pytest.raises(UsageError, match="unknown peer 'tflite'"):
        chosen_peers("ncnn,tflite")


def test_peers_are_measured_beside_their_network(made_up, run, source, tmp_path):
    def not_there(source):
        import dspkd_no_such_package  # noqa: F401

    made_up(build=not_there)
    card = load_student(run).card
    other = student_of("timm/resnet10t", tmp_path / "teacher", seed=1)
    other.path.mkdir()
    save_student(other.path, other.model, other.card.model_copy(update={"role": "teacher"}))
    results = run_bench(
        BenchConfig(folders=[run], teacher=other.path, peers=("pytorch", "made-up"), memory=True, stop=QUICK)
    )
    check_schema(results)
    assert [s["role"] for s in results["subjects"]].count("peer") == 1
    peer = next(s for s in results["subjects"] if s["role"] == "peer")
    assert peer["name"] == "resnet10t PyTorch eager fp32, stock"
    assert (peer["memory"], peer["certificate"], peer["latency"]["n"]) == (None, None, 8)
    assert peer["weights_sha256"] == card.weights_sha256
    # A stock export is no student that a teacher is compared with.
    assert peer["name"] not in {ratio["subject"] for ratio in results["ratios"]}
    (failed,) = results["failed"]
    assert failed["name"] == "resnet10t Made up fp32, stock"
    assert "pip install nothing" in failed["message"]

    pytest.importorskip("jinja2")
    from dspkd_bench.report import collect, write_report

    write_json(tmp_path / "results.json", results)
    write_report(tmp_path / "report.html", collect([tmp_path / "results.json"], []))
    assert "resnet10t PyTorch eager fp32, stock" in (tmp_path / "report.html").read_text()


def test_peers_need_a_network(run):
    with pytest.raises(UsageError, match="stock exports of a network"):
        run_bench(BenchConfig(folders=[], teacher=run, peers=("pytorch",), stop=QUICK))
