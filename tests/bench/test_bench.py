"""A real, tiny bench; the schema of its results; the table."""

import io
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from results_schema import check_schema
from typer.testing import CliRunner

from dspkd.cli.app import app
from dspkd.errors import DeviceError, UsageError
from dspkd.models import create_model
from dspkd.preprocess import Preprocess
from dspkd.student import StudentCard, save_student
from dspkd_bench import bench
from dspkd_bench.agent import batched_call
from dspkd_bench.bench import BenchConfig, run_bench
from dspkd_bench.latency import StopRule
from dspkd_bench.memory import measure_memory
from dspkd_bench.subject_names import unique_tails
from dspkd_bench.subjects import Batched, open_batched, open_subject
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


def test_folders_of_one_name_are_all_measured_and_told_apart_in_any_order(networks, tmp_path):
    twins = [tmp_path / name / "fp32" for name in ("a", "b", "c")] + [tmp_path / "a" / "other"]
    for twin in twins:
        twin.parent.mkdir(exist_ok=True)
        shutil.copytree(networks / "student", twin)
    title = "shufflenet_v2_x0_5 PyTorch fp32"
    expected = {f"{title} ({tail})" for tail in ("a/fp32", "b/fp32", "c/fp32", "other")}
    for folders in (twins, twins[::-1]):
        results = run_bench(BenchConfig(folders, memory=False, stop=QUICK))
        check_schema(results)
        named = {subject["name"]: Path(subject["path"]) for subject in results["subjects"]}
        assert set(named) == expected and set(named.values()) == set(twins)
        assert all(str(path).endswith(name[len(title) + 2 : -1]) for name, path in named.items())
    again = run_bench(BenchConfig([twins[0], twins[0] / ".." / "fp32"], memory=False, stop=QUICK))
    assert [subject["name"] for subject in again["subjects"]] == [title]


def test_the_end_of_a_path_that_another_one_ends_in_too_is_given_whole():
    inner, outer = Path("/a/fp32"), Path("/x/a/fp32")
    assert unique_tails([inner, outer]) == {inner: "/a/fp32", outer: "x/a/fp32"}


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


# Larger batches, chosen cores, providers ----------------------------------------------------------------


def test_larger_batches_are_measured_by_those_that_take_them(networks, tiny_artifacts):
    folders = [*tiny_artifacts.values(), networks / "student"]
    results = run_bench(BenchConfig(folders=folders, memory=False, stop=QUICK, batches=(1, 3, 8)))
    check_schema(results)
    by_target = {subject["target"]: subject for subject in results["subjects"]}
    for target in ("onnx", "pytorch"):
        measured = by_target[target]["batches"]
        assert [one["batch"] for one in measured] == [3, 8]
        for one in measured:
            assert one["latency"]["n"] == 5
            assert one["throughput_per_s"] == pytest.approx(1e3 * one["batch"] / one["latency"]["mean_ms"])
    assert by_target["executorch"]["batches"] == []
    [skipped] = results["failed"]
    assert skipped["name"].startswith(by_target["executorch"]["name"]) and "one picture" in skipped["message"]
    assert results["settings"]["batches"] == [1, 3, 8] and results["settings"]["batch"] == 1


def test_a_batch_is_one_call(tiny_artifacts):
    """What the static file would do one by one."""
    subject = open_subject(tiny_artifacts["onnx"], threads=1)
    batched = open_batched(subject, threads=1)
    pixels = np.random.default_rng(0).integers(0, 256, (3, subject.size, subject.size, 3), dtype=np.uint8)
    answers = batched.run(subject.input_of(pixels))
    singles = [subject.run(subject.input_of(one[None]))[0] for one in pixels]
    assert np.abs(np.array(answers) - np.array(singles)).max() < 1e-5
    with pytest.raises(ValueError, match="at most 2 pictures"):
        batched_call(batched.run, subject.input_of(pixels), most=2)


