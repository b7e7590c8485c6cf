"""LiteRT: what is given to its converter is the student, and what comes back runs on LiteRT with the same answers.

The converter wants an environment of its own, so most tests take files that were recorded (`record_litert.py`); those
that convert run where DSPKD_LITERT_PYTHON names a Python with litert-torch, or this one has it.
"""

import copy
import importlib.util
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from lively import student_of
from small_shufflenet import CALIBRATED, RECORDED, SIZE, pictures, recorded_student, recording_job
from torchvision.models import mobilenet_v2

from dspkd.devices import open_device
from dspkd.errors import MissingDependencyError, VerificationError
from dspkd.evaluate import student_classifier
from dspkd.litert_converter import CONVERTER_PYTHON, run_converter
from dspkd.preprocess import Preprocess
from dspkd.runtimes import load_model, to_input
from dspkd_bench import agent
from dspkd_bench.doctor import check_machine, examine
from dspkd_bench.memory import measure_memory
from dspkd_bench.subjects import open_subject
from dspkd_export import export_student, litert_script, verify
from dspkd_export.calibration import Calibration
from dspkd_export.certificate import Images
from dspkd_export.deploy_module import DeployModule, deploy_module
from dspkd_export.litert_target import MODEL_FILE, NhwcModule, compile_litert

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
def test_the_module_for_the_converter_answers_for_mirrored_pictures(student, expected, tmp_path, dtype):
    job = recording_job(student, tmp_path, "fp32", takes_bytes=dtype == "uint8")
    module = NhwcModule(job.module(), SIZE).eval()
    assert module.mirrored
    answers = nhwc_answers(module, to_input(pictures()[:, ::-1, ::-1, ::-1], dtype, "NHWC"))
    np.testing.assert_allclose(answers, expected, atol=ROUNDING)


@pytest.mark.parametrize("size", range(16, 49))
def test_mirrored_at_every_size(student, size):
    """At an odd side both ends are padded."""
    images = np.random.default_rng(size).integers(0, 256, (2, size, size, 3), dtype=np.uint8)
    card = student.card.model_copy(update={"preprocess": Preprocess(size=size)})
    module = deploy_module(replace(student, card=card))
    with torch.no_grad():
        wanted = module(torch.from_numpy(to_input(images))).numpy()
    mirrored = NhwcModule(module, size).eval()
    answers = nhwc_answers(mirrored, to_input(images[:, ::-1, ::-1, ::-1], "float32", "NHWC"))
    np.testing.assert_allclose(answers, wanted, atol=ROUNDING)


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
    assert module.rows.divides and not module.mirrored
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


@pytest.fixture
def finished(tmp_path):
    """The recorded file of a precision as it is shipped."""
    pytest.importorskip("ai_edge_litert")

    def finish(precision):
        file = tmp_path / f"finished-{precision}.tflite"
        file.write_bytes((RECORDED / f"shufflenet-{precision}.tflite").read_bytes())
        litert_script.mirror(str(file))
        return file

    return finish


MIRRORED = pictures()[:, ::-1, ::-1, ::-1]


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_mirroring_takes_the_picture_as_it_is(precision, finished):
    files = RECORDED / f"shufflenet-{precision}.tflite", finished(precision)
    before, after = (load_model("litert", file) for file in files)
    np.testing.assert_allclose(after.answer(pictures()), before.answer(MIRRORED), atol=1e-6)


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_what_pads_pads_inside(precision, finished):
    kinds_before = [kind for kind, _ in graph_of(RECORDED / f"shufflenet-{precision}.tflite")[1]]
    kinds = [kind for kind, _ in graph_of(finished(precision))[1]]
    assert kinds_before.count("PAD") >= 4 and "PAD" not in kinds and "TRANSPOSE" not in kinds
    assert kinds[:3] == ["RESHAPE", "REVERSE_V2", "RESHAPE"]
    assert sorted(kinds[3:]) == sorted(kind for kind in kinds_before if kind not in ("PAD", "TRANSPOSE"))


