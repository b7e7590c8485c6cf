"""TensorRT: what the kit holds, that every TensorRT builds it, and that an engine's answers arrive whole.

There is no GPU in these tests. Engines are built by tensorrt-rtx, which builds without one; the modules of TensorRT
8.6, 10 and 11 are fakes that have exactly the recorded names of the real ones; memory copies run through the real
cuda-python, PyCUDA and ctypes on a CUDA driver that keeps its memory on the host.
"""

import copy
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from lively import settle_batch_norms
from loopback_ssh import loopback, serve

from dspkd import tensorrt_device
from dspkd.artifact import load_artifact
from dspkd.devices import open_device
from dspkd.errors import DeviceError, UsageError
from dspkd.models import Architecture
from dspkd.preprocess import Preprocess
from dspkd.runtimes import load_model, to_input
from dspkd.student import StudentCard, load_student, save_student
from dspkd_export import TARGETS, export_student, verify
from dspkd_export.calibration import Calibration
from dspkd_export.certificate import Images
from dspkd_export.export import Target
from dspkd_export.job import ExportJob
from dspkd_export.onnx_target import build_onnx
from dspkd_export.tensorrt_target import build_engine, compile_tensorrt

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")
__all__ = ["loopback"]

HERE = Path(__file__).resolve().parent
SCRIPT = Path(tensorrt_device.__file__)
SURFACES = {version: HERE / "data" / f"tensorrt_api_{version}.json" for version in ("8_6", "10", "11")}
PRECISIONS = ("fp32", "fp16", "int8")
SIZE, CLASSES = 32, ("A", "B", "C")
# Found and not imported, which needs a driver.
PYCUDA = [
    library
    for spec in [importlib.util.find_spec("pycuda")]
    if spec is not None and spec.origin is not None
    for library in Path(spec.origin).parent.glob("_driver*.so")
]
KIT = {"model.onnx", "build_engine.py", "README.md"}


def pythons():
    """{version: command} of the Pythons of JetPack 5, 6 and 7 that are installed here."""
    found = {}
    for version in ("3.8", "3.10", "3.12"):
        installed = sorted(Path.home().glob(f".pyenv/versions/{version}.*/bin/python"))
        candidates = [*installed, shutil.which(f"python{version}")]
        for command in filter(None, candidates):
            done = subprocess.run([command, "--version"], capture_output=True, text=True)
            if done.stdout.startswith(f"Python {version}."):
                found[version] = command
                break
    return found


PYTHONS = pythons()


def script(*arguments, python=sys.executable, cwd=None, **environment):
    return subprocess.run(
        [python, SCRIPT, *map(str, arguments)],
        capture_output=True,
        text=True,
        cwd=cwd,
        env={**os.environ, **{name: str(value) for name, value in environment.items()}},
    )


def assert_one_line_error(done, *named):
    assert done.returncode == 1
    assert done.stderr.startswith("error: ")
    assert len(done.stderr.strip().splitlines()) == 1
    for text in named:
        assert text in done.stderr


@pytest.fixture(scope="module")
def student(tmp_path_factory):
    torch.manual_seed(5)
    model = Architecture("torchvision/shufflenet_v2_x0_5").build(len(CLASSES))
    images = torch.from_numpy((to_input(pictures(60, seed=0)) - 0.45) / 0.225)
    settle_batch_norms(model, images)
    with torch.no_grad():
        # So that every class is answered, none with certainty.
        logits = model(images)
        model.fc.bias.copy_((model.fc.bias - logits.mean(0)) / logits.std(0))
        model.fc.weight /= logits.std(0)[:, None]
    card = StudentCard(
        role="student",
        architecture="torchvision/shufflenet_v2_x0_5",
        classes=CLASSES,
        preprocess=Preprocess(size=SIZE),
    )
    folder = tmp_path_factory.mktemp("student")
    save_student(folder, model, card)
    return load_student(folder)


def pictures(count, *, seed):
    """Smooth colours with some noise, uint8 (count, SIZE, SIZE, 3)."""
    rng = np.random.default_rng(seed)
    colours = rng.integers(40, 215, (count, 1, 1, 3))
    return np.clip(colours + rng.integers(-40, 40, (count, SIZE, SIZE, 3)), 0, 255).astype(np.uint8)


def a_job(student, folder, precision, **more):
    pixels = pictures(12, seed=1)
    return ExportJob(student, folder, precision, calibration=Calibration(pixels, [f"c{i}" for i in range(12)]), **more)


@pytest.fixture
def no_tensorrt(tmp_path, monkeypatch):
    hide_tensorrt(tmp_path, monkeypatch)


def hide_tensorrt(folder, patch):
    """Also on a machine that has it."""
    (folder / "tensorrt.py").write_text("raise ImportError('no TensorRT in this test')\n")
    patch.setenv("PYTHONPATH", str(folder))


@pytest.fixture(scope="module")
def kits(student, tmp_path_factory):
    """{precision: (folder, what the compiler says, the model before TensorRT's needs)}, without TensorRT here."""
    exported = []

    def record(*arguments, **options):
        exported.append(build_onnx(*arguments, **options))
        return copy.deepcopy(exported[-1])

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("dspkd_export.tensorrt_target.build_onnx", record)
        hide_tensorrt(tmp_path_factory.mktemp("hidden"), patch)
        made = {}
        for precision in PRECISIONS:
            folder = tmp_path_factory.mktemp(precision)
            compiled = compile_tensorrt(a_job(student, folder, precision))
            made[precision] = folder, compiled, exported[-1]
    return made


@pytest.fixture
def exported(kits, monkeypatch):
    """Compiling does not export again what `kits` has."""
    target = "dspkd_export.tensorrt_target.build_onnx"
    monkeypatch.setattr(target, lambda job, **_: copy.deepcopy(kits[job.precision][2]))


