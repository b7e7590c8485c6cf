"""LiteRT: what is given to its converter is the student, and what comes back runs on LiteRT with the same answers.

The converter wants an environment of its own, so most tests take files that were recorded (`record_litert.py`); those
that convert run where DSPKD_LITERT_PYTHON names a Python with litert-torch, or this one has it.
"""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from litert_student import CALIBRATED, RECORDED, SIZE, pictures, recorded_student, recording_job
from torchvision.models import mobilenet_v2

from dspkd.errors import MissingDependencyError, VerificationError
from dspkd.preprocess import Preprocess
from dspkd.runtimes import load_model, to_input
from dspkd_bench import agent
from dspkd_export import litert_script
from dspkd_export.deploy_module import DeployModule
from dspkd_export.litert_target import CONVERTER_PYTHON, MODEL_FILE, NhwcModule, compile_litert, run_converter

PREPROCESS = Preprocess(size=SIZE)
# Of a network that was not trained and exaggerates it; another number of threads moves answers as far.
ROUNDING = 5e-5


@pytest.fixture(scope="module")
def student():
    return recorded_student()


@pytest.fixture(scope="module")
def expected(student):
    """The student's probabilities for `pictures`."""
    module = DeployModule(student.model, PREPROCESS).eval()
    with torch.no_grad():
        return module(torch.from_numpy(to_input(pictures()))).numpy()


def nhwc_answers(module, images):
    with torch.no_grad():
        return torch.cat([module(torch.from_numpy(image[None]))["probabilities"] for image in images]).numpy()


# What the converter is given -----------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float32", "uint8"])
def test_the_module_for_the_converter_answers_as_the_student(student, expected, tmp_path, dtype):
    job = recording_job(student, tmp_path, "fp32", takes_bytes=dtype == "uint8")
    answers = nhwc_answers(NhwcModule(job.module(), SIZE).eval(), to_input(pictures(), dtype, "NHWC"))
    np.testing.assert_allclose(answers, expected, atol=ROUNDING)


def test_the_first_convolution_divides_by_std(student, tmp_path):
    module = NhwcModule(recording_job(student, tmp_path, "fp32").module(), SIZE)
    assert not module.rows.divides
    operators = [
        str(n.target) for n in torch.export.export(module.eval(), (torch.zeros(1, SIZE, SIZE, 3),)).graph.nodes
    ]
    assert "aten.sub.Tensor" in operators and "aten.div.Tensor" not in operators


@pytest.mark.parametrize("dtype", ["float32", "uint8"])
def test_a_network_of_another_kind(dtype):
    torch.manual_seed(0)
    network = mobilenet_v2(num_classes=3).eval()
    plain = DeployModule(network, PREPROCESS).eval()
    module = NhwcModule(DeployModule(network, PREPROCESS, takes_bytes=dtype == "uint8"), SIZE).eval()
    assert module.rows.divides
    with torch.no_grad():
        wanted = plain(torch.from_numpy(to_input(pictures()))).numpy()
    np.testing.assert_allclose(nhwc_answers(module, to_input(pictures(), dtype, "NHWC")), wanted, atol=ROUNDING)


def test_temperature(student, tmp_path):
    hot = NhwcModule(recording_job(student, tmp_path, "fp32", temperature=3.0).module(), SIZE).eval()
    cold = NhwcModule(recording_job(student, tmp_path, "fp32").module(), SIZE).eval()
    images = to_input(pictures(), "float32", "NHWC")
    wanted = nhwc_answers(cold, images) ** (1 / 3)
    np.testing.assert_allclose(nhwc_answers(hot, images), wanted / wanted.sum(1, keepdims=True), atol=1e-5)


# The script ----------------------------------------------------------------------------------------


def test_one_image_after_the_other_widens_the_ranges():
    ranges = {}
    for low, high in ((0.0, 1.0), (-2.0, 0.5), (0.5, 0.75)):
        litert_script._widen(ranges, {"map": {"min": np.array([[low]]), "max": np.array([[high]])}})
    assert ranges == {"map": {"min": np.array([[-2.0]]), "max": np.array([[1.0]])}}


