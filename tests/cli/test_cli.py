"""The command line as scripts see it: verbs, flags, help, JSON, and the same answers from every form of a model."""

import csv
import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
import typer
from tiny_runs import TEACHER

from dspkd.cli import app
from dspkd.data.formats import class_folders, ham10000, isic, medmnist, plain_csv
from dspkd.data.sources import read_table
from dspkd.student import load_card

STORED = Path(__file__).with_name("command_line.json")
LAYOUTS = [layout.LAYOUT for layout in (class_folders, ham10000, isic, medmnist, plain_csv)]
VERBS = (
    "demo",
    "train",
    "distill",
    "compare",
    "eval",
    "predict",
    "export",
    "verify",
    "bench",
    "report",
    "doctor",
    "data check",
    "data prepare",
    "data augment",
)


def commands():
    """Verb -> command; those of a group are named "GROUP VERB"."""
    found = {}
    for name, command in typer.main.get_command(app).commands.items():
        inside = getattr(command, "commands", None)
        found |= {f"{name} {verb}": sub for verb, sub in inside.items()} if inside else {name: command}
    return found


def command_line():
    """verb -> its arguments in order, and its options with every spelling."""
    found = {}
    for name, command in commands().items():
        options = [opt for p in command.params if p.param_type_name == "option" for opt in (*p.opts, *p.secondary_opts)]
        arguments = [p.name for p in command.params if p.param_type_name == "argument"]
        found[name] = {"arguments": arguments, "options": sorted(options)}
    return found


def test_verbs_and_flags_are_those_that_were_agreed():
    found = command_line()
    if os.environ.get("DSPKD_UPDATE_COMMAND_LINE"):
        STORED.write_text(json.dumps(found, indent=2) + "\n")
    assert found == json.loads(STORED.read_text()), (
        "the command line has changed, and scripts depend on it. If that is wanted: run this test with "
        f"DSPKD_UPDATE_COMMAND_LINE=1, which writes {STORED.name}, and say it in the README"
    )


@pytest.mark.parametrize("verb", VERBS)
def test_help_says_what_a_verb_needs_and_writes(dspkd, verb):
    code, out, err = dspkd(*verb.split(), "--help")
    assert (code, err) == (0, "")
    text = " ".join(out.split())
    assert "Needs " in text
    assert "Writes " in text
    for parameter in commands()[verb].params:
        assert parameter.help or parameter.name == "help", f"{verb} {parameter.name} has no help"


@pytest.mark.parametrize("verb", ["train", "distill"])
def test_help_names_every_layout_of_images_and_what_workers_are(verb):
    said = {parameter.name: parameter.help for parameter in commands()[verb].params}
    assert all(layout in said["data"] for layout in LAYOUTS)
    assert "hreads" in said["workers"] and "rocesses" not in said["workers"]


def test_every_verb_is_tested_here():
    assert set(commands()) == set(VERBS)


def test_version_and_no_arguments(dspkd):
    code, out, _ = dspkd("--version")
    assert code == 0
    assert out.startswith("dspkd ")
    code, out, err = dspkd()
    assert code == 2
    assert all(verb.split()[0] in out + err for verb in VERBS)


def only_json(result):
    code, out, err = result
    assert code == 0, err
    return json.loads(out)


def test_export_prints_json(lively_artifacts, lively_export_json):
    written = json.loads(lively_export_json)
    assert [Path(entry["path"]) for entry in written] == [lively_artifacts["onnx"], lively_artifacts["executorch"]]
    assert all(entry["certificate"]["passed"] is True for entry in written)


def test_verify_prints_json(dspkd, lively_artifacts, lively_student):
    folders = [*lively_artifacts.values(), lively_student]
    reports = only_json(dspkd("verify", *folders, "--json"))
    assert [(Path(r["path"]), r["kind"], r["passed"]) for r in reports] == [
        (folders[0], "artifact", True),
        (folders[1], "artifact", True),
        (folders[2], "student", True),
    ]


def test_verify_prints_what_it_checked(dspkd, lively_artifacts):
    code, out, _ = dspkd("verify", lively_artifacts["onnx"])
    assert code == 0
    first, *checks = out.splitlines()
    assert first == f"{lively_artifacts['onnx']}: ok (artifact)"
    assert len(checks) >= 4