def facts_of(model_file):
    """What the onnx package says of a file, in the words of the fake."""
    model = onnx.load(model_file)

    def entry(value):
        shape = [d.dim_value if d.HasField("dim_value") else -1 for d in value.type.tensor_type.shape.dim]
        kind = {onnx.TensorProto.FLOAT: "FLOAT", onnx.TensorProto.UINT8: "UINT8"}[value.type.tensor_type.elem_type]
        return {"name": value.name, "shape": shape, "dtype": kind}

    return {
        "inputs": [entry(value) for value in model.graph.input],
        "outputs": [entry(value) for value in model.graph.output],
        "half": any(w.data_type == onnx.TensorProto.FLOAT16 for w in model.graph.initializer),
        "quantised": any(node.op_type == "QuantizeLinear" for node in model.graph.node),
        "layers": len(model.graph.node),
        "unsupported": {},
    }


def fake_tensorrt(folder, surface, model, execute="row_sums"):
    """Make `folder` a place to import tensorrt from. Returns the settings, which may be changed and written again."""
    settings = {
        "surface": str(SURFACES[surface]),
        "calls": str(folder / "calls"),
        "execute": execute,
        "model": model,
    }
    (folder / "settings.json").write_text(json.dumps(settings))
    (folder / "tensorrt.py").write_text(
        f"import sys\nsys.path.append({str(HERE)!r})\nimport fake_tensorrt\n"
        f"fake_tensorrt.install(globals(), {str(folder / 'settings.json')!r})\n"
    )
    return settings


def calls_in(folder):
    lines = (folder / "calls").read_text().splitlines() if (folder / "calls").exists() else []
    return [json.loads(line) for line in lines]


def arguments_of(folder, method):
    return [call[1:] for call in calls_in(folder) if call[0] == method]


# The kit -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("precision", PRECISIONS)
def test_without_a_gpu_there_is_a_kit_and_a_sentence(kits, precision):
    folder, compiled, _ = kits[precision]
    assert {path.name for path in folder.iterdir()} == KIT
    assert (folder / "build_engine.py").read_bytes() == SCRIPT.read_bytes()
    assert "python3 build_engine.py build" in (folder / "README.md").read_text()
    assert compiled.models == ("model.onnx",)
    assert compiled.loaded == {}
    assert "no TensorRT in this test" in compiled.not_run
    assert "--device ssh://host" in compiled.not_run
    assert set(compiled.stand_in) == {"model.onnx"}


@pytest.mark.parametrize("precision", PRECISIONS)
def test_the_model_is_one_that_old_parsers_read(kits, precision):
    model = onnx.load(kits[precision][0] / "model.onnx")
    onnx.checker.check_model(model)
    assert [(entry.domain, entry.version) for entry in model.opset_import] == [("", 18)]
    assert model.ir_version == 8
    assert "ReduceMean" not in {node.op_type for node in model.graph.node}
    assert json.loads({p.key: p.value for p in model.metadata_props}["dspkd.classes"]) == list(CLASSES)
    for value in (*model.graph.input, *model.graph.output):
        assert value.type.tensor_type.elem_type == onnx.TensorProto.FLOAT
        assert value.type.tensor_type.shape.dim[0].dim_param == "batch"


def test_a_pool_answers_as_the_mean_did(kits):
    images, mean = to_input(pictures(5, seed=2)), kits["fp32"][2]
    assert "ReduceMean" in {node.op_type for node in mean.graph.node}
    session = onnxruntime.InferenceSession(mean.SerializeToString(), providers=["CPUExecutionProvider"])
    got = kits["fp32"][1].stand_in["model.onnx"].run(images)
    np.testing.assert_allclose(got, session.run(None, {"image": images})[0], atol=1e-6)


def test_int8_is_what_tensorrt_takes(kits):
    model = onnx.load(kits["int8"][0] / "model.onnx")
    constants = {w.name: onnx.numpy_helper.to_array(w) for w in model.graph.initializer}
    producers = {name: node for node in model.graph.node for name in node.output}
    quantisers = [n for n in model.graph.node if n.op_type in ("QuantizeLinear", "DequantizeLinear")]
    assert len(quantisers) > 100
    for node in quantisers:
        zero_points = constants[node.input[2]]
        assert zero_points.dtype == np.int8, node.name
        assert not zero_points.any(), node.name
    convolutions = [node for node in model.graph.node if node.op_type == "Conv"]
    assert len(convolutions) > 50
    for node in convolutions:
        image, weight, bias = (producers.get(name) for name in node.input)
        assert image.op_type == weight.op_type == "DequantizeLinear"
        assert constants[weight.input[0]].dtype == np.int8
        channels = constants[weight.input[0]].shape[0]
        assert constants[weight.input[1]].shape == (channels,), "one scale for each channel"
        assert bias is None
        assert constants[node.input[2]].dtype == np.float32
    # Between a convolution and its activation nothing may stand that prevents their fusion.
    behind = {n.op_type for n in model.graph.node if any(producers.get(i) in convolutions for i in n.input)}
    assert "Relu" in behind
    for node in quantisers:
        if node.op_type == "QuantizeLinear":
            following = [n for n in model.graph.node if node.output[0] in n.input]
            weighted = [n for f in following for n in model.graph.node if f.output[0] in n.input]
            assert {n.op_type for n in weighted} <= {"Conv", "Gemm"}


def test_fp16_is_half_between_float_ends(kits):
    model = onnx.load(kits["fp16"][0] / "model.onnx")
    weights = [w for w in model.graph.initializer if len(w.dims) == 4 and w.dims[0] > 1]
    assert {w.data_type for w in weights} == {onnx.TensorProto.FLOAT16}
    first, last = model.graph.node[0], model.graph.node[-1]
    assert first.op_type in ("Sub", "Div", "Cast")
    assert last.op_type in ("Softmax", "Cast")


