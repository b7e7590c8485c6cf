"""Every way to break an artifact is noticed, and the message names the file or the field."""

import shutil
import sys

import numpy as np
import pytest
import torch
from broken_artifacts import edit, rehash, rewrite_golden

from dspkd.errors import VerificationError
from dspkd.student import load_student, save_student
from dspkd_export import verify

pytest.importorskip("onnxruntime")
TARGETS = ("onnx", "executorch")
FILES = {
    "onnx": ("model.onnx", "model_static.onnx", "golden.npz", "artifact.json"),
    "executorch": ("model.pte", "golden.npz", "artifact.json"),
}
MODEL = {"onnx": "model.onnx", "executorch": "model.pte"}
EVERY_FILE = [(target, file) for target in TARGETS for file in FILES[target]]


@pytest.fixture
def broken(lively_artifacts, tmp_path):
    """copy(target) gives a folder that may be broken."""

    def copy(target):
        return shutil.copytree(lively_artifacts[target], tmp_path / target)

    return copy


def refused(folder, *named):
    with pytest.raises(VerificationError) as caught:
        verify(folder)
    assert caught.value.exit_code == 4
    for name in named:
        assert name in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("target", TARGETS)
def test_a_whole_artifact_verifies(lively_artifacts, target):
    report = verify(lively_artifacts[target])
    assert report.kind == "artifact"
    assert report.max_abs_difference <= 1e-4
    assert report.as_dict()["passed"] is True
    assert any("classes and preprocessing agree" in line for line in report.checks)


def test_a_student_verifies_and_one_with_a_changed_byte_does_not(lively_student, tmp_path):
    assert verify(lively_student).kind == "student"
    folder = shutil.copytree(lively_student, tmp_path / "student")
    flip_a_byte(folder / "model.safetensors")
    refused(folder, "model.safetensors")


