"""ExecuTorch for other processors: what is lowered, what it costs there, and what is said of the ones that are not
here.
"""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import small_shufflenet
import torch

from dspkd.errors import MissingDependencyError, UsageError
from dspkd_export.calibration import Calibration
from dspkd_export.executorch_backends import BACKENDS, compile_executorch_ethos_u
from dspkd_export.job import ExportJob

pytest.importorskip("executorch")

SIZE = small_shufflenet.SIZE
ETHOS_U = "ethos-u55-128"


@pytest.fixture(scope="module")
def pictures():
    return small_shufflenet.pictures(8)


@pytest.fixture(scope="module")
def student(pictures, tmp_path_factory):
    """Two units a stage."""
    folder = tmp_path_factory.mktemp("student")
    return small_shufflenet.small_shufflenet([2, 2, 2], [24, 48, 96, 192, 128], pictures, folder)


@pytest.fixture
def job(student, pictures, tmp_path):
    def make(precision, *, rewrite=True, calibrated=True, **more):
        folder = tmp_path / f"{len(list(tmp_path.iterdir()))}"
        folder.mkdir()
        calibration = Calibration(pictures, [str(i) for i in range(len(pictures))]) if calibrated else None
        return ExportJob(student, folder, precision, rewrite, calibration, **more)

    return make


@pytest.fixture(scope="module")
def vulkan(student, tmp_path_factory):
    """{(precision, rewrite): (job, what it was compiled to)}"""
    made = {}
    for precision, rewrite in (("fp32", True), ("fp32", False), ("fp16", True)):
        job = ExportJob(student, tmp_path_factory.mktemp("vulkan"), precision, rewrite)
        made[(precision, rewrite)] = job, BACKENDS["executorch-vulkan"].compile(job)
    return made


@torch.no_grad()
def difference(job, model, pixels):
    """Largest difference of a probability between the loaded model and the student in PyTorch."""
    expected = job.module()(torch.from_numpy(model.input_of(pixels))).numpy()
    answered = np.ptp(expected, axis=0)
    assert answered.min() > 0.02, "every picture would be answered alike"
    return float(np.abs(model.answer(pixels) - expected).max())


def written(job):
    return (job.folder / "model.pte").read_bytes()


def test_vulkan_takes_the_rewritten_network_whole(vulkan, pictures):
    job, compiled = vulkan[("fp32", True)]
    assert compiled.models == ("model.pte",)
    assert b"VulkanBackend" in written(job)
    assert compiled.details["backend"] == "Vulkan"
    assert compiled.details["delegates"] == 1
    assert compiled.details["outside"] == []
    assert not compiled.loaded
    assert "GPU" in compiled.not_run
    assert difference(job, compiled.stand_in["model.pte"], pictures) < 1e-5
    _, stock = vulkan[("fp32", False)]
    assert stock.details["delegates"] > 1
    assert [node["operator"] for node in stock.details["outside"]] == ["aten::mean.dim"]


def test_vulkan_in_half_precision(vulkan, pictures):
    (full, _), (half, compiled) = vulkan[("fp32", True)], vulkan[("fp16", True)]
    assert len(written(half)) < 0.65 * len(written(full))
    assert 1e-6 < difference(half, compiled.stand_in["model.pte"], pictures) < 1e-2


def test_the_same_export_gives_the_same_bytes(vulkan, job):
    again = job("fp16")
    BACKENDS["executorch-vulkan"].compile(again)
    assert written(again) == written(vulkan[("fp16", True)][0])


def test_vulkan_takes_bytes(job, pictures):
    bytes_in = job("fp32", takes_bytes=True)
    compiled = BACKENDS["executorch-vulkan"].compile(bytes_in)
    assert compiled.details["delegates"] == 1
    (model,) = compiled.stand_in.values()
    assert model.dtype == "uint8"
    assert difference(bytes_in, model, pictures) < 1e-5


def test_coreml_lowers_where_it_cannot_run(job, pictures):
    pytest.importorskip("coremltools")
    sizes = {}
    for precision in BACKENDS["executorch-coreml"].precisions:
        asked = job(precision)
        compiled = BACKENDS["executorch-coreml"].compile(asked)
        assert compiled.details["delegates"] == 1
        assert "Apple" in compiled.not_run
        assert difference(asked, compiled.stand_in["model.pte"], pictures) < 1e-2
        sizes[precision] = len(written(asked))
    assert sizes["fp16"] < 0.75 * sizes["fp32"]
    with pytest.raises(UsageError, match="uint8"):
        BACKENDS["executorch-coreml"].compile(job("fp32", takes_bytes=True))