def test_a_pad_of_zeros_stays_before_a_pool_of_numbers_that_may_be_negative(tmp_path, finished):
    from ai_edge_litert import schema_py_generated as schema
    from ai_edge_litert.tools import flatbuffer_utils

    file = tmp_path / "no-relu.tflite"
    model = flatbuffer_utils.read_model(str(RECORDED / "shufflenet-fp32.tflite"))
    (graph,) = model.subgraphs
    first = next(operator for operator, kind in litert_script._operators(model, graph) if kind == "CONV_2D")
    first.builtinOptions.fusedActivationFunction = schema.ActivationFunctionType.NONE
    flatbuffer_utils.write_model(model, str(file))
    before = load_model("litert", file).answer(MIRRORED)
    litert_script.mirror(str(file))
    assert [kind for kind, _ in graph_of(file)[1]].count("PAD") == 1
    np.testing.assert_allclose(load_model("litert", file).answer(pictures()), before, atol=1e-6)


def test_pads_that_litert_would_put_elsewhere_stay(tmp_path, monkeypatch):
    pytest.importorskip("ai_edge_litert")
    file = tmp_path / "other.tflite"
    file.write_bytes((RECORDED / "shufflenet-fp32.tflite").read_bytes())
    pads = [kind for kind, _ in graph_of(file)[1]].count("PAD")
    monkeypatch.setattr(litert_script, "_own_pads", lambda *_: (1, 0))
    litert_script._pad_inside(str(file))
    assert [kind for kind, _ in graph_of(file)[1]].count("PAD") == pads


@pytest.mark.parametrize(
    ("length", "pads"), [(112, (0, 1)), (56, (0, 1)), (7, (1, 1)), (3, (1, 1)), (2, (0, 1)), (1, (1, 1))]
)
def test_what_litert_pads(length, pads):
    assert litert_script._own_pads(length, 2, 3) == pads
    assert litert_script._own_pads(length, 1, 3) == (1, 1)


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
    np.testing.assert_allclose(load_model("litert", file).answer(MIRRORED), expected, atol=ROUNDING)


def test_what_is_handed_on_has_one_scale_and_the_picture_all_bytes():
    pytest.importorskip("ai_edge_litert")
    graph, operators = graph_of(RECORDED / "shufflenet-int8.tflite")
    scale = {index: tensor.quantization.scale for index, tensor in enumerate(graph.tensors) if tensor.quantization}
    handed_on = [(kind, operator) for kind, operator in operators if kind in litert_script.CARRIERS]
    assert {kind for kind, _ in handed_on} >= {"CONCATENATION", "SLICE", "PAD", "MAX_POOL_2D"}
    for kind, operator in handed_on:
        (given,) = operator.outputs
        for read in operator.inputs if kind == "CONCATENATION" else operator.inputs[:1]:
            assert scale[read] == scale[given]
    kinds = [kind for kind, _ in operators]
    assert kinds.count("QUANTIZE") == kinds.count("DEQUANTIZE") == 1
    (picture,) = [operator.outputs[0] for kind, operator in operators if kind == "QUANTIZE"]
    assert scale[picture] == pytest.approx([1 / 255])
    # The softmax is left to floats: eight bits of a probability are too few.
    assert kinds[-2:] == ["DEQUANTIZE", "SOFTMAX"]


def test_shared_ranges():
    pytest.importorskip("ai_edge_litert")
    file = RECORDED / "shufflenet-fp32.tflite"
    graph, operators = graph_of(file)
    rng = np.random.default_rng(0)
    ranges = {
        litert_script._name(graph, index): {"min": rng.uniform(0.1, 0.4, 1), "max": rng.uniform(0.6, 0.9, 1)}
        for index in range(len(graph.tensors))
    }
    before = {name: (one["min"].item(), one["max"].item()) for name, one in ranges.items()}
    litert_script._share(ranges, str(file))

    def of(index):
        one = ranges[litert_script._name(graph, index)]
        return one["min"].item(), one["max"].item()

    assert of(graph.inputs[0]) == (0, 1)
    for kind, operator in operators:
        if kind == "CONCATENATION":
            assert {of(index) for index in operator.inputs} == {of(operator.outputs[0])}
        lowest, highest = before[litert_script._name(graph, operator.outputs[0])]
        assert of(operator.outputs[0])[0] <= lowest and of(operator.outputs[0])[1] >= highest


