"""Whatever was on in training is on in evaluation and written into folder and artifact; what is off leaves no trace."""

import json

import numpy as np
import pytest
from PIL import Image, ImageDraw
from pydantic import ValidationError
from tiny_runs import tiny_config

from dspkd.cleaning import HAIR_THRESHOLD, Cleaning
from dspkd.config import AugmentConfig, parse_run_config, to_toml
from dspkd.data.sources import read_table
from dspkd.data.synthetic import draw_lesion
from dspkd.errors import CheckpointError, ConfigError
from dspkd.evaluate import Classifier, evaluate, student_classifier
from dspkd.preprocess import Preprocess, load_pixels
from dspkd.student import load_student
from dspkd.train.prepare import run_cleaning
from dspkd.train.reporter import Reporter
from dspkd.train.run import run

ON = {"hair_removal": True, "hair_threshold": 0.002, "illumination": True}


# The written form ---------------------------------------------------------------------------------


def test_preprocessing_without_it_is_written_as_before():
    assert Preprocess(size=64).model_dump(mode="json") == {
        "size": 64,
        "crop": "center-square",
        "interpolation": "bilinear",
        "antialias": True,
        "color_order": "RGB",
        "mean": [0.485, 0.456, 0.406],
        "std": [0.229, 0.224, 0.225],
    }


def test_old_files_are_read_as_off():
    old = json.loads(Preprocess(size=64).model_dump_json())
    assert Preprocess.model_validate(old).cleaning == Cleaning() and not Cleaning().is_on


@pytest.mark.parametrize(
    ("settings", "written"),
    [
        ({"hair_removal": True}, {"hair_removal": True, "hair_threshold": HAIR_THRESHOLD}),
        ({"illumination": True}, {"illumination": True}),
        (ON, ON),
    ],
)
def test_what_is_on_is_written_with_its_threshold(settings, written):
    """A later default must not change what a stored model means."""
    preprocess = Preprocess(size=64, cleaning=Cleaning(**settings))
    stored = json.loads(preprocess.model_dump_json())
    assert stored["cleaning"] == written
    assert Preprocess.model_validate(stored) == preprocess


@pytest.mark.parametrize(
    "wrong", [{"hair_threshold": 0.01}, {"hair_removal": True, "hair_threshold": 1.0}, {"shadows": True}]
)
def test_settings_that_do_nothing_are_refused(wrong):
    with pytest.raises(ValidationError):
        Cleaning(**wrong)


def recipe(**more):
    values = {"model": "shufflenet_v2_x0_5", "data": {"root": "set"}, "out": "run"}
    return parse_run_config({**values, "stages": [{"method": "cross_entropy", "epochs": 1}], **more}, origin="test")


def test_recipes_without_it_are_written_as_before():
    config = recipe()
    assert "preprocess" not in config.model_dump(mode="json")
    assert "preprocess" not in config.model_dump(mode="json", exclude={"out": ..., "data": {"workers": ...}})
    assert "workers" not in config.model_dump(mode="json", exclude={"data": {"workers": ...}})["data"]
    assert "color_constancy" not in config.model_dump(mode="json")["augment"]
    assert "preprocess" not in to_toml(config) and "color_constancy" not in to_toml(config)


def test_recipes_with_it_come_back():
    import tomllib

    for settings in (ON, {"illumination": True}, {}):
        config = recipe(preprocess=settings, augment={"color_constancy": 0.3})
        assert parse_run_config(tomllib.loads(to_toml(config)), origin="test") == config
        assert config.preprocess == Cleaning(**settings) and config.augment == AugmentConfig(color_constancy=0.3)


def test_a_faulty_recipe_names_the_key():
    with pytest.raises(ConfigError, match=r"preprocess\.hair_threshold.*got 2"):
        recipe(preprocess={"hair_removal": True, "hair_threshold": 2})
    with pytest.raises(ConfigError, match=r"preprocess.*hair_threshold does nothing without hair_removal"):
        recipe(preprocess={"hair_threshold": 0.1})


# A run --------------------------------------------------------------------------------------------


class Heard(Reporter):
    def __init__(self):
        self.messages = []

    def message(self, text):
        self.messages.append(text)


@pytest.fixture(scope="module")
def hairy_data(tmp_path_factory):
    """Two classes of drawn lesions with hairs over them."""
    root, rng = tmp_path_factory.mktemp("hairy"), np.random.default_rng(0)
    for k in range(24):
        name = ("PLAIN", "VEIL")[k % 2]
        image = Image.fromarray(draw_lesion(name, seed=1, lesion=k, size=192))
        pen = ImageDraw.Draw(image)
        for _ in range(6):
            pen.line([tuple(point) for point in rng.uniform(0, 192, (2, 2))], fill=(30, 25, 20), width=2)
        (root / name).mkdir(exist_ok=True)
        image.save(root / name / f"{k:02d}.png")
    return root


@pytest.fixture(scope="module")
def teacher(hairy_data, tmp_path_factory):
    out = tmp_path_factory.mktemp("cleaned") / "run"
    run(tiny_config(hairy_data, out, preprocess=ON))
    return out