def test_the_stand_in_is_certified_and_the_artifact_verifies(student, tmp_path, monkeypatch, no_tensorrt, exported):
    monkeypatch.setitem(TARGETS, "tensorrt", Target(compile_tensorrt, PRECISIONS, "batch", ("onnx",)))
    pixels = pictures(30, seed=3)
    labels = answers_of(student, pixels)
    images = Images(pixels, labels, [f"v{i}" for i in range(30)], [str(i) for i in range(30)], "thirty pictures")
    calibration = Calibration(pictures(12, seed=1), [f"c{i}" for i in range(12)])
    made = export_student(
        student.path,
        targets=["tensorrt"],
        precisions=["fp32", "int8"],
        out=tmp_path / "out",
        images=images,
        calibration=calibration,
        margin=1.0,
    )
    for artifact in made:
        certificate = load_artifact(artifact.path).card.certificate
        assert certificate["passed"] is None
        assert "no TensorRT with a GPU" in certificate["not_run"]
        assert certificate["stand_in"]["passed"] is True
        assert certificate["stand_in"]["max_abs_difference"] > 0.0
        assert certificate["stand_in"]["runtime"].startswith("onnxruntime ")
        assert set(artifact.card.files) == KIT | {"golden.npz"}
        assert any("not certified" in check for check in verify(artifact.path).checks)
    assert made[0].card.certificate["stand_in"]["max_abs_difference"] < 1e-4


def answers_of(student, pixels):
    mean, std = student.card.preprocess.mean, student.card.preprocess.std
    normalised = ((to_input(pixels).transpose(0, 2, 3, 1) - mean) / std).transpose(0, 3, 1, 2)
    with torch.no_grad():
        labels = student.model(torch.from_numpy(normalised.astype(np.float32))).argmax(1).numpy()
    assert len(np.unique(labels)) > 1
    return labels


def test_the_same_student_gives_the_same_kit(kits, student, tmp_path, no_tensorrt):
    folder = tmp_path / "again"
    folder.mkdir()
    compile_tensorrt(a_job(student, folder, "int8"))
    for name in KIT:
        assert (folder / name).read_bytes() == (kits["int8"][0] / name).read_bytes(), name


def test_no_file_of_a_kit_knows_where_it_was_made(kits, student):
    traces = [HERE.parents[1], Path.home(), Path(torch.__file__).parents[1], student.path, kits["fp32"][0]]
    for folder, *_ in kits.values():
        for file in folder.iterdir():
            assert [t for t in traces if str(t).encode() in file.read_bytes()] == [], file


# The script ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", ["3.8", "3.10", "3.12"])
def test_the_script_starts_on_the_pythons_of_jetpack(version):
    if version not in PYTHONS:
        pytest.skip(f"no Python {version} here")
    done = script("build", "--help", python=PYTHONS[version])
    assert done.returncode == 0, done.stderr
    assert "--opt-batch" in done.stdout
    probed = script("probe", python=PYTHONS[version], PYTHONPATH="")
    assert json.loads(probed.stdout)["python"].startswith(version)


def test_the_script_imports_nothing_but_the_standard_library():
    code = f"import sys; sys.path.insert(0, {str(SCRIPT.parent)!r}); import tensorrt_device; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-I", "-c", code], capture_output=True, text=True, check=True)
    loaded = {name.partition(".")[0] for name in done.stdout.split()}
    assert loaded.isdisjoint({"numpy", "torch", "dspkd", "cuda", "pycuda", "onnx", "tensorrt"})


@pytest.mark.parametrize("precision", PRECISIONS)
def test_the_script_reads_onnx_as_the_onnx_package_does(kits, precision):
    file = kits[precision][0] / "model.onnx"
    facts, model = tensorrt_device.read_onnx(file), onnx.load(file)
    assert facts.nodes == [(node.op_type, node.name) for node in model.graph.node]
    assert [entry._asdict() for entry in facts.inputs] == [
        {"name": "image", "dtype": "float32", "shape": (-1, 3, SIZE, SIZE)}
    ]
    assert [entry._asdict() for entry in facts.outputs] == [
        {"name": "probabilities", "dtype": "float32", "shape": (-1, len(CLASSES))}
    ]
    assert facts.flags == {"fp32": [], "fp16": ["FP16"], "int8": ["INT8"]}[precision]