def test_bytes_in_the_place_of_floats(tmp_path):
    """A file whose picture is already of eight bits, made from the recorded one by leaving out its first rounding."""
    pytest.importorskip("ai_edge_litert")
    from ai_edge_litert.tools import flatbuffer_utils

    recorded, file = RECORDED / "shufflenet-int8.tflite", tmp_path / "bytes.tflite"
    model = flatbuffer_utils.read_model(str(recorded))
    (graph,) = model.subgraphs
    first, *graph.operators = graph.operators
    graph.inputs = list(first.outputs)
    for signature in model.signatureDefs:
        signature.inputs[0].tensorIndex = first.outputs[0]
    flatbuffer_utils.write_model(model, str(file))
    litert_script._take_bytes(str(file))
    made = load_model("litert", file)
    assert made.dtype == "uint8"
    np.testing.assert_array_equal(made.answer(pictures()), load_model("litert", recorded).answer(pictures()))
    assert in_one_piece(file)
    wanted = made.answer(MIRRORED)
    # LiteRT keeps the file open.
    del made
    litert_script.mirror(str(file))
    assert in_one_piece(file)
    finished = load_model("litert", file)
    assert finished.dtype == "uint8"
    np.testing.assert_array_equal(finished.answer(pictures()), wanted)


def test_bytes_are_dequantised_and_not_cast(tmp_path):
    pytest.importorskip("ai_edge_litert")
    from ai_edge_litert import schema_py_generated as schema
    from ai_edge_litert.tools import flatbuffer_utils

    cast, file = tmp_path / "cast.tflite", tmp_path / "dequantised.tflite"
    model = flatbuffer_utils.read_model(str(RECORDED / "shufflenet-fp32.tflite"))
    (graph,) = model.subgraphs
    picture = copy.copy(graph.tensors[graph.inputs[0]])
    picture.name, picture.type = b"bytes", schema.TensorType.UINT8
    graph.tensors.append(picture)
    step = schema.OperatorT()
    step.opcodeIndex = litert_script._operator_code(model, schema.BuiltinOperator.CAST)
    step.inputs, step.outputs = [len(graph.tensors) - 1], list(graph.inputs)
    graph.operators, graph.inputs = [step, *graph.operators], list(step.inputs)
    model.signatureDefs[0].inputs[0].tensorIndex = step.inputs[0]
    flatbuffer_utils.write_model(model, str(cast))
    file.write_bytes(cast.read_bytes())
    litert_script._dequantise_bytes(str(file))
    assert next(kind for kind, _ in graph_of(file)[1]) == "DEQUANTIZE"
    before, after = (load_model("litert", one).answer(pictures()) for one in (cast, file))
    np.testing.assert_array_equal(after, before)
    assert in_one_piece(file) and not in_one_piece(cast)
    litert_script.mirror(str(file))
    assert in_one_piece(file)
    np.testing.assert_allclose(load_model("litert", file).answer(MIRRORED), before, atol=1e-6)


def in_one_piece(file):
    """XNNPACK takes the whole program, the reversal of the picture aside."""
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(str(file))
    interpreter.allocate_tensors()
    delegates = [one for one in interpreter._get_ops_details() if one["op_name"] == "DELEGATE"]
    (picture,), (answer,) = interpreter.get_input_details(), interpreter.get_output_details()
    _, operators = graph_of(file)
    reads = {picture["index"]}
    if operators[1][0] == "REVERSE_V2":
        reads = {operator.outputs[0] for _, operator in operators[1:3]}
    # One of two may be for the picture alone, before it is reversed.
    return len(delegates) <= 2 and any(
        answer["index"] in one["outputs"] and reads & set(one["inputs"]) for one in delegates
    )


def test_bytes_of_another_scale_are_refused(tmp_path):
    pytest.importorskip("ai_edge_litert")
    from ai_edge_litert.tools import flatbuffer_utils

    model = flatbuffer_utils.read_model(str(RECORDED / "shufflenet-int8.tflite"))
    (graph,) = model.subgraphs
    graph.inputs = list(graph.operators[0].outputs)
    graph.tensors[graph.inputs[0]].quantization.scale = [0.5]
    flatbuffer_utils.write_model(model, str(tmp_path / "odd.tflite"))
    with pytest.raises(ValueError, match=r"scale 0\.5 and zero point -128, not 1/255"):
        litert_script._take_bytes(str(tmp_path / "odd.tflite"))


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_xnnpack_takes_the_whole_program(precision, finished):
    assert in_one_piece(RECORDED / f"shufflenet-{precision}.tflite")
    assert in_one_piece(finished(precision))


# The runtime ---------------------------------------------------------------------------------------


def test_the_recorded_file_answers_as_the_student(expected, finished):
    model = load_model("litert", finished("fp32"))
    assert (model.dtype, model.layout) == ("float32", "NHWC")
    assert model.runtime.startswith("ai-edge-litert ")
    np.testing.assert_allclose(model.answer(pictures()), expected, atol=ROUNDING)