def test_it_is_written_into_the_folder(teacher):
    card = load_student(teacher).card
    assert card.preprocess.cleaning == Cleaning(**ON)
    assert json.loads((teacher / "student.json").read_text())["preprocess"]["cleaning"] == ON


def test_a_model_is_judged_on_what_it_was_trained_on(teacher, hairy_data):
    student = load_student(teacher)
    seen = []

    def run_and_keep(pixels):
        seen.append(np.array(pixels))
        return student_classifier(student).run(pixels)

    classifier = Classifier("", student.card.classes, student.card.preprocess, run_and_keep)
    result = evaluate(classifier, hairy_data, split=teacher / "split.json", part="test")
    table = read_table(hairy_data)
    paths = {sample.image_id: sample.path for sample in table.samples}
    expected = [load_pixels(paths[sample.image_id], student.card.preprocess) for sample in result.samples]
    np.testing.assert_array_equal(np.concatenate(seen), expected)
    plain = [load_pixels(paths[sample.image_id], Preprocess(size=32)) for sample in result.samples]
    assert not any(np.array_equal(a, b) for a, b in zip(expected, plain, strict=True))
    assert result.metrics["accuracy"] == student.card.metrics["test"]["accuracy"]


def test_its_artifact_is_too(teacher, tmp_path, hairy_data, dspkd):
    pytest.importorskip("onnxruntime")
    from dspkd.artifact import load_artifact
    from dspkd_export import verify
    from dspkd_export.golden import read_golden

    words = ("--target", "onnx", "--precision", "fp32", "--out", tmp_path, "--margin", "1")
    code, out, err = dspkd("export", teacher, *words)
    assert code == 0, err
    assert "hair removal above a cover of 0.002 and illumination correction" in out
    folder = tmp_path / "onnx-fp32"
    preprocess = load_artifact(folder).card.preprocess
    assert preprocess.cleaning == Cleaning(**ON)
    golden = read_golden(folder / "golden.npz")
    assert json.loads(golden.said["preprocess"])["cleaning"] == ON
    with np.load(folder / "golden.npz") as stored:
        first = str(stored["image_ids"][0])
    path = next(s.path for s in read_table(hairy_data).samples if s.image_id == first)
    np.testing.assert_array_equal(golden.pixels[0], load_pixels(path, preprocess))
    assert verify(folder).max_abs_difference < 1e-4
    answers = []
    for model in (teacher, folder):
        code, out, err = dspkd("predict", model, path, "--json")
        assert code == 0, err
        answers.append(json.loads(out)[0]["probabilities"])
    assert answers[1] == pytest.approx(answers[0], abs=1e-4)


def test_a_student_takes_its_teachers(teacher):
    card = load_student(teacher).card
    assert run_cleaning(recipe(), card) == Cleaning(**ON)
    assert run_cleaning(recipe(preprocess={}), card) == Cleaning()
    assert run_cleaning(recipe(), None) == Cleaning()


def test_another_one_than_the_teachers_is_said(teacher, hairy_data, tmp_path):
    heard = Heard()
    stages = [{"method": "vanilla_kd", "epochs": 1}]
    config = tiny_config(hairy_data, tmp_path / "run", teacher=teacher, stages=stages, preprocess={})
    student = run(config, reporter=heard)
    assert not student.card.preprocess.cleaning.is_on
    (warning,) = (text for text in heard.messages if "was fitted with" in text)
    assert "hair removal above a cover of 0.002 and illumination correction" in warning and "no cleaning" in warning


def test_a_resume_with_another_one_is_refused(teacher, hairy_data):
    for preprocess in ({"preprocess": {"illumination": True}}, {}):
        with pytest.raises(CheckpointError, match=r"differs in: preprocess\)"):
            run(tiny_config(hairy_data, teacher, **preprocess), resume=True)


def test_data_prepare_decodes_what_such_a_run_reads(dspkd, hairy_data, tmp_path, monkeypatch):
    from dspkd.data import pixels as module

    monkeypatch.setenv("DSPKD_CACHE", str(tmp_path / "cache"))
    settings = ("--set", "preprocess.illumination=true")
    code, _, err = dspkd("data", "prepare", hairy_data, "--size", "32", *settings)
    assert code == 0, err

    def refuse(path, **_):
        raise AssertionError(f"{path} is decoded again")

    monkeypatch.setattr(module, "load_rgb", refuse)
    words = ("--epochs", "1", "--size", "32", "--batch-size", "8", "--out", tmp_path / "run")
    code, _, err = dspkd("train", "shufflenet_v2_x0_5", "--data", hairy_data, *settings, *words)
    assert code == 0, err


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("size=3", "--set size has no say in which pictures are decoded"),
        ("preprocess.hair_remval=true", "preprocess.hair_remval"),
        ("preprocess.hair_threshold=0.1", "hair_threshold does nothing without hair_removal"),
    ],
)
def test_data_prepare_refuses_what_it_does_not_know(dspkd, hairy_data, setting, words):
    code, _, err = dspkd("data", "prepare", hairy_data, "--set", setting)
    assert code == 2 and words in err and "Traceback" not in err
