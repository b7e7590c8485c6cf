"""Runs, small but real: resume after SIGKILL in either stage, independence of the workers, what a run leaves behind."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time

import pytest
import torch
from tiny_runs import REAL, TEACHER, tiny_config

from dspkd.config import to_toml
from dspkd.distill import hf_masked_generation
from dspkd.errors import CheckpointError, DataError, DspkdError, OutputError
from dspkd.presets import preset_stages
from dspkd.student import load_student
from dspkd.train.checkpoint import read_checkpoint
from dspkd.train.reporter import Reporter
from dspkd.train.run import run


def assert_same_weights(a, b):
    left, right = load_student(a).model.state_dict(), load_student(b).model.state_dict()
    assert left.keys() == right.keys()
    assert all(torch.equal(left[k], right[k]) for k in left)


def without_times(out):
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k != "images_per_s"} for line in lines]


def test_a_run_folder_is_complete(real_student):
    names = {p.name for p in real_student.iterdir()}
    assert {"model.safetensors", "student.json", "split.json", "config.toml", "metrics.jsonl", "checkpoints"} <= names
    assert {"predictions-val.csv", "predictions-test.csv"} <= names
    lines = without_times(real_student)
    assert [(line["stage"], line["epoch"]) for line in lines] == [
        ("hf_masked_generation", 1),
        ("hf_masked_generation", 2),
        ("hf_masked_generation", 3),
        ("norm_kd", 1),
        ("norm_kd", 2),
        ("norm_kd", 3),
    ]
    assert {"cross_entropy", "reconstruction", "hidden_fraction"} <= lines[0]["terms"].keys()
    card = load_student(real_student).card
    assert card.classes == ("RED", "GREEN", "BLUE")
    assert card.role == "student"
    assert card.teacher["architecture"] == TEACHER
    assert set(card.metrics["test"]["per_class"]) == {"RED", "GREEN", "BLUE"}
    assert not list(real_student.rglob("*.part*"))


def test_distillation_reuses_the_teachers_split(real_student, tiny_teacher):
    assert json.loads((real_student / "split.json").read_text()) == json.loads(
        (tiny_teacher / "split.json").read_text()
    )


def test_the_student_has_no_extra_parameters(real_student):
    assert set(load_student(real_student).model.state_dict()) == set(
        __import__("torchvision").models.shufflenet_v2_x0_5(num_classes=3).state_dict()
    )


def test_same_seed_same_weights_and_other_seed_other_weights(tiny_data, tmp_path):
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        run(tiny_config(tiny_data, tmp_path / name, seed=seed))
    assert_same_weights(tmp_path / "a", tmp_path / "b")
    with pytest.raises(AssertionError):
        assert_same_weights(tmp_path / "a", tmp_path / "c")


@pytest.mark.parametrize(("stage", "workers"), [(0, 2), (1, 0)])
def test_killed_and_resumed_equals_uninterrupted(tiny_data, tiny_teacher, real_student, tmp_path, stage, workers):
    """SIGKILL at an unforeseen moment of the given stage; the resumed run reaches the same weights bit for bit."""
    out = tmp_path / "run"
    recipe = tmp_path / "recipe.toml"
    stages = preset_stages(epochs=6)
    config = tiny_config(tiny_data, out, model=REAL, teacher=tiny_teacher, workers=workers, stages=stages)
    recipe.write_text(to_toml(config))
    command = [sys.executable, "-m", "dspkd", "distill", "--config", str(recipe)]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL, start_new_session=True)
    wanted = {0: 2, 1: 4}[stage]  # lines of metrics.jsonl: one epoch into the stage's second one
    deadline = time.monotonic() + 120
    while process.poll() is None and time.monotonic() < deadline:
        if (out / "metrics.jsonl").is_file() and len((out / "metrics.jsonl").read_text().splitlines()) >= wanted:
            break
        time.sleep(0.005)
    assert process.poll() is None, "the run ended before it could be killed"
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert not (out / "student.json").exists()
    (out / "checkpoints" / ".last.pt.killed.part.pt").write_bytes(b"half a checkpoint")
    position = json.loads(read_checkpoint(out / "checkpoints" / "last.pt")["position"])
    assert position["stage"] == stage
    subprocess.run([*command, "--resume"], check=True, capture_output=True, timeout=300)
    assert_same_weights(real_student, out)
    assert not list(out.rglob(".*part*"))
    assert without_times(real_student) == without_times(out)


def test_dropout_neither_depends_on_the_workers_nor_on_a_resume(tiny_data, tmp_path):
    """Dropout draws from torch's global generator, which a loader would draw from too."""

    def config(name, workers=0):
        return tiny_config(tiny_data, tmp_path / name, model="mobilenet_v2", workers=workers)

    run(config("whole"))
    run(config("workers", workers=2))
    assert_same_weights(tmp_path / "whole", tmp_path / "workers")

    class StopError(Exception):
        pass

    class StopsAfterOneEpoch(Reporter):
        def message(self, text):
            if "cross_entropy 1/2" in text:
                raise StopError

    with pytest.raises(StopError):
        run(config("resumed", workers=2), reporter=StopsAfterOneEpoch())
    run(config("resumed", workers=2), resume=True)
    assert_same_weights(tmp_path / "whole", tmp_path / "resumed")


