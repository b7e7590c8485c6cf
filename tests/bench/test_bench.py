"""A real, tiny bench; the schema of its results; the table."""

import io

import numpy as np
import pytest
import torch
from results_schema import check_schema

from dspkd.errors import UsageError
from dspkd.models import create_model
from dspkd.preprocess import Preprocess
from dspkd.student import StudentCard, save_student
from dspkd_bench.bench import BenchConfig, run_bench
from dspkd_bench.latency import StopRule
from dspkd_bench.memory import measure_memory
from dspkd_bench.table import results_table

QUICK = StopRule(warmup_rounds=1, min_rounds=8, max_rounds=8, seconds=0.0)
CLASSES = ("a", "b", "c")


@pytest.fixture(scope="module")
def networks(tmp_path_factory):
    """A teacher, a distilled student, and the student alone, hardly initialised."""
    folder = tmp_path_factory.mktemp("networks")
    torch.manual_seed(0)
    for name, role, architecture, size in (
        ("teacher", "baseline", "torchvision/shufflenet_v2_x1_0", 64),
        ("student", "student", "torchvision/shufflenet_v2_x0_5", 64),
        ("alone", "baseline", "torchvision/shufflenet_v2_x0_5", 64),
    ):
        card = StudentCard(role=role, architecture=architecture, classes=CLASSES, preprocess=Preprocess(size=size))
        save_student(folder / name, create_model(architecture, len(CLASSES)).eval(), card)
    return folder


def test_teacher_student_and_baseline_in_pytorch(networks):
    config = BenchConfig(
        folders=[networks / "student", networks / "alone"],
        teacher=networks / "teacher",
        memory=False,
        stop=QUICK,
        command="dspkd bench",
    )
    results = run_bench(config)
    check_schema(results)
    assert [s["role"] for s in results["subjects"]] == ["teacher", "student", "baseline"]
    assert len({s["name"] for s in results["subjects"]}) == 3
    assert [s["latency"]["n"] for s in results["subjects"]] == [8, 8, 8]
    assert results["settings"]["input"] == "seeded noise"
    teacher, student, _ = results["subjects"]
    ratio = results["ratios"][0]
    assert (ratio["subject"], ratio["teacher"], ratio["same_runtime"]) == (student["name"], teacher["name"], True)
    assert ratio["parameters"] == teacher["complexity"]["parameters"] / student["complexity"]["parameters"]
    expected = teacher["latency"]["p50_ms"] / student["latency"]["p50_ms"]
    assert ratio["latency"]["ratio"] == pytest.approx(expected)
    assert len(results["ratios"]) == 2


def test_real_pictures_are_resized_to_each_network(networks):
    pixels = np.random.default_rng(0).integers(0, 256, (3, 80, 80, 3), dtype=np.uint8)
    results = run_bench(BenchConfig(folders=[networks / "student"], memory=False, stop=QUICK, pixels=pixels))
    assert results["settings"]["input"] == "3 pictures"
    assert results["ratios"] == []
    check_schema(results)


def test_memory_is_of_a_process_of_its_own(networks):
    memory = measure_memory(networks / "student", threads=1)
    if memory is None:
        pytest.skip("no /proc on this system")
    assert 0 <= memory["resident_increase_mib"] <= memory["increase_mib"] < memory["peak_rss_mib"]
    assert memory["increase_mib"] > 1


def test_memory_of_a_folder_that_cannot_be_opened_is_not_measured(tmp_path):
    assert measure_memory(tmp_path / "nothing", threads=1) is None


def test_nothing_to_measure_and_a_foreign_folder(tmp_path):
    with pytest.raises(UsageError, match="nothing to measure"):
        run_bench(BenchConfig(folders=[]))
    with pytest.raises(UsageError, match="neither a run"):
        run_bench(BenchConfig(folders=[tmp_path]))


def test_made_up_results_follow_the_schema_and_make_a_table(results):
    from rich.console import Console

    check_schema(results)
    console = Console(width=200, record=True, file=io.StringIO())
    console.print(results_table(results))
    text = console.export_text()
    assert "34.2x" in text
    assert "res2net101_26w_4s onnx" in text


def test_an_artifact_beside_its_student(networks, tmp_path):
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    from dspkd_export import export_student
    from dspkd_export.certificate import Images

    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (6, 64, 64, 3), dtype=np.uint8)
    ids = [str(i) for i in range(6)]
    images = Images(pixels, rng.integers(0, 3, 6), ids, ids, "six of noise")
    [artifact] = export_student(
        networks / "student", targets=["onnx"], precisions=["fp32"], out=tmp_path, images=images
    )
    config = BenchConfig(
        folders=[artifact.path, networks / "student"], teacher=networks / "teacher", memory=False, stop=QUICK
    )
    results = run_bench(config)
    check_schema(results)
    by_target = {(s["role"], s["target"]): s for s in results["subjects"]}
    exported, eager = by_target["student", "onnx"], by_target["student", "pytorch"]
    assert exported["weights_sha256"] == eager["weights_sha256"]
    assert exported["complexity"] == eager["complexity"]
    assert exported["certificate"]["n"] == exported["validation"]["n"] == 6
    memory = measure_memory(artifact.path, threads=1)
    assert memory is None or 0 < memory["increase_mib"] < memory["peak_rss_mib"]
    ratios = {r["subject"]: r for r in results["ratios"]}
    assert not ratios[exported["name"]]["same_runtime"]
    assert ratios[eager["name"]]["same_runtime"]