@pytest.mark.parametrize("damage", ["truncated", "text", "empty", "missing"])
def test_what_is_no_onnx_file_is_named(kits, tmp_path, damage):
    content = (kits["fp32"][0] / "model.onnx").read_bytes()
    damaged = {"truncated": content[: len(content) // 2], "text": b"hello, world", "empty": b""}
    file = tmp_path / "broken.onnx"
    if damage in damaged:
        file.write_bytes(damaged[damage])
    done = script("build", "--onnx", file, cwd=tmp_path)
    assert_one_line_error(done, "broken.onnx")
    assert {p.name for p in tmp_path.iterdir()} <= {"broken.onnx"}


# Building with tensorrt-rtx ------------------------------------------------------------------------------------------


def build_with_rtx(folder, onnx_file, *options):
    pytest.importorskip("tensorrt_rtx", reason="tensorrt-rtx is not installed")
    arguments = ["--trt-module", "tensorrt_rtx", "--compute-capability", "SM86"]
    return script("build", "--onnx", onnx_file, *arguments, *options, cwd=folder)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_tensorrt_rtx_builds_every_precision(kits, tmp_path, precision):
    done = build_with_rtx(tmp_path, kits[precision][0] / "model.onnx", "--opt-batch", 4, "--max-batch", 16)
    assert done.returncode == 0, done.stderr
    assert {p.name for p in tmp_path.iterdir()} == {"model.engine", "build.log", "build.json"}
    report, engine = json.loads((tmp_path / "build.json").read_text()), tmp_path / "model.engine"
    assert report["engine_bytes"] == engine.stat().st_size > 100_000
    assert report["engine_sha256"] == tensorrt_device.sha256(engine)
    assert report["onnx_sha256"] == tensorrt_device.sha256(kits[precision][0] / "model.onnx")
    assert report["network_flags"] == ["STRONGLY_TYPED"]
    assert report["builder_flags"] == []
    assert report["cleared_flags"] == ["TF32"]
    assert report["inputs"] == [{"name": "image", "shape": [-1, 3, SIZE, SIZE], "dtype": "float32"}]
    assert report["outputs"] == [{"name": "probabilities", "shape": [-1, len(CLASSES)], "dtype": "float32"}]
    assert report["profile"] == {"image": [[batch, 3, SIZE, SIZE] for batch in (1, 4, 16)]}
    assert report["layers"] > 50
    assert "Engine generation completed" in (tmp_path / "build.log").read_text()


def test_tensorrt_rtx_names_the_node_that_it_does_not_take(tmp_path):
    helper = onnx.helper
    graph = helper.make_graph(
        [
            helper.make_node("Relu", ["image"], ["a"], name="first"),
            helper.make_node("Bernoulli", ["a"], ["b"], name="dice"),
            helper.make_node("Relu", ["b"], ["probabilities"], name="last"),
        ],
        "test",
        [helper.make_tensor_value_info("image", onnx.TensorProto.FLOAT, [1, 3])],
        [helper.make_tensor_value_info("probabilities", onnx.TensorProto.FLOAT, [1, 3])],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8), tmp_path / "x.onnx")
    done = build_with_rtx(tmp_path, "x.onnx")
    assert_one_line_error(done, "x.onnx: node 1 (Bernoulli 'dice'): not supported\n")
    assert not (tmp_path / "model.engine").exists()


def test_tensorrt_rtx_and_an_unknown_gpu(kits, tmp_path):
    done = build_with_rtx(tmp_path, kits["fp32"][0] / "model.onnx", "SM01")
    assert_one_line_error(done, "unknown --compute-capability SM01", "SM86")
    assert not (tmp_path / "model.engine").exists()


# Building with the recorded TensorRT 8.6, 10 and 11 -------------------------------------------------------------------


@pytest.fixture
def old_python():
    if "3.8" not in PYTHONS:
        pytest.skip("no Python 3.8 here")
    return PYTHONS["3.8"]


def test_the_recorded_versions_differ_where_it_matters():
    recorded = {version: json.loads(file.read_text()) for version, file in SURFACES.items()}
    assert [r["version"].split(".")[0] for r in recorded.values()] == ["8", "10", "11"]
    flags = {v: set(r["enums"]["NetworkDefinitionCreationFlag"]) for v, r in recorded.items()}
    assert {v: sorted(f & {"EXPLICIT_BATCH", "STRONGLY_TYPED"}) for v, f in flags.items()} == {
        "8_6": ["EXPLICIT_BATCH"],
        "10": ["EXPLICIT_BATCH", "STRONGLY_TYPED"],
        "11": ["STRONGLY_TYPED"],
    }
    assert ["FP16" in r["enums"]["BuilderFlag"] for r in recorded.values()] == [True, True, False]
    parser = {v: r["classes"]["OnnxParser"] for v, r in recorded.items()}
    assert {v: ("supports_model" in p, "supports_model_v2" in p) for v, p in parser.items()} == {
        "8_6": (True, False),
        "10": (True, True),
        "11": (False, True),
    }


@pytest.mark.parametrize("version", SURFACES)
@pytest.mark.parametrize("precision", PRECISIONS)
def test_every_tensorrt_gets_the_flags_that_it_knows(kits, tmp_path, old_python, version, precision):
    file = kits[precision][0] / "model.onnx"
    fake_tensorrt(tmp_path, version, facts_of(file))
    done = script("build", "--onnx", file, "--workspace-mib", 64, python=old_python, cwd=tmp_path, PYTHONPATH=tmp_path)
    assert done.returncode == 0, done.stderr
    needed = {"fp32": [], "fp16": ["FP16"], "int8": ["INT8"]}[precision]
    report = json.loads((tmp_path / "build.json").read_text())
    assert report["builder_flags"] == (needed if version == "8_6" else [])
    assert report["tensorrt"] == json.loads(SURFACES[version].read_text())["version"]
    assert report["python"].startswith("3.8")
    assert (tmp_path / "model.engine").read_bytes().endswith(file.read_bytes())
    (limit,) = arguments_of(tmp_path, "IBuilderConfig.set_memory_pool_limit")
    assert limit == ["<MemoryPoolType.WORKSPACE: 0>", str(64 << 20)]
    assert not any("alibrat" in call[0] for call in calls_in(tmp_path))
    header = json.loads((tmp_path / "model.engine").read_bytes().partition(b"\n")[0])
    assert header["tf32"] is False
    assert header["profile"] == {"image": [[1, 3, SIZE, SIZE], [1, 3, SIZE, SIZE], [32, 3, SIZE, SIZE]]}


def test_the_fakes_refuse_what_the_real_ones_do(kits, tmp_path, monkeypatch):
    """Otherwise the tests above would prove nothing."""
    monkeypatch.syspath_prepend(str(HERE))
    import fake_tensorrt as fakes

    for version in SURFACES:
        fake_tensorrt(tmp_path, version, facts_of(kits["int8"][0] / "model.onnx"))
        trt = {}
        fakes.install(trt, tmp_path / "settings.json")

        class Quiet(trt["ILogger"]):
            def log(self, severity, msg):
                pass

        builder = trt["Builder"](Quiet())
        with pytest.raises(TypeError, match="create_network"):
            builder.create_network("EXPLICIT_BATCH")
        config, network = builder.create_builder_config(), builder.create_network(0)
        with pytest.raises(TypeError, match="set_flag"):
            config.set_flag("INT8")
        with pytest.raises(TypeError, match="incompatible function arguments"):
            config.set_memory_pool_limit(64)
        with pytest.raises(AttributeError, match="no_such_name"):
            config.no_such_name = 1
        with pytest.raises(TypeError, match="parse"):
            trt["OnnxParser"](network, Quiet()).parse("model.onnx")
        assert builder.build_serialized_network(network, config) is None
        assert hasattr(trt["BuilderFlag"], "INT8") is (version != "11")
        assert hasattr(config, "int8_calibrator") is False if version == "11" else True


@pytest.mark.parametrize("version", SURFACES)
def test_every_node_that_is_not_supported_is_named(kits, tmp_path, old_python, version):
    file = kits["fp32"][0] / "model.onnx"
    nodes = onnx.load(file).graph.node
    model = facts_of(file) | {"unsupported": {"2": "no such plugin\nsecond line", "5": "bad axis"}}
    fake_tensorrt(tmp_path, version, model)
    done = script("build", "--onnx", file, python=old_python, cwd=tmp_path, PYTHONPATH=tmp_path)
    # TensorRT 8.6 gives the reason of the first only.
    second = "not supported" if version == "8_6" else "bad axis"
    assert_one_line_error(
        done,
        f"{file}: node 2 ({nodes[2].op_type} {nodes[2].name!r}): no such plugin; "
        f"node 5 ({nodes[5].op_type} {nodes[5].name!r}): {second}\n",
    )
    assert not (tmp_path / "model.engine").exists()
    assert (tmp_path / "build.log").exists()


@pytest.mark.parametrize("version", SURFACES)
def test_a_timing_cache_is_used_again_unless_it_is_anothers(kits, tmp_path, version):
    file = kits["fp32"][0] / "model.onnx"
    fake_tensorrt(tmp_path, version, facts_of(file))

    def build():
        done = script("build", "--onnx", file, "--timing-cache", "cache", cwd=tmp_path, PYTHONPATH=tmp_path)
        assert done.returncode == 0, done.stderr
        return (tmp_path / "cache").read_bytes()

    first = build()
    assert first.endswith(b"+timings")
    assert build() == first + b"+timings"
    (tmp_path / "cache").write_bytes(b"of another version")
    assert build() == first


def test_batches_out_of_order_are_refused(kits, tmp_path):
    done = script("build", "--onnx", kits["fp32"][0] / "model.onnx", "--opt-batch", 64, cwd=tmp_path)
    assert_one_line_error(done, "batches 1, 64, 32", "1 <= min <= opt <= max")


def test_only_tensorrt_rtx_builds_for_another_gpu(kits, tmp_path):
    file = kits["fp32"][0] / "model.onnx"
    fake_tensorrt(tmp_path, "11", facts_of(file))
    arguments = ["build", "--onnx", file, "--compute-capability", "SM86"]
    done = script(*arguments, cwd=tmp_path, PYTHONPATH=tmp_path)
    assert_one_line_error(done, "leave --compute-capability out")


def test_without_tensorrt_the_error_says_what_to_install(kits, tmp_path, no_tensorrt):
    done = script("build", "--onnx", kits["fp32"][0] / "model.onnx", cwd=tmp_path)
    assert_one_line_error(done, "no TensorRT in this test", "python3-libnvinfer", "--trtexec")


# Building with trtexec -----------------------------------------------------------------------------------------------

SWITCHES = {
    "8.6": "--onnx=<file> --saveEngine=<file> --minShapes=spec --optShapes=spec --maxShapes=spec --fp16 --int8 --best "
    "--noTF32 --memPoolSize=poolspec --timingCacheFile=<file> --buildOnly --skipInference",
    "10": "--onnx=<file> --saveEngine=<file> --minShapes=spec --optShapes=spec --maxShapes=spec --fp16 --int8 "
    "--stronglyTyped --noTF32 --memPoolSize=poolspec --timingCacheFile=<file> --skipInference",
    "11": "--onnx=<file> --saveEngine=<file> --minShapes=spec --optShapes=spec --maxShapes=spec "
    "--noTF32 --memPoolSize=poolspec --timingCacheFile=<file> --skipInference",
}


def fake_trtexec(folder, version, code=0):
    program = folder / "trtexec"
    program.write_text(
        f"#!{sys.executable}\nimport json, sys\n"
        f"if '--help' in sys.argv:\n    print({SWITCHES[version]!r}.replace(' ', chr(10)))\n    sys.exit(0)\n"
        f"json.dump(sys.argv[1:], open({str(folder / 'argv')!r}, 'w'))\n"
        "print('&&&& RUNNING TensorRT.trtexec [TensorRT v8601] # trtexec')\n"
        f"if {code}:\n    print('[E] Error[4]: it cannot be')\n    sys.exit({code})\n"
        "plan = next(a for a in sys.argv if a.startswith('--saveEngine=')).partition('=')[2]\n"
        "open(plan, 'wb').write(b'a plan')\n"
    )
    program.chmod(0o755)
    return program


@pytest.mark.parametrize(("version", "precision"), [("8.6", "fp16"), ("8.6", "int8"), ("10", "int8"), ("11", "fp16")])
def test_trtexec_gets_the_switches_that_it_offers(kits, tmp_path, version, precision):
    program, file = fake_trtexec(tmp_path, version), kits[precision][0] / "model.onnx"
    done = script("build", "--onnx", file, "--trtexec", program, "--workspace-mib", 64, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "model.engine").read_bytes() == b"a plan"
    argv = json.loads((tmp_path / "argv").read_text())
    offered = SWITCHES[version].split()
    assert all(any(a.partition("=")[0] == o.partition("=")[0] for o in offered) for a in argv)
    assert ("--stronglyTyped" in argv) is (version == "10")
    assert [a for a in argv if a in ("--fp16", "--int8")] == ([f"--{precision}"] if version == "8.6" else [])
    assert f"--minShapes=image:1x3x{SIZE}x{SIZE}" in argv
    assert f"--maxShapes=image:32x3x{SIZE}x{SIZE}" in argv
    assert {"--noTF32", "--skipInference", "--memPoolSize=workspace:64"} <= set(argv)
    report = json.loads((tmp_path / "build.json").read_text())
    assert (report["builder"], report["tensorrt"]) == ("trtexec", "8601")
    assert str(tmp_path) not in (tmp_path / "build.json").read_text()


def test_trtexec_that_fails_says_why(kits, tmp_path):
    program = fake_trtexec(tmp_path, "11", code=1)
    done = script("build", "--onnx", kits["fp32"][0] / "model.onnx", "--trtexec", program, cwd=tmp_path)
    assert_one_line_error(done, "it cannot be", "build.log")
    assert not (tmp_path / "model.engine").exists()
    missing = script("build", "--onnx", kits["fp32"][0] / "model.onnx", "--trtexec", "/no/trtexec", cwd=tmp_path)
    assert_one_line_error(missing, "/no/trtexec cannot be run")


# Running -------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def host_cuda(tmp_path_factory):
    """A folder with libcuda and libcudart whose device memory lies on the host, for LD_LIBRARY_PATH."""
    if shutil.which("gcc") is None or shutil.which("nm") is None:
        pytest.skip("no gcc here to compile the CUDA driver of the tests")
    folder = tmp_path_factory.mktemp("cuda")
    library, sources = folder / "libcuda.so.1", [HERE / "data" / "host_cuda.c"]
    compiler = ["gcc", "-w", "-shared", "-fPIC", "-Wl,-soname,libcuda.so.1", "-o", library]
    subprocess.run([*compiler, *sources, "-ldl"], check=True)
    for pycuda in PYCUDA:
        # It links to the whole driver API; what it never calls here only has to exist.
        wanted, had = symbols(pycuda, "--undefined-only"), symbols(library, "--defined-only")
        (folder / "rest.c").write_text("\n".join(f"int {s}(void) {{ return 801; }}" for s in sorted(wanted - had)))
        subprocess.run([*compiler, *sources, folder / "rest.c", "-ldl"], check=True)
    shutil.copy(library, folder / "libcudart.so")
    return folder


def symbols(library, which):
    listed = subprocess.run(["nm", "-D", which, library], capture_output=True, text=True, check=True).stdout
    return {line.split()[-1].partition("@")[0] for line in listed.splitlines() if re.search(r" cu[A-Z]", line)}


@pytest.fixture(params=["cuda", "pycuda", "ctypes"])
def buffers(request):
    if request.param == "cuda":
        pytest.importorskip("cuda.bindings", reason="cuda-python is not installed")
    if request.param == "pycuda" and not PYCUDA:
        pytest.skip("pycuda is not installed")
    return request.param


def row_sums(pixels):
    images = pixels.astype(np.float64) / (255.0 if pixels.dtype == np.uint8 else 1.0)
    return images.reshape(len(images), -1).sum(1)[:, None] * np.arange(1, len(CLASSES) + 1)


def an_engine(folder, version, shape, dtype="FLOAT", largest=8):
    """An engine of the fake, for images of `shape`, in `folder`."""
    answers = [shape[0], len(CLASSES)]
    model = {
        "inputs": [{"name": "image", "shape": shape, "dtype": dtype}],
        "outputs": [{"name": "probabilities", "shape": answers, "dtype": "FLOAT"}],
    }
    fake_tensorrt(folder, version, model)
    profile = {"image": [[batch, *shape[1:]] for batch in (1, 1, largest)]} if shape[0] == -1 else {}
    header = {"version": json.loads(SURFACES[version].read_text())["version"], "profile": profile}
    (folder / "model.engine").write_bytes(json.dumps(header).encode() + b"\n")


def run_script(folder, host_cuda, images, *options):
    np.save(folder / "x.npy", images)
    arguments = ["run", "--inputs", "x.npy", "--outputs", "y.npy", "--report", "run.json", *options]
    return script(*arguments, cwd=folder, PYTHONPATH=folder, LD_LIBRARY_PATH=host_cuda)


@pytest.mark.parametrize("version", SURFACES)
def test_answers_come_back_whole_through_every_kind_of_buffer(tmp_path, host_cuda, buffers, version):
    an_engine(tmp_path, version, [-1, 3, SIZE, SIZE])
    pixels = pictures(21, seed=4)
    done = run_script(tmp_path, host_cuda, pixels, "--buffers", buffers)
    assert done.returncode == 0, done.stderr
    answers = np.load(tmp_path / "y.npy")
    assert answers.dtype == np.float32
    np.testing.assert_allclose(answers, row_sums(pixels), rtol=1e-5)
    # 21 images in batches of 8: the last one is smaller.
    batches = [eval_shape(call[1])[0] for call in arguments_of(tmp_path, "IExecutionContext.set_input_shape")]
    assert batches == [8, 8, 5]
    report = json.loads((tmp_path / "run.json").read_text())
    assert (report["gpu"], report["images"]) == ("Host Memory GPU", 21)
    assert report["buffers"] == {"cuda": "cuda.bindings"}.get(buffers, buffers)


def eval_shape(text):
    return tuple(int(size) for size in re.findall(r"\d+", text))


def test_float_images_and_a_smaller_batch(tmp_path, host_cuda, buffers):
    an_engine(tmp_path, "10", [-1, 3, SIZE, SIZE])
    images = to_input(pictures(7, seed=5))
    done = run_script(tmp_path, host_cuda, images, "--buffers", buffers, "--batch", 3)
    assert done.returncode == 0, done.stderr
    np.testing.assert_allclose(np.load(tmp_path / "y.npy"), row_sums(images), rtol=1e-5)
    batches = [eval_shape(call[1])[0] for call in arguments_of(tmp_path, "IExecutionContext.set_input_shape")]
    assert batches == [3, 3, 1]


def test_a_fixed_batch_is_filled_up(tmp_path, host_cuda, buffers):
    an_engine(tmp_path, "10", [4, 3, SIZE, SIZE])
    pixels = pictures(6, seed=6)
    done = run_script(tmp_path, host_cuda, pixels, "--buffers", buffers)
    assert done.returncode == 0, done.stderr
    np.testing.assert_allclose(np.load(tmp_path / "y.npy"), row_sums(pixels), rtol=1e-5)


def test_an_engine_that_takes_bytes_gets_them(tmp_path, host_cuda, buffers):
    an_engine(tmp_path, "11", [-1, SIZE, SIZE, 3], dtype="UINT8")
    pixels = pictures(9, seed=7)
    done = run_script(tmp_path, host_cuda, pixels, "--buffers", buffers)
    assert done.returncode == 0, done.stderr
    np.testing.assert_allclose(np.load(tmp_path / "y.npy"), row_sums(pixels) * 255.0, rtol=1e-5)


def test_what_cannot_be_run_is_one_line(tmp_path, host_cuda):
    an_engine(tmp_path, "10", [-1, 3, SIZE, SIZE])
    wrong = run_script(tmp_path, host_cuda, np.zeros((2, 3, 8, 8), np.float32))
    assert_one_line_error(wrong, "float32 (3, 8, 8)", f"(3, {SIZE}, {SIZE})")
    double = run_script(tmp_path, host_cuda, np.zeros((2, 3, SIZE, SIZE)))
    assert_one_line_error(double, "float64")
    pickled = run_script(tmp_path, host_cuda, np.array([{}], dtype=object))
    assert_one_line_error(pickled, "x.npy cannot be read")
    none = run_script(tmp_path, host_cuda, np.zeros((0, 3, SIZE, SIZE), np.float32))
    assert_one_line_error(none, "no images")
    absent = run_script(tmp_path, host_cuda, pictures(1, seed=0), "--engine", "absent.engine")
    assert_one_line_error(absent, "absent.engine does not exist")
    content = (tmp_path / "model.engine").read_bytes()
    (tmp_path / "model.engine").write_bytes(content.replace(b"10.3.0", b"10.2.0"))
    other = run_script(tmp_path, host_cuda, pictures(1, seed=0))
    assert_one_line_error(other, "model.engine does not load", "not compatible with this version", "build it on this")
    assert not (tmp_path / "y.npy").exists()


def test_without_a_driver_every_way_is_named(tmp_path):
    an_engine(tmp_path, "10", [-1, 3, SIZE, SIZE])
    empty = tmp_path / "empty"
    empty.mkdir()
    for name in ("libcudart.so", "libcuda.so.1"):
        (empty / name).write_text("no library")
    done = run_script(tmp_path, empty, pictures(1, seed=0), "--buffers", "cuda")
    assert_one_line_error(done, "no usable GPU here (cuda: ")


def test_the_runtime_of_this_process(tmp_path, host_cuda):
    an_engine(tmp_path, "10", [-1, 3, SIZE, SIZE])
    np.save(tmp_path / "x.npy", to_input(pictures(11, seed=8)))
    code = (
        "import numpy as np; from pathlib import Path; from dspkd.tensorrt_runtime import load_tensorrt\n"
        "model = load_tensorrt(Path('model.engine'), 1); np.save('y.npy', model.run(np.load('x.npy')))\n"
        "print(model.runtime, model.batch, model.dtype)"
    )

    def run(**environment):
        command = [sys.executable, "-c", code]
        return subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env={**os.environ, **environment})

    done = run(PYTHONPATH=str(tmp_path), LD_LIBRARY_PATH=str(host_cuda))
    assert done.stdout == "TensorRT 10.3.0 on Host Memory GPU 8 float32\n", done.stderr
    np.testing.assert_allclose(np.load(tmp_path / "y.npy"), row_sums(np.load(tmp_path / "x.npy")), rtol=1e-5)
    (tmp_path / "model.engine").write_bytes(b'{"version": "9", "profile": {}}\n')
    assert (
        "dspkd.errors.DeviceError: model.engine does not load"
        in run(PYTHONPATH=str(tmp_path), LD_LIBRARY_PATH=str(host_cuda)).stderr.splitlines()[-1]
    )
    (tmp_path / "tensorrt.py").write_text("raise ImportError('no TensorRT in this test')\n")
    assert "dspkd.errors.DeviceError: no Python module tensorrt here" in run(PYTHONPATH=str(tmp_path)).stderr