def test_ethos_u_costs_less_without_shuffles(job, pictures):
    pytest.importorskip("ethosu.vela")
    pytest.importorskip("tosa_serializer")
    ours, stock = job("int8"), job("int8", rewrite=False)
    compiled = BACKENDS[f"executorch-{ETHOS_U}"].compile(ours)
    assert compiled.details["accelerator"] == ETHOS_U
    assert compiled.details["delegates"] == 1
    assert not compiled.loaded
    assert ETHOS_U in compiled.not_run
    (model,) = compiled.stand_in.values()
    assert 1e-4 < difference(ours, model, pictures) < 0.1, "eight bits, of the same network"
    answers = model.answer(pictures)
    assert np.diff(np.unique(answers)).min() > answers.max() / 300, "probabilities leave it as eight bits"

    mine = compiled.details["cycle_model"]
    theirs = compile_executorch_ethos_u(stock, ETHOS_U).details["cycle_model"]
    assert mine["cycles"] < 0.95 * theirs["cycles"]
    assert mine["traffic_bytes"]["sram"] < 0.6 * theirs["traffic_bytes"]["sram"]
    assert mine["macs"] == pytest.approx(theirs["macs"], rel=0.01), "the same arithmetic"
    for cost in (mine, theirs):
        assert cost["estimated_ms"] == pytest.approx(cost["cycles"] / cost["clock_hz"] * 1e3, rel=1e-4)
        assert 0 < cost["npu_cycles"] <= cost["cycles"]
    for made in (ours, stock):
        assert b"EthosUBackend" in written(made)
        assert b"debug_artifact_path" not in written(made), "no folder of this machine in the program"


def test_ethos_u_is_never_calibrated_silently(job):
    pytest.importorskip("ethosu.vela")
    pytest.importorskip("tosa_serializer")
    asked = job("int8", calibrated=False)
    with pytest.raises(UsageError, match="calibration"):
        compile_executorch_ethos_u(asked, ETHOS_U)
    assert list(asked.folder.iterdir()) == []


def test_openvino_runs_and_agrees(job, pictures):
    pytest.importorskip("openvino")
    pytest.importorskip("nncf")
    full, small = job("fp32"), job("int8")
    compiled = BACKENDS["executorch-openvino"].compile(full)
    assert compiled.details["delegates"] == 1
    (model,) = compiled.loaded.values()
    assert "OpenVINO" in model.runtime
    assert compiled.details["arithmetic"] in model.runtime
    # bf16 has eight bits of mantissa.
    bound = {"f32": 1e-5, "bf16": 5e-2, "f16": 1e-2}[compiled.details["arithmetic"]]
    assert difference(full, model, pictures) < bound

    compiled = BACKENDS["executorch-openvino"].compile(small)
    assert compiled.details["delegates"] == 1
    assert 1e-4 < difference(small, compiled.loaded["model.pte"], pictures) < 0.3
    assert len(written(small)) < 0.85 * len(written(full))


def test_openvino_keeps_to_float32_when_told():
    """In a process of its own: oneDNN reads the variable once."""
    pytest.importorskip("openvino")
    pytest.importorskip("nncf")
    code = "import openvino; print(openvino.Core().get_property('CPU', 'INFERENCE_PRECISION_HINT').get_type_name())"
    told = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "ONEDNN_MAX_CPU_ISA": "AVX512_CORE_VNNI"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert told.stdout.strip() == "f32"


@pytest.mark.parametrize(
    ("target", "precision", "absent", "extra"),
    [
        ("executorch-vulkan", "fp32", "executorch.backends.vulkan.partitioner.vulkan_partitioner", "executorch"),
        ("executorch-coreml", "fp32", "coremltools", "executorch"),
        ("executorch-openvino", "fp32", "nncf", "openvino"),
        (f"executorch-{ETHOS_U}", "int8", "ethosu.vela", "ethos-u"),
    ],
)
def test_a_missing_package_is_named(job, monkeypatch, target, precision, absent, extra):
    monkeypatch.setitem(sys.modules, absent, None)
    monkeypatch.setenv("NNCF_CI", "1")
    asked = job(precision)
    with pytest.raises(MissingDependencyError) as raised:
        BACKENDS[target].compile(asked)
    assert absent.split(".")[0] in raised.value.message
    assert raised.value.hint == f"pip install 'dspkd[{extra}]'"
    assert list(asked.folder.iterdir()) == []


def test_every_extra_that_is_advised_is_declared():
    import tomllib

    pyproject = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())
    assert {"executorch", "openvino", "ethos-u"} <= pyproject["project"]["optional-dependencies"].keys()