def test_a_batch_that_fails_leaves_the_rest(networks, monkeypatch):
    def small(subject, *, threads):
        def run(images):
            if len(images) > 4:
                raise MemoryError("no room for so many")
            return images

        return Batched(run)

    monkeypatch.setattr(bench, "open_batched", small)
    results = run_bench(BenchConfig([networks / "student"], memory=False, stop=QUICK, batches=(2, 8)))
    [subject] = results["subjects"]
    assert subject["latency"]["n"] == 8 and [one["batch"] for one in subject["batches"]] == [2]
    assert results["failed"][0]["message"] == "batch 8: no room for so many"


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system keeps no process on chosen cores")
def test_chosen_cores_are_recorded_and_given_back(tiny_artifacts):
    before = os.sched_getaffinity(0)
    core = min(before)
    results = run_bench(BenchConfig([tiny_artifacts["onnx"]], memory=False, stop=QUICK, cores=(core,)))
    check_schema(results)
    assert results["environment"]["affinity"] == [core] and results["environment"]["cores"] == 1
    assert os.sched_getaffinity(0) == before
    with pytest.raises(UsageError, match=r"cores \[1023\] were asked for"):
        run_bench(BenchConfig([tiny_artifacts["onnx"]], memory=False, stop=QUICK, cores=(1023,)))


def test_each_provider_is_a_subject_and_what_is_not_there_says_so(tiny_artifacts):
    folders = list(tiny_artifacts.values())
    results = run_bench(BenchConfig(folders, memory=False, stop=QUICK, providers=("cpu", "cuda", "tensorrt")))
    check_schema(results)
    assert {s["name"]: s["provider"] for s in results["subjects"]} == {
        "test_resnet ONNX Runtime fp32": "cpu",
        "test_resnet ExecuTorch fp32": None,
    }
    why = {failed["name"]: failed["message"] for failed in results["failed"]}
    assert "no CUDAExecutionProvider, only" in why["test_resnet ONNX Runtime CUDA fp32"]
    assert "no TensorrtExecutionProvider" in why["test_resnet ONNX Runtime TensorRT fp32"]
    with pytest.raises(DeviceError, match=r"none of them can be measured.*no CUDAExecutionProvider"):
        run_bench(BenchConfig([tiny_artifacts["onnx"]], memory=False, stop=QUICK, providers=("cuda",)))


def test_a_provider_that_silently_falls_back_is_not_measured(tiny_artifacts, monkeypatch):
    """ONNX Runtime lists CUDA where its libraries are installed, and computes on the processor if they do not load."""
    import onnxruntime

    available = onnxruntime.get_available_providers()
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CUDAExecutionProvider", *available])
    with pytest.raises(DeviceError, match=r"CUDAExecutionProvider does not start|CUDA"):
        open_subject(tiny_artifacts["onnx"], threads=1, provider="cuda")


@pytest.mark.parametrize(
    "words",
    [["--batches", "0"], ["--batches", "8,"], ["--batches", "9-3"], ["--cores", "a"], ["--providers", "gpu"]],
)
def test_malformed_lists_are_refused(networks, words):
    done = CliRunner().invoke(app, ["bench", str(networks / "student"), *words])
    assert done.exception.exit_code == 2 and words[0] in done.exception.message


def test_options_reach_the_results_and_the_table(tiny_artifacts, tmp_path):
    out = tmp_path / "results.json"
    words = ["--seconds", "0", "--min-rounds", "5", "--batches", "2-3", "--sustained", "1", "--no-memory"]
    done = CliRunner().invoke(app, ["bench", str(tiny_artifacts["onnx"]), *words, "--out", str(out)])
    assert done.exit_code == 0, done.output
    for text in ("pictures a second", "sustained / burst", "energy is not measured: no power sensor"):
        assert text in done.output
    results = json.loads(out.read_text())
    check_schema(results)
    assert results["settings"]["batches"] == [1, 2, 3] and results["settings"]["sustained_seconds"] == 1.0