def test_a_finished_run_is_not_passed_off_as_another_one(tiny_data, tiny_teacher):
    asked = tiny_config(tiny_data, tiny_teacher, model=TEACHER, seed=5)
    with pytest.raises(CheckpointError, match="seed"):
        run(asked, resume=True)


def test_a_student_is_not_tested_on_lesions_that_its_teacher_learned(tiny_data, tiny_teacher, tmp_path):
    """Also where the two sets of images are not quite the same."""
    smaller = shutil.copytree(tiny_data, tmp_path / "data")
    table = smaller / "GroundTruth.csv"
    *kept, last = table.read_text().splitlines()
    table.write_text("\n".join(kept) + "\n")
    next((smaller / "images").glob(last.split(",")[0] + ".*")).unlink()
    stages = preset_stages(epochs=2)
    with pytest.raises(DataError, match="lesions that the teacher learned from"):
        other_lesions = {"root": str(smaller), "split_seed": 1}
        run(tiny_config(smaller, tmp_path / "run", teacher=tiny_teacher, stages=stages, data=other_lesions))


def test_a_taken_folder_is_refused_and_a_finished_run_is_loaded(tiny_data, tiny_teacher):
    before = (tiny_teacher / "model.safetensors").stat().st_mtime_ns
    with pytest.raises(OutputError, match="already holds a run"):
        run(tiny_config(tiny_data, tiny_teacher, model=TEACHER))
    run(tiny_config(tiny_data, tiny_teacher, model=TEACHER), resume=True)
    assert (tiny_teacher / "model.safetensors").stat().st_mtime_ns == before


def test_resume_with_another_configuration_is_refused(tiny_data, tmp_path):
    out = tmp_path / "run"
    run(tiny_config(tiny_data, out))
    (out / "student.json").unlink()
    with pytest.raises(CheckpointError, match="batch_size"):
        run(tiny_config(tiny_data, out, batch_size=4), resume=True)


def test_layers_of_another_versions_default_are_refused(tiny_data, tiny_teacher, tmp_path, monkeypatch):
    class StopError(Exception):
        pass

    class Stops(Reporter):
        def message(self, text):
            if "val accuracy" in text:
                raise StopError

    config = tiny_config(tiny_data, tmp_path / "run", teacher=tiny_teacher, stages=preset_stages(epochs=4))
    with pytest.raises(StopError):
        run(config, reporter=Stops())
    block = hf_masked_generation.GenerationBlock
    monkeypatch.setattr(hf_masked_generation, "GenerationBlock", lambda channels, width: block(channels, width - 1))
    with pytest.raises(CheckpointError, match="layers of hf_masked_generation of other shapes"):
        run(config, resume=True)


def test_a_damaged_checkpoint_is_named(tiny_data, tmp_path):
    out = tmp_path / "run"
    run(tiny_config(tiny_data, out))
    (out / "student.json").unlink()
    last = out / "checkpoints" / "last.pt"
    last.write_bytes(last.read_bytes()[:1000])
    with pytest.raises(CheckpointError, match=r"last\.pt cannot be read"):
        run(tiny_config(tiny_data, out), resume=True)


def test_a_teacher_of_another_split_is_refused(tiny_data, tiny_teacher, tmp_path):
    split = tmp_path / "other"
    run(tiny_config(tiny_data, split, data={"root": str(tiny_data), "split_seed": 5}))
    with pytest.raises(DataError, match="another split"):
        run(
            tiny_config(
                tiny_data,
                tmp_path / "run",
                teacher=tiny_teacher,
                data={"root": str(tiny_data), "split": str(split / "split.json")},
                stages=preset_stages(epochs=2),
            )
        )


def test_a_stage_that_needs_a_teacher_says_so(tiny_data, tmp_path):
    with pytest.raises(DspkdError, match="needs a teacher"):
        run(tiny_config(tiny_data, tmp_path / "run", stages=preset_stages(epochs=2)))


def test_a_diverging_run_stops_with_the_cause(tiny_data, tmp_path):
    stages = [{"method": "cross_entropy", "epochs": 2, "optimizer": {"lr": 1e30, "warmup_epochs": 0}}]
    with pytest.raises(DspkdError, match="the loss of stage cross_entropy became"):
        run(tiny_config(tiny_data, tmp_path / "run", stages=stages))