# On a device ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def board(tmp_path_factory, monkeypatch, kits, host_cuda):
    """A device behind ssh with a TensorRT 10 that answers as ONNX Runtime does: (server, the folder of its module)."""
    module = tmp_path_factory.mktemp("module")
    fake_tensorrt(module, "10", facts_of(kits["fp32"][0] / "model.onnx"), execute="onnxruntime")
    environment = {"PYTHONPATH": module, "LD_LIBRARY_PATH": host_cuda}
    monkeypatch.setenv("DSPKD_DEVICE_PYTHON", sys.executable)
    with serve(tmp_path_factory.mktemp("board"), **environment) as server:
        monkeypatch.setenv("DSPKD_SSH_CONFIG", str(server.ssh_config))
        yield server, module


def test_an_engine_is_built_and_certified_on_its_device(board, student, tmp_path, monkeypatch, exported):
    server, _ = board
    monkeypatch.setitem(TARGETS, "tensorrt", Target(compile_tensorrt, PRECISIONS, "batch", ("onnx",)))
    pixels = pictures(40, seed=9)
    labels = answers_of(student, pixels)
    images = Images(pixels, labels, [f"v{i}" for i in range(40)], [str(i) for i in range(40)], "forty pictures")
    (artifact,) = export_student(
        student.path, targets=["tensorrt"], precisions=["fp32"], out=tmp_path, images=images, device=server.url
    )
    assert set(artifact.card.files) == KIT | {"model.engine", "build.log", "build.json", "golden.npz"}
    assert artifact.card.model_files == ("model.engine",)
    certificate = artifact.card.certificate
    assert certificate["passed"] is True
    assert certificate["n"] == 40
    assert certificate["runtime"] == "TensorRT 10.3.0 on Host Memory GPU"
    assert 0.0 < certificate["max_abs_difference"] < 1e-4
    build = artifact.card.details["build"]
    assert (build["tensorrt"], build["gpu"]) == ("10.3.0", "Host Memory GPU")
    assert build["engine_sha256"] == artifact.card.files["model.engine"].sha256
    content = b"".join((artifact.path / name).read_bytes() for name in artifact.card.files)
    assert str(server.folder).encode() not in content, "where the device keeps its files is nobody's business"
    assert list(server.work.glob("dspkd*")) == []