def test_bench_prints_json(dspkd, lively_artifacts, lively_student, tiny_teacher, tmp_path):
    # The bench sets the number of threads that it was asked for, and other tests are not to inherit it.
    threads = torch.get_num_threads()
    try:
        results = only_json(
            dspkd(
                "bench", *lively_artifacts.values(), "--student", lively_student, "--teacher", tiny_teacher,
                "--no-memory", "--seconds", "0", "--min-rounds", "5", "--out", tmp_path / "results.json", "--json",
            )
        )  # fmt: skip
    finally:
        torch.set_num_threads(threads)
    assert results == json.loads((tmp_path / "results.json").read_text())
    assert [s["target"] for s in results["subjects"]] == ["pytorch", "onnx", "executorch", "pytorch"]
    assert all(s["latency"]["n"] >= 5 and s["memory"] is None for s in results["subjects"])


@pytest.fixture
def every_form(lively_student, lively_artifacts):
    return {"student": lively_student, **lively_artifacts}


def test_eval_gives_the_same_for_a_run_and_its_artifacts(dspkd, every_form, tiny_data):
    results = {
        name: only_json(dspkd("eval", folder, "--data", tiny_data, "--json")) for name, folder in every_form.items()
    }
    first = results["student"]
    assert first["n"] == 60
    # Neither all nor one class: an artifact with another order of classes could not have it.
    assert 0.1 < first["accuracy"] < 0.9
    for result in results.values():
        assert result["confusion"] == first["confusion"]
        for metric in ("accuracy", "balanced_accuracy", "macro_f1", "intervals", "per_class"):
            assert result[metric] == first[metric], metric
        assert result["loss"] == pytest.approx(first["loss"], abs=1e-4)


def test_eval_of_a_run_gives_what_the_run_has_stored(dspkd, tiny_teacher, tiny_data):
    stored = load_card(tiny_teacher).metrics["test"]
    split = tiny_teacher / "split.json"
    result = only_json(dspkd("eval", tiny_teacher, "--data", tiny_data, "--split", split, "--part", "test", "--json"))
    assert result["part"] == "test"
    assert result["n"] == stored["n"] == 12
    assert result["confusion"] == stored["confusion"]


def test_eval_writes_one_row_per_image(dspkd, every_form, tiny_data, tmp_path):
    table = read_table(tiny_data)
    rows = {}
    for name, folder in every_form.items():
        file = tmp_path / f"{name}.csv"
        result = only_json(dspkd("eval", folder, "--data", tiny_data, "--predictions", file, "--json"))
        with file.open(newline="") as f:
            rows[name] = list(csv.DictReader(f))
        assert [row["image"] for row in rows[name]] == [s.image_id for s in table.samples]
        assert [row["label"] for row in rows[name]] == [table.classes[s.label] for s in table.samples]
        right = sum(row["label"] == row["predicted"] for row in rows[name])
        assert right / len(table) == pytest.approx(result["accuracy"])
    probabilities = {
        name: np.array([[float(row[f"p_{c}"]) for c in table.classes] for row in own]) for name, own in rows.items()
    }
    np.testing.assert_allclose(probabilities["onnx"], probabilities["student"], atol=1e-4)
    np.testing.assert_allclose(probabilities["executorch"], probabilities["student"], atol=1e-4)


def test_eval_prints_a_table_for_people(dspkd, lively_student, tiny_data):
    code, out, _ = dspkd("eval", lively_student, "--data", tiny_data)
    assert code == 0
    assert "n = 60" in out
    assert all(name in out for name in ("RED", "GREEN", "BLUE"))


def test_predict_one_picture(dspkd, every_form, tiny_data):
    picture = tiny_data / "images" / "GREEN_03.png"
    answers = []
    for folder in every_form.values():
        (result,) = only_json(dspkd("predict", folder, picture, "--json"))
        probabilities = result["probabilities"]
        assert result["image"] == str(picture)
        assert set(probabilities) == {"RED", "GREEN", "BLUE"}
        assert sum(probabilities.values()) == pytest.approx(1.0, abs=1e-5)
        assert list(probabilities.values()) == sorted(probabilities.values(), reverse=True)
        assert result["class"] == next(iter(probabilities))
        answers.append(probabilities)
    assert answers[1] == pytest.approx(answers[0], abs=1e-4)
    assert answers[2] == pytest.approx(answers[0], abs=1e-4)