def flip_a_byte(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(("target", "file"), EVERY_FILE)
def test_one_flipped_bit(broken, target, file):
    folder = broken(target)
    flip_a_byte(folder / file)
    refused(folder, file)


@pytest.mark.parametrize(("target", "file"), EVERY_FILE)
def test_a_missing_file(broken, target, file):
    folder = broken(target)
    (folder / file).unlink()
    refused(folder, file)


@pytest.mark.parametrize(("target", "file"), EVERY_FILE)
def test_an_empty_file(broken, target, file):
    folder = broken(target)
    (folder / file).write_bytes(b"")
    refused(folder, file)


@pytest.mark.parametrize(("target", "file"), [(t, f) for t, f in EVERY_FILE if f != "artifact.json"])
@pytest.mark.parametrize("keep", [0.0, 0.5])
def test_a_truncated_file_that_was_hashed_and_sealed_again(broken, target, file, keep):
    folder = broken(target)
    content = (folder / file).read_bytes()
    (folder / file).write_bytes(content[: int(len(content) * keep)])
    rehash(folder, file)
    refused(folder, file)


# Edits of the manifest: what is changed, and what the message has to name.
def swap_classes(card):
    card["classes"][:2] = reversed(card["classes"][:2])


def rename_a_class(card):
    card["classes"][0] = "MELANOMA"


def change_mean(card):
    card["preprocess"]["mean"][0] = 0.4


def change_std(card):
    card["preprocess"]["std"][2] = 0.3


def change_interpolation(card):
    card["preprocess"]["interpolation"] = "bicubic"


def change_size(card):
    card["preprocess"]["size"] = 48


MEANING = [
    (swap_classes, "classes"),
    (rename_a_class, "classes"),
    (change_mean, "preprocess"),
    (change_std, "preprocess"),
    (change_interpolation, "preprocess"),
    (change_size, "preprocess"),
]


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize(("change", "field"), MEANING)
def test_what_the_numbers_mean_cannot_be_edited(broken, target, change, field):
    folder = broken(target)
    edit(folder, change, reseal=False)
    refused(folder, "artifact.json", "edited")


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize(("change", "field"), MEANING)
def test_what_the_numbers_mean_cannot_be_edited_and_sealed_again(broken, target, change, field):
    """For ExecuTorch golden.npz alone can contradict the manifest: the program says nothing of itself."""
    folder = broken(target)
    edit(folder, change, reseal=True)
    refused(folder, "artifact.json", field, "golden.npz")


def test_a_manifest_and_golden_pictures_of_one_mind_do_not_fool_an_onnx_model(broken):
    folder = broken("onnx")
    edit(folder, swap_classes, reseal=True)
    rewrite_golden(folder, classes=np.array('["GREEN", "RED", "BLUE"]'))
    refused(folder, "classes", "model.onnx")


def set_field(key, value):
    def change(card):
        card[key] = value

    return change


def certificate_set(**values):
    return lambda card: card["certificate"].update(values)


def rename_in_files(old, new):
    def change(card):
        card["files"][new] = card["files"].pop(old)

    return change


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize(
    ("change", "named"),
    [
        (set_field("schema_version", 3), "schema version 3"),
        (set_field("schema_version", "1"), "schema version '1'"),
        (set_field("kind", "student"), "kind 'student'"),
        (set_field("target", "abacus"), "abacus"),
        (set_field("precision", "int3"), "int3"),
        (set_field("surprise", 1), "surprise"),
        (set_field("model_file", "other.bin"), "other.bin"),
        (lambda card: card.pop("classes"), "classes"),
        (lambda card: card["files"].pop("golden.npz"), "golden.npz"),
        (rename_in_files("golden.npz", "../golden.npz"), "../golden.npz"),
        (rename_in_files("golden.npz", "/etc/hostname"), "/etc/hostname"),
        (certificate_set(passed=False), "certificate"),
        (certificate_set(passed="yes"), "certificate"),
        (certificate_set(max_abs_difference=0.5), "max_abs_difference = 0.5"),
        (certificate_set(top1_agreement=0.9), "top1_agreement = 0.9"),
        (set_field("certificate", {"passed": True}), "certificate"),
    ],
)
def test_a_manifest_that_contradicts_itself_though_sealed(broken, target, change, named):
    folder = broken(target)
    edit(folder, change, reseal=True)
    refused(folder, "artifact.json" if "abacus" not in named else MODEL[target], named)


def test_a_file_outside_the_folder_is_not_even_read(broken, tmp_path):
    folder = broken("onnx")
    outside = tmp_path / "golden.npz"
    shutil.move(folder / "golden.npz", outside)
    edit(folder, rename_in_files("golden.npz", "../golden.npz"), reseal=True)
    refused(folder, "outside its folder")


@pytest.mark.parametrize("content", ["{}", "[]", "null", "no json", '{"kind": "artifact"}'])
def test_a_manifest_that_is_none(broken, content):
    folder = broken("onnx")
    (folder / "artifact.json").write_text(content)
    refused(folder, "artifact.json")


@pytest.mark.parametrize("target", TARGETS)
def test_golden_pictures_of_another_model(broken, target):
    """Hashed and sealed again: only running the model can tell."""
    folder = broken(target)
    with np.load(folder / "golden.npz") as golden:
        pytorch, pixels = golden["pytorch"], golden["pixels"]
    rewrite_golden(folder, pytorch=pytorch[:, ::-1])
    refused(folder, MODEL[target], "golden answers (pytorch)")
    rewrite_golden(folder, pytorch=pytorch, pixels=pixels[::-1])
    refused(folder, MODEL[target], "golden answers")
    rewrite_golden(folder, pixels=pixels, deployed=np.full_like(pytorch, np.nan))
    refused(folder, MODEL[target], "golden answers (deployed)")


@pytest.mark.parametrize(
    "entries",
    [
        {"pixels": None},
        {"classes": None},
        {"pixels": np.zeros((0, 32, 32, 3), np.uint8), "pytorch": np.zeros((0, 3)), "deployed": np.zeros((0, 3))},
        {"pixels": np.zeros((6, 16, 16, 3), np.uint8)},
        {"pixels": np.zeros((6, 32, 32, 3), np.float32)},
        {"deployed": np.zeros((6, 4), np.float32)},
        {"pytorch": np.array([{}], dtype=object)},
    ],
    ids=lambda entries: "-".join(entries),
)
def test_golden_pictures_that_prove_nothing(broken, entries):
    folder = broken("onnx")
    rewrite_golden(folder, **entries)
    refused(folder, "golden.npz")


@pytest.mark.parametrize("target", TARGETS)
def test_other_weights_that_were_hashed_and_sealed_again(broken, lively_student, target):
    """The head of one class is gone, the file loads as before: only the golden answers can tell."""
    folder = broken(target)
    path, head = folder / MODEL[target], load_student(lively_student).model.fc.weight
    content, row = path.read_bytes(), head[0].detach().numpy().tobytes()
    assert content.count(row) == 1
    path.write_bytes(content.replace(row, bytes(len(row))))
    rehash(folder, MODEL[target])
    refused(folder, MODEL[target], "golden answers")


def test_the_target_of_another_runtime(broken):
    folder = broken("executorch")
    edit(folder, set_field("target", "onnx"), reseal=True)
    refused(folder, "model.pte")


# What cannot run here -------------------------------------------------------------------------------------------------


def not_run_here(card):
    """As an export to a device that is not at hand writes it: ONNX Runtime has answered in its place."""
    card["target"] = "tensorrt"
    stand_in = card["certificate"]
    card["certificate"] = {"passed": None, "not_run": "no device at hand", "n": 0, "stand_in": stand_in}


def test_an_artifact_that_was_not_certified_says_so_and_its_stand_in_answers(broken):
    folder = broken("onnx")
    edit(folder, not_run_here, reseal=True)
    report = verify(folder)
    assert "not certified: no device at hand" in report.checks
    assert any("in what stands in for it" in line for line in report.checks)
    assert 0.0 < report.max_abs_difference <= 1e-4


def test_a_stand_in_whose_numbers_fail_or_whose_answers_differ(broken):
    folder = broken("onnx")
    edit(folder, not_run_here, reseal=True)
    edit(folder, lambda card: card["certificate"]["stand_in"].update(top1_agreement=0.5), reseal=True)
    refused(folder, "artifact.json", "top1_agreement = 0.5")
    edit(folder, lambda card: card["certificate"]["stand_in"].update(top1_agreement=1.0), reseal=True)
    with np.load(folder / "golden.npz") as golden:
        pytorch = golden["pytorch"]
    rewrite_golden(folder, pytorch=pytorch[:, ::-1])
    refused(folder, "model.onnx", "golden answers (pytorch)")


def test_an_engine_of_another_machine_is_checked_as_far_as_possible(broken, monkeypatch):
    """Certified where it was built; here there is no such GPU, and nothing is wrong with the file."""
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    folder = broken("onnx")
    edit(folder, set_field("target", "tensorrt"), reseal=True)
    report = verify(folder)
    assert report.max_abs_difference is None
    assert any("golden answers were not repeated" in line and "tensorrt" in line for line in report.checks)
    flip_a_byte(folder / "model.onnx")
    refused(folder, "model.onnx")


def test_a_model_file_that_is_not_listed(broken):
    folder = broken("onnx")
    edit(folder, set_field("model_files", ["model.onnx", "other.onnx"]), reseal=True)
    refused(folder, "artifact.json", "other.onnx")


def test_a_folder_that_is_nothing(tmp_path):
    refused(tmp_path, str(tmp_path))
    refused(tmp_path / "missing", "missing")


def test_a_student_whose_head_does_not_fit_its_classes(lively_student, tmp_path):
    student = load_student(lively_student)
    folder = tmp_path / "student"
    with torch.no_grad():
        student.model.fc = torch.nn.Linear(student.model.fc.in_features, 4)
    save_student(folder, student.model, student.card)
    refused(folder, "model.safetensors", "3 classes")