def test_a_build_that_fails_there_leaves_nothing(board, student, tmp_path, monkeypatch, exported):
    server, module = board
    settings = json.loads((module / "settings.json").read_text())
    settings["model"]["unsupported"] = {"3": "no such plugin"}
    (module / "settings.json").write_text(json.dumps(settings))
    with pytest.raises(DeviceError, match=r"ssh://Board cannot build the engine: .*node 3 .*no such plugin"):
        compile_tensorrt(a_job(student, tmp_path, "fp32", device=server.url))
    assert not (tmp_path / "model.engine").exists()
    assert list(server.work.glob("dspkd*")) == []


def test_a_device_without_tensorrt_says_so(board, student, tmp_path):
    server, module = board
    (module / "tensorrt.py").write_text("raise ImportError('no TensorRT on this board')\n")
    with pytest.raises(DeviceError, match=r"cannot build TensorRT engines: .*no TensorRT on this board") as caught:
        compile_tensorrt(a_job(student, tmp_path, "fp32", device=server.url))
    assert caught.value.exit_code == 5


def test_a_device_that_cannot_be_reached(student, tmp_path, loopback):
    (loopback.folder / "authorized_keys").write_text("")
    with pytest.raises(DeviceError, match="Permission denied"):
        compile_tensorrt(a_job(student, tmp_path, "fp32", device=loopback.url))
    with pytest.raises(UsageError, match="telnet"):
        compile_tensorrt(a_job(student, tmp_path, "fp32", device="telnet://board"))


