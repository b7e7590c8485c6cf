"""Whatever is wrong with the input: the right exit code and one line that names it, never a traceback."""

import csv
import re
import shutil
from dataclasses import replace

import pytest
import torch
from broken_artifacts import edit
from PIL import Image

from dspkd.models import create_model
from dspkd.runtimes import load_model
from dspkd_export import TARGETS
from dspkd_export.job import Compiled

TRAIN = ("train", "shufflenet_v2_x0_5", "--size", "32", "--batch-size", "16", "--epochs", "1", "--device", "cpu")
DISTILL = ("distill", "--student", "shufflenet_v2_x0_5", "--size", "32", "--epochs", "2", "--device", "cpu")


@pytest.fixture
def refused(dspkd):
    """refused(code, named, *arguments): this exit code (or one of a tuple), and one line that names all of `named`."""

    def check(code, named, *arguments):
        got, out, err = dspkd(*arguments)
        # "starts from random weights" and the like may have been said before.
        *messages, last = err.strip().splitlines() or [""]
        assert last.startswith("dspkd: error: "), err
        assert not any("error" in line.lower() or "Traceback" in line for line in messages), err
        for name in named if isinstance(named, list) else [named]:
            assert str(name) in last, f"{name} is not named in: {last}"
        assert got in (code if isinstance(code, tuple) else (code,)), last
        assert out == ""
        return messages

    return check


@pytest.fixture
def data(tiny_data, tmp_path):
    """A copy of the data that may be broken."""
    return shutil.copytree(tiny_data, tmp_path / "data")


@pytest.fixture
def student(lively_student, tmp_path):
    return shutil.copytree(lively_student, tmp_path / "student")


@pytest.fixture(params=["onnx", "executorch"])
def artifact(request, lively_artifacts, tmp_path):
    return shutil.copytree(lively_artifacts[request.param], tmp_path / "artifact")


@pytest.fixture
def picture(tiny_data):
    return tiny_data / "images" / "RED_00.png"


def edit_mean(folder, *, reseal):
    edit(folder, lambda card: card["preprocess"]["mean"].__setitem__(0, 0.4), reseal=reseal)


# Data.
def test_missing_data_folder(refused, lively_student, tmp_path):
    missing = tmp_path / "missing"
    # Nothing was said before: the line is the whole of stderr.
    assert refused(1, missing, *TRAIN, "--data", missing, "--out", tmp_path / "run") == []
    assert not (tmp_path / "run").exists()
    assert refused(1, missing, "eval", lively_student, "--data", missing) == []


def test_truncated_jpeg(refused, lively_student, data, tmp_path):
    damaged = data / "images" / "GREEN_05.jpg"
    with Image.open(data / "images" / "GREEN_05.png") as image:
        image.save(damaged)
    (data / "images" / "GREEN_05.png").unlink()
    damaged.write_bytes(damaged.read_bytes()[:-200])
    refused(1, damaged, "eval", lively_student, "--data", data)
    refused(1, damaged, "predict", lively_student, damaged)
    refused(1, damaged, *TRAIN, "--data", data, "--out", tmp_path / "run")


def test_a_picture_that_is_none(refused, lively_student, tmp_path):
    text = tmp_path / "text.jpg"
    text.write_text("no picture")
    refused(1, text, "predict", lively_student, text)
    refused(1, "missing.png", "predict", lively_student, tmp_path / "missing.png")
    refused(1, tmp_path, "predict", lively_student, tmp_path)


def test_a_class_that_the_model_does_not_know(refused, lively_student, data):
    path = data / "GroundTruth.csv"
    with path.open(newline="") as f:
        header, *rows = csv.reader(f)
    header[header.index("UNK")] = "PURPLE"
    rows[3][1:] = ["0.0", "0.0", "0.0", "1.0"]
    with path.open("w", newline="") as f:
        csv.writer(f).writerows([header, *rows])
    refused(1, [path, "row 5", "PURPLE"], "eval", lively_student, "--data", data)


def test_a_part_without_its_split(refused, lively_student, tiny_data):
    refused(1, "val", "eval", lively_student, "--data", tiny_data, "--part", "val")
    split = lively_student / "split.json"
    refused(1, "holdout", "eval", lively_student, "--data", tiny_data, "--split", split, "--part", "holdout")