def test_predict_knows_the_colours(dspkd, tiny_teacher, tiny_data):
    """Through the fitted teacher, so that names and not only numbers have to be right."""
    pictures = [tiny_data / "images" / f"{name}_07.png" for name in ("BLUE", "RED", "GREEN")]
    results = only_json(dspkd("predict", tiny_teacher, *pictures, "--json"))
    assert [result["class"] for result in results] == ["BLUE", "RED", "GREEN"]
    code, out, _ = dspkd("predict", tiny_teacher, pictures[0])
    assert code == 0
    assert out.startswith(f"{pictures[0]}: BLUE ")


TINY = ("--size", "32", "--batch-size", "16", "--device", "cpu")


def test_train_prints_json_and_resumes(dspkd, tiny_data, tmp_path):
    command = ("train", "shufflenet_v2_x0_5", "--data", tiny_data, "--out", tmp_path / "run", "--epochs", "1", *TINY)
    result = only_json(dspkd(*command, "--json"))
    assert result["run"] == str(tmp_path / "run")
    assert result["role"] == "baseline"
    assert result["architecture"] == "torchvision/shufflenet_v2_x0_5"
    assert result["config"]["stages"][0]["epochs"] == 1
    # A finished run is loaded, from --out alone.
    again = only_json(dspkd("train", "shufflenet_v2_x0_5", "--out", tmp_path / "run", "--resume", "--json"))
    assert again == result


def test_distill_with_overrides(dspkd, tiny_data, tiny_teacher, tmp_path):
    code, out, err = dspkd(
        "distill", "--data", tiny_data, "--teacher", tiny_teacher, "--student", "shufflenet_v2_x0_5", "--epochs", "2",
        "--set", "stages.0.settings.generator_width=16", "--set", "stages.1.optimizer.lr=0.002",
        "--set", "select=last", "--out", tmp_path / "run", *TINY,
    )  # fmt: skip
    assert code == 0, err
    assert f"next: dspkd export {tmp_path / 'run'}" in out
    config = load_card(tmp_path / "run").config
    assert config["stages"][0]["settings"]["generator_width"] == 16
    assert [stage["optimizer"]["lr"] for stage in config["stages"]] == [0.01, 0.002]
    assert config["select"] == "last"
    assert load_card(tmp_path / "run").teacher["architecture"] == TEACHER


def test_distill_fits_a_teacher_on_the_data_that_set_describes(dspkd, tiny_data, tmp_path):
    """The teacher's split is the student's: if --set reached the student alone, it would have no effect."""
    out = tmp_path / "run"
    code, _, err = dspkd(
        "distill", "--data", tiny_data, "--teacher-model", "shufflenet_v2_x0_5", "--teacher-epochs", "1",
        "--student", "shufflenet_v2_x0_5", "--epochs", "2", "--set", "data.split_seed=7", "--out", out, *TINY,
    )  # fmt: skip
    assert code == 0, err
    for folder in (out, out / "teacher"):
        assert json.loads((folder / "split.json").read_text())["seed"] == 7
        assert load_card(folder).config["data"]["split_seed"] == 7
    assert load_card(out / "teacher").role == "baseline"


def test_a_split_alone_means_its_test_part(dspkd, tiny_student, tiny_data):
    split = tiny_student / "split.json"
    judged = {}
    for name, flags in {"alone": (), "test": ("--part", "test"), "train": ("--part", "train")}.items():
        code, out, _ = dspkd("eval", tiny_student, "--data", tiny_data, "--split", split, *flags, "--json")
        assert code == 0
        judged[name] = json.loads(out)
    assert judged["alone"] == judged["test"]
    assert judged["alone"]["training_images"] == 0
    assert judged["train"]["training_images"] == judged["train"]["n"] > 0


def test_judging_on_training_images_is_said(dspkd, tiny_student, tiny_data):
    _, out, _ = dspkd("eval", tiny_student, "--data", tiny_data)
    assert "the model learned from" in out.splitlines()[0]