def graph_of(file):
    from ai_edge_litert.tools import flatbuffer_utils

    model = flatbuffer_utils.read_model(str(file))
    (graph,) = model.subgraphs
    return graph, [(kind, operator) for operator, kind in litert_script._operators(model, graph)]


def test_no_concatenation_is_longer_than_xnnpack_takes():
    pytest.importorskip("ai_edge_litert")
    _, operators = graph_of(RECORDED / "shufflenet-fp32.tflite")
    lengths = [len(operator.inputs) for kind, operator in operators if kind == "CONCATENATION"]
    assert max(lengths) == litert_script.MOST_CONCATENATED


def test_a_split_concatenation_gives_the_same(expected, tmp_path, monkeypatch):
    pytest.importorskip("ai_edge_litert")
    file = tmp_path / "shorter.tflite"
    file.write_bytes((RECORDED / "shufflenet-fp32.tflite").read_bytes())
    monkeypatch.setattr(litert_script, "MOST_CONCATENATED", 2)
    litert_script._split_concatenations(str(file))
    _, operators = graph_of(file)
    assert max(len(operator.inputs) for kind, operator in operators if kind == "CONCATENATION") == 2
    np.testing.assert_allclose(load_model("litert", file).answer(pictures()), expected, atol=ROUNDING)


def test_what_is_handed_on_has_one_scale_and_the_picture_all_bytes():
    pytest.importorskip("ai_edge_litert")
    graph, operators = graph_of(RECORDED / "shufflenet-int8.tflite")
    scale = {index: tensor.quantization.scale for index, tensor in enumerate(graph.tensors) if tensor.quantization}
    handed_on = [operator for kind, operator in operators if kind in ("CONCATENATION", "SLICE")]
    assert handed_on
    for operator in handed_on:
        (read, *_), (given,) = operator.inputs, operator.outputs
        assert scale[read] == scale[given]
    kinds = [kind for kind, _ in operators]
    assert kinds.count("QUANTIZE") == kinds.count("DEQUANTIZE") == 1
    (picture,) = [operator.outputs[0] for kind, operator in operators if kind == "QUANTIZE"]
    assert scale[picture] == pytest.approx([1 / 255])
    # The softmax is left to floats: eight bits of a probability are too few.
    assert kinds[-2:] == ["DEQUANTIZE", "SOFTMAX"]


# The runtime ---------------------------------------------------------------------------------------


def test_the_recorded_file_answers_as_the_student(expected):
    pytest.importorskip("ai_edge_litert")
    model = load_model("litert", RECORDED / "shufflenet-fp32.tflite")
    assert (model.dtype, model.layout) == ("float32", "NHWC")
    assert model.runtime.startswith("ai-edge-litert ")
    np.testing.assert_allclose(model.answer(pictures()), expected, atol=ROUNDING)


def test_the_recorded_int8_file_is_near(expected):
    pytest.importorskip("ai_edge_litert")
    answers = load_model("litert", RECORDED / "shufflenet-int8.tflite").answer(pictures())
    assert 0.001 < np.abs(answers - expected).mean() < 0.1


def test_the_agent_answers_as_the_loader_here():
    pytest.importorskip("ai_edge_litert")
    file = RECORDED / "shufflenet-fp32.tflite"
    loaded = agent.LOADERS["litert"](str(file), 1, "cpu")
    assert (loaded.dtype, loaded.layout, loaded.most) == ("float32", "NHWC", 1)
    picture = pictures()[:1]
    answer = loaded.run(agent.to_float(picture, loaded.layout))
    np.testing.assert_array_equal(answer, load_model("litert", file).answer(picture))


def test_a_file_that_is_none(tmp_path):
    pytest.importorskip("ai_edge_litert")
    (tmp_path / "model.tflite").write_bytes(b"no flatbuffer")
    with pytest.raises(VerificationError, match=r"model\.tflite cannot be loaded by its runtime"):
        load_model("litert", tmp_path / "model.tflite")