# Models.
def test_unknown_model(refused, tiny_data, tmp_path):
    train = ("train", "shufflenet_v3", "--data", tiny_data, "--out", tmp_path / "run", "--device", "cpu")
    refused(1, ["shufflenet_v3", "did you mean"], *train)


def test_a_student_with_one_changed_byte(refused, student, picture):
    weights = student / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    for verb in (("predict", student, picture), ("verify", student), ("export", student), ("bench", student)):
        refused(4, weights, *verb)


def test_an_artifact_whose_mean_was_edited(refused, artifact, picture):
    edit_mean(artifact, reseal=False)
    for verb in (("predict", artifact, picture), ("verify", artifact), ("bench", artifact)):
        refused(4, artifact / "artifact.json", *verb)


def test_an_artifact_whose_mean_was_edited_and_sealed_again(refused, artifact):
    edit_mean(artifact, reseal=True)
    refused(4, [artifact / "artifact.json", "preprocess"], "verify", artifact)


def test_a_folder_that_is_nothing(refused, tmp_path, tiny_data, picture):
    folder = tmp_path / "nothing"
    for _ in ("missing", "empty"):
        refused(1, folder, "eval", folder, "--data", tiny_data)
        refused(1, folder, "predict", folder, picture)
        refused(4, folder, "verify", folder)
        refused(2, folder, "bench", folder)
        folder.mkdir(exist_ok=True)
    (folder / "config.toml").touch()
    refused(1, [folder, "--resume"], "eval", folder, "--data", tiny_data)


def test_missing_teacher(refused, tiny_data, tmp_path):
    missing = tmp_path / "teacher"
    refused(1, missing, *DISTILL, "--data", tiny_data, "--teacher", missing, "--out", tmp_path / "run")
    refused(2, "--teacher", *DISTILL, "--data", tiny_data, "--out", tmp_path / "run")


def test_weights_that_are_missing_or_of_another_network(refused, tiny_data, tmp_path):
    train = (*TRAIN, "--data", tiny_data, "--weights")
    missing, other, text = tmp_path / "missing.pt", tmp_path / "other.pt", tmp_path / "text.safetensors"
    torch.save(create_model("timm/resnet10t", 3).state_dict(), other)
    text.write_text("no weights")
    refused(1, missing, *train, missing, "--out", tmp_path / "a")
    refused(1, other, *train, other, "--out", tmp_path / "b")
    refused(1, text, *train, text, "--out", tmp_path / "c")


# Where to write.
def test_an_out_that_cannot_be_written(refused, tiny_data, lively_student, tmp_path):
    """Root may write anywhere but below a file, and in no folder of /proc."""
    file = tmp_path / "file"
    file.touch()
    for out in (file / "run", "/proc/dspkd"):
        refused(1, out, *TRAIN, "--data", tiny_data, "--out", out)
        refused(1, out, "eval", lively_student, "--data", tiny_data, "--predictions", f"{out}/predictions.csv")
        refused(1, out, "export", lively_student, "--target", "onnx", "--out", out)


def test_an_out_that_holds_a_run(refused, tiny_data, tiny_teacher):
    refused(1, [tiny_teacher, "--resume"], *TRAIN, "--data", tiny_data, "--out", tiny_teacher)


def test_resume_without_a_run(refused, tmp_path):
    run = tmp_path / "run"
    assert refused(1, run, *TRAIN, "--out", run, "--resume") == []
    refused(1, run, *DISTILL, "--out", run, "--resume")
    refused(2, "--out", *TRAIN, "--resume")
    assert not run.exists()


# Configuration.
def test_missing_flags(refused, tiny_data, tmp_path):
    refused(2, "--data", *TRAIN, "--out", tmp_path / "run")
    refused(2, "--out", *TRAIN, "--data", tiny_data)
    refused(2, "--out", *DISTILL, "--data", tiny_data, "--teacher-model", "shufflenet_v2_x0_5")


def test_missing_config_file(refused, tmp_path):
    refused(2, tmp_path / "missing.toml", *TRAIN, "--config", tmp_path / "missing.toml")
    refused(2, tmp_path, *TRAIN, "--config", tmp_path)