def test_the_recorded_int8_file_is_near(expected, finished):
    answers = load_model("litert", finished("int8")).answer(pictures())
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
    assert sys.executable in caught.value.message
    assert CONVERTER_PYTHON in caught.value.hint


def test_a_converter_that_fails_says_why(script, monkeypatch):
    monkeypatch.delenv(CONVERTER_PYTHON, raising=False)
    with pytest.raises(VerificationError, match="fails: RuntimeError: unsupported operator") as caught:
        run_converter(script("raise RuntimeError('unsupported operator')"))
    assert sys.executable in caught.value.message and "executorch" in caught.value.hint


def test_a_converter_that_is_killed(script):
    with pytest.raises(VerificationError, match="fails: it was ended by SIGKILL"):
        run_converter(script("import os, sys; print('a warning', file=sys.stderr); os.kill(os.getpid(), 9)"))


def test_an_empty_name_is_none(script, monkeypatch):
    monkeypatch.setenv(CONVERTER_PYTHON, "")
    assert run_converter(script("print('here')")) == "here\n"


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
    recorded, python = RECORDED / "shufflenet-fp32.tflite", tmp_path / "python"
    python.write_text(
        f"""#!/bin/sh
if test "$2" = versions; then echo '{{"litert-torch": "0.0", "ai-edge-litert": "9.0"}}'; exit; fi
test -s "$3" || exit 9
if test "$2" = mirror; then exec "{sys.executable}" "$1" mirror "$3"; fi
cp "{recorded}" "$4"
"""
    )
    python.chmod(0o755)
    monkeypatch.setenv(CONVERTER_PYTHON, str(python))


def test_from_a_student_to_a_measured_artifact(student, expected, stand_in_converter, tmp_path, monkeypatch):
    pytest.importorskip("ai_edge_litert")
    # Its widths are none that a library builds by name.
    monkeypatch.setattr("dspkd_export.export.load_student", lambda folder: student)
    images = Images(
        pictures(), np.arange(16) % 3, [f"image{i}" for i in range(16)], [f"lesion{i}" for i in range(16)], "val"
    )
    (made,) = export_student(tmp_path, targets=["litert"], precisions=["fp32"], out=tmp_path / "out", images=images)
    assert made.card.certificate["passed"] and made.card.certificate["n"] == 16
    assert made.card.input == {
        "name": "image",
        "shape": [1, SIZE, SIZE, 3],
        "dtype": "float32",
        "layout": "NHWC",
        "range": [0.0, 1.0],
    }
    assert made.card.details["converter"] == {"litert-torch": "0.0", "ai-edge-litert": "9.0"}
    assert any("golden answers repeat here" in check for check in verify(made.path).checks)
    subject = open_subject(made.path, threads=1)
    assert subject.name.endswith("LiteRT fp32")
    np.testing.assert_allclose(subject.run(subject.input_of(pictures())), expected, atol=ROUNDING)
    memory = measure_memory(made.path, threads=1)
    assert memory["increase_mib"] > 0
    with open_device("local") as device:
        checks = {check.name: check for check in check_machine(examine(device), "local", [made])}
    older = checks[f"{made.path} on ai-edge-litert"]
    assert (older.state, "made by 9.0" in older.found) == ("warning", True)
    assert checks["LiteRT's converter"].state in ("ok", "not needed")


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
    assert not {"PAD", "PADV2", "TRANSPOSE"} & set(kinds)
    assert precision == "fp16" or in_one_piece(tmp_path / MODEL_FILE)


@needs_converter
@pytest.mark.slow
@pytest.mark.parametrize("name", ["timm/resnet10t", "torchvision/mobilenet_v2"])
def test_other_networks_are_in_int8_from_the_picture_to_the_logits(name, tmp_path):
    pytest.importorskip("ai_edge_litert")
    network = student_of(name, tmp_path)
    size = network.card.preprocess.size
    pixels = np.random.default_rng(0).integers(0, 256, (12, size, size, 3), dtype=np.uint8)
    calibration = Calibration(pixels, [str(i) for i in range(12)])
    compiled = compile_litert(recording_job(network, tmp_path, "int8", calibration))
    kinds = [kind for kind, _ in graph_of(tmp_path / MODEL_FILE)[1]]
    assert kinds.count("QUANTIZE") == kinds.count("DEQUANTIZE") == 1
    difference = compiled.loaded[MODEL_FILE].answer(pixels) - student_classifier(network).run(pixels)
    assert np.abs(difference).mean() < 0.1