@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
def test_agent_and_core_prepare_a_picture_alike(layout):
    np.testing.assert_array_equal(agent.to_float(pictures(), layout), to_input(pictures(), "float32", layout))


# The converter's process ---------------------------------------------------------------------------


@pytest.fixture
def script(tmp_path):
    def write(text):
        file = tmp_path / "script.py"
        file.write_text(text)
        return file

    return write


def test_a_converter_that_lacks_a_package(script, monkeypatch):
    monkeypatch.delenv(CONVERTER_PYTHON, raising=False)
    with pytest.raises(MissingDependencyError, match="No module named 'no_such_converter'") as caught:
        run_converter(script("import no_such_converter"))
    assert CONVERTER_PYTHON in caught.value.hint


def test_a_converter_that_fails_says_why(script):
    with pytest.raises(VerificationError, match="LiteRT's converter fails: RuntimeError: unsupported operator"):
        run_converter(script("raise RuntimeError('unsupported operator')"))


def test_a_python_that_is_not_there(script, monkeypatch, tmp_path):
    monkeypatch.setenv(CONVERTER_PYTHON, str(tmp_path / "python"))
    with pytest.raises(MissingDependencyError, match="cannot be run: No such file"):
        run_converter(script(""))


def test_the_script_needs_nothing_of_dspkd():
    code = f"import runpy; runpy.run_path({litert_script.__file__!r})"
    done = subprocess.run([sys.executable, "-I", "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    lines = [line.split() for line in Path(litert_script.__file__).read_text().splitlines()]
    assert not [line for line in lines if line[:1] in (["import"], ["from"]) and line[1].startswith("dspkd")]


@pytest.fixture
def stand_in_converter(tmp_path, monkeypatch):
    """Copies the recorded file where the converter would write."""
    recorded = RECORDED / "shufflenet-fp32.tflite"
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\ntest -s "$3" || exit 9\nfor last; do :; done\ncp "{recorded}" "$last"\n')
    python.chmod(0o755)
    monkeypatch.setenv(CONVERTER_PYTHON, str(python))


def test_compiled_with_what_a_converter_gives(student, expected, stand_in_converter, tmp_path):
    pytest.importorskip("ai_edge_litert")
    folder = tmp_path / "artifact"
    folder.mkdir()
    compiled = compile_litert(recording_job(student, folder, "fp32"))
    assert compiled.models == (MODEL_FILE,) and [path.name for path in folder.iterdir()] == [MODEL_FILE]
    np.testing.assert_allclose(compiled.loaded[MODEL_FILE].answer(pictures()), expected, atol=ROUNDING)


# With the converter --------------------------------------------------------------------------------

needs_converter = pytest.mark.skipif(
    CONVERTER_PYTHON not in os.environ and importlib.util.find_spec("litert_torch") is None,
    reason=f"needs litert-torch, here or in the Python that {CONVERTER_PYTHON} names",
)


@needs_converter
@pytest.mark.slow
@pytest.mark.parametrize("takes_bytes", [False, True])
@pytest.mark.parametrize(("precision", "tolerance"), [("fp32", ROUNDING), ("fp16", 5e-3), ("int8", 0.1)])
def test_converted(student, expected, tmp_path, precision, tolerance, takes_bytes):
    pytest.importorskip("ai_edge_litert")
    compiled = compile_litert(recording_job(student, tmp_path, precision, CALIBRATED, takes_bytes=takes_bytes))
    model = compiled.loaded[MODEL_FILE]
    assert model.dtype == ("uint8" if takes_bytes else "float32")
    assert np.abs(model.answer(pictures()) - expected).mean() < tolerance
    kinds = [kind for kind, _ in graph_of(tmp_path / MODEL_FILE)[1]]
    # A pad with the lowest number, before a max pool, is one that XNNPACK does not take.
    assert "PADV2" not in kinds