@pytest.mark.parametrize(
    "content", [b"size = [32", b"size = 32\nsize = 64", b"\xff\xfe\x00", b"[data\nroot = 1"], ids=range(4)
)
def test_damaged_toml(refused, tmp_path, content):
    config = tmp_path / "recipe.toml"
    config.write_bytes(content)
    refused(2, config, *TRAIN, "--config", config)
    refused(2, config, *DISTILL, "--config", config)


@pytest.mark.parametrize(
    ("content", "named"),
    [
        ("data = 5", "data"),
        ('data = "folder"', "data"),
        ("stages = 5", "stages"),
        ("stages = [5]", "stages"),
        ("surprise = 1", "surprise"),
        ("batch_size = -3\n", "-3"),
    ],
)
def test_toml_of_another_shape(refused, tmp_path, tiny_data, content, named):
    config = tmp_path / "recipe.toml"
    config.write_text(content)
    train = ("train", "shufflenet_v2_x0_5", "--epochs", "1", "--config", config)
    refused(2, named, *train, "--data", tiny_data, "--out", tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("override", "named"),
    [
        ("surprise=1", "surprise"),
        ("data.surprise=1", "data.surprise"),
        ("stages.0.surprise=1", "stages.0.surprise"),
        ("stages.0.settings.surprise=1", "surprise"),
        ("stages.7.epochs=1", "stages.7.epochs=1"),
        ("stages.first.epochs=1", "stages.first.epochs=1"),
        ("stages.0.epochs.more=1", "stages.0.epochs.more=1"),
        ("seed.more.still=1", "seed.more.still=1"),
        ("size", "size"),
        ("=5", "=5"),
        ("size=large", "large"),
        ("data=5", "data"),
        ("batch_size=1", "batch_size"),
        ("precision=64", "precision"),
    ],
)
def test_set_with_an_unknown_key_or_value(refused, tiny_data, tmp_path, override, named):
    train = (*TRAIN, "--seed", "1", "--data", tiny_data, "--out", tmp_path / "run")
    assert refused(2, named, *train, "--set", override) == []
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("wrong", "code", "named"),
    [
        (("--set", "stages.0.settings.surprise=1"), 2, "surprise"),
        (("--set", "select=worst"), 2, "worst"),
        (("--student", "shufflenet_v3"), 1, "shufflenet_v3"),
        (("--preset", "quick"), 2, "quick"),
    ],
)
def test_a_wrong_student_is_noticed_before_a_teacher_is_fitted(refused, tiny_data, tmp_path, wrong, code, named):
    distill = (*DISTILL, "--data", tiny_data, "--teacher-model", "shufflenet_v2_x0_5", "--out", tmp_path / "run")
    refused(code, named, *distill, *wrong)
    assert not (tmp_path / "run").exists()


# Devices, targets, gates.
def test_unknown_device(refused, lively_student, tiny_data, picture, tmp_path):
    refused(5, "abacus", "predict", lively_student, picture, "--device", "abacus")
    refused(5, "abacus", "eval", lively_student, "--data", tiny_data, "--device", "abacus")
    run = tmp_path / "run"
    # 1 today; errors.py calls for 5.
    refused(5, "abacus", *TRAIN[:-1], "abacus", "--data", tiny_data, "--out", run)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device here")
def test_a_device_that_is_not_there(refused, lively_student, picture):
    refused(5, "cuda", "predict", lively_student, picture, "--device", "cuda")


def test_unknown_target_and_precision(refused, lively_student, tmp_path):
    out = tmp_path / "artifacts"
    refused(2, "coreml", "export", lively_student, "--target", "onnx,coreml", "--out", out)
    refused(2, "int3", "export", lively_student, "--precision", "int3", "--out", out)
    refused(2, "no target", "export", lively_student, "--target", ",", "--out", out)
    assert not out.exists()


def test_export_without_the_split_or_the_images(refused, student, tmp_path):
    refused(1, tmp_path / "gone", "export", student, "--data", tmp_path / "gone", "--out", tmp_path / "artifacts")
    (student / "split.json").unlink()
    refused(1, student / "split.json", "export", student, "--out", tmp_path / "artifacts")