def test_tensorrt_rtx_builds_over_ssh(kits, tmp_path, monkeypatch, loopback):
    pytest.importorskip("tensorrt_rtx", reason="tensorrt-rtx is not installed")
    monkeypatch.setenv("DSPKD_DEVICE_PYTHON", sys.executable)
    shutil.copy(kits["int8"][0] / "model.onnx", tmp_path)
    with open_device(loopback.url) as device:
        options = ["--trt-module", "tensorrt_rtx", "--compute-capability", "SM86", "SM89"]
        report = build_engine(device, tmp_path, *options)
    assert report["compute_capabilities"] == ["SM86", "SM89"]
    assert tensorrt_device.sha256(tmp_path / "model.engine") == report["engine_sha256"]


def test_this_machine_as_the_device(kits, student, tmp_path, monkeypatch, host_cuda, exported):
    module = tmp_path / "module"
    module.mkdir()
    fake_tensorrt(module, "11", facts_of(kits["fp32"][0] / "model.onnx"), execute="onnxruntime")
    monkeypatch.setenv("PYTHONPATH", str(module))
    monkeypatch.setenv("LD_LIBRARY_PATH", str(host_cuda))
    folder = tmp_path / "artifact"
    folder.mkdir()
    compiled = compile_tensorrt(a_job(student, folder, "fp32"))
    assert compiled.models == ("model.engine",)
    images = to_input(pictures(35, seed=10))
    expected = load_model("onnx", folder / "model.onnx").run(images)
    np.testing.assert_allclose(compiled.loaded["model.engine"].run(images), expected, atol=1e-6)
    # Images that no pixels gave are sent as they are.
    odd = images + np.float32(1e-4)
    expected = load_model("onnx", folder / "model.onnx").run(odd)
    np.testing.assert_allclose(compiled.loaded["model.engine"].run(odd), expected, atol=1e-6)


def test_an_engine_for_bytes_is_built_and_run(student, tmp_path, monkeypatch, host_cuda):
    module, folder = tmp_path / "module", tmp_path / "artifact"
    module.mkdir()
    folder.mkdir()
    job = replace(a_job(student, folder, "fp32"), takes_bytes=True)
    hide_tensorrt(module, monkeypatch)
    model = build_onnx(job, dynamic=True, opset=18)
    monkeypatch.setattr("dspkd_export.tensorrt_target.build_onnx", lambda *_, **__: copy.deepcopy(model))
    compile_tensorrt(job)
    fake_tensorrt(module, "10", facts_of(folder / "model.onnx"), execute="onnxruntime")
    monkeypatch.setenv("LD_LIBRARY_PATH", str(host_cuda))
    engine = compile_tensorrt(job).loaded["model.engine"]
    assert engine.dtype == "uint8"
    pixels = pictures(10, seed=11)
    expected = load_model("onnx", folder / "model.onnx").run(pixels)
    np.testing.assert_allclose(engine.run(pixels), expected, atol=1e-6)