@pytest.mark.parametrize(
    ("code", "named", "arguments"),
    [
        (2, "warm-up", ["--stage", "warm-up", "--student", "S", "--out", "O"]),
        (2, "--student", ["--stage", "qat", "--out", "O"]),
        (2, "--out", ["--stage", "qat", "--student", "S"]),
        (2, "--preset", ["--stage", "qat", "--student", "S", "--out", "O", "--preset", "matched"]),
        (2, "--size", ["--stage", "qat", "--student", "S", "--out", "O", "--size", "64"]),
        (1, "S does not exist", ["--stage", "qat", "--student", "S", "--out", "O"]),
    ],
)
def test_a_stage_that_cannot_be_run_alone(refused, tmp_path, code, named, arguments):
    here = [str(tmp_path / a) if a in "SO" else a for a in arguments]
    refused(code, named, "distill", *here)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("named", "arguments"),
    [
        ("bytes", ["--input", "bytes"]),
        ("hot", ["--temperature", "hot"]),
        ("adb", ["--target", "tensorrt", "--device", "adb:1"]),
        ("is for tensorrt", ["--target", "onnx", "--device", "ssh://board"]),
        ("gopher://x", ["--target", "tensorrt", "--device", "gopher://x"]),
    ],
)
def test_an_export_that_cannot_be(refused, tiny_teacher, tmp_path, named, arguments):
    refused(2, named, "export", tiny_teacher, *arguments, "--out", tmp_path / "artifacts")
    assert not (tmp_path / "artifacts").exists() or list((tmp_path / "artifacts").iterdir()) == []


def test_a_failed_certificate(refused, lively_artifacts, tiny_teacher, tmp_path, monkeypatch):
    """The lively student's model instead of the teacher's own: exit code 3, and verify refuses what was written."""

    def wrong_model(job):
        shutil.copy(lively_artifacts["executorch"] / "model.pte", job.folder)
        return Compiled(("model.pte",), {}, loaded={"model.pte": load_model("executorch", job.folder / "model.pte")})

    monkeypatch.setitem(TARGETS, "executorch", replace(TARGETS["executorch"], compile=wrong_model))
    written = tmp_path / "executorch-fp32"
    refused(3, written, "export", tiny_teacher, "--target", "executorch", "--out", tmp_path, "--json")
    refused(4, [written / "artifact.json", "certificate"], "verify", written)


@pytest.mark.parametrize(
    ("model", "size", "named"),
    [("vit_tiny_patch16_224", 64, "64x64"), ("torchvision/vit_b_16", 64, "64x64")],
)
def test_a_network_that_does_not_take_the_size(refused, data, tmp_path, model, size, named):
    out = tmp_path / "run"
    refused(1, [model.rpartition("/")[2], named], "train", model, "--size", size, "--data", data, "--out", out)
    assert not (out / "config.toml").exists(), "the folder is taken though nothing began"


def test_a_negative_seed(refused, data, tmp_path):
    refused((1, 2), "seed", *TRAIN, "--seed", "-1", "--data", data, "--out", tmp_path / "run")


def test_a_start_that_failed_on_an_image_does_not_take_the_folder(refused, dspkd, data, tmp_path):
    broken, out = next((data / "images").iterdir()), tmp_path / "run"
    whole = broken.read_bytes()
    broken.write_bytes(whole[:60])
    refused(1, [broken.name, "GroundTruth.csv row "], *TRAIN, "--data", data, "--out", out)
    broken.write_bytes(whole)
    code, _, err = dspkd(*TRAIN, "--data", data, "--out", out)
    assert code == 0, err


def test_int8_needs_at_least_one_image_of_each_class(refused, tiny_student, tmp_path):
    few = ("--precision", "int8", "--calibration-images", "2")
    refused(2, ["2 calibration images", "3 classes"], "export", tiny_student, "--out", tmp_path, *few)


def test_debug_shows_the_traceback(dspkd, tmp_path, monkeypatch):
    monkeypatch.setenv("DSPKD_DEBUG", "1")
    with pytest.raises(Exception, match=re.escape(str(tmp_path))):
        dspkd("verify", tmp_path)
