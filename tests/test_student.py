"""The hand-over folder: what is read is what was written, and one changed byte is one refusal."""

import shutil

import pytest
import torch

from dspkd.errors import ModelError, VerificationError
from dspkd.fileio import read_sealed_json, sha256_file, write_sealed_json
from dspkd.models import create_model
from dspkd.preprocess import Preprocess
from dspkd.student import StudentCard, is_student_dir, load_student, save_student


@pytest.fixture
def copy(tiny_student, tmp_path):
    folder = tmp_path / "student"
    folder.mkdir()
    for name in ("student.json", "model.safetensors"):
        shutil.copy2(tiny_student / name, folder / name)
    return folder


def make(folder, classes=("Z", "A", "é"), **card):
    torch.manual_seed(0)
    model = create_model("shufflenet_v2_x0_5", len(classes))
    values = {
        "role": "baseline",
        "architecture": "torchvision/shufflenet_v2_x0_5",
        "classes": classes,
        "preprocess": Preprocess(size=48, mean=(0.1, 0.2, 0.3)),
    }
    return model, save_student(folder, model, StudentCard(**(values | card)))


def test_round_trip(tmp_path):
    model, card = make(tmp_path, metrics={"test": {"accuracy": 0.1 + 0.2}}, teacher=None)
    student = load_student(tmp_path)
    assert student.card == card
    assert student.card.classes == ("Z", "A", "é")  # in their own order
    assert student.num_classes == 3
    assert student.card.metrics["test"]["accuracy"] == 0.1 + 0.2
    assert {"dspkd", "torch", "torchvision", "timm"} == set(student.card.tools)
    assert not student.model.training
    state = student.model.state_dict()
    assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())
    images = torch.rand(2, 3, 48, 48)
    with torch.no_grad():
        assert torch.equal(student.model(images), model.eval()(images))


def test_a_network_in_channels_last_is_stored_the_same(tmp_path):
    model, _ = make(tmp_path / "a")
    model.to(memory_format=torch.channels_last)
    save_student(tmp_path / "b", model, load_student(tmp_path / "a").card)
    assert sha256_file(tmp_path / "a" / "model.safetensors") == sha256_file(tmp_path / "b" / "model.safetensors")


def test_a_run_folder_is_a_student_folder_and_can_be_moved(copy, tiny_student):
    assert is_student_dir(copy) and not is_student_dir(copy.parent)
    assert load_student(copy).card == load_student(tiny_student).card


@pytest.mark.parametrize("name", ["model.safetensors", "student.json"])
@pytest.mark.parametrize("where", [0.0, 0.013, 0.25, 0.5, 0.77, 0.9, 1.0])
def test_one_changed_byte_is_refused(copy, name, where):
    path = copy / name
    data = bytearray(path.read_bytes())
    data[round(where * (len(data) - 1))] ^= 0x01
    path.write_bytes(data)
    with pytest.raises(VerificationError, match=name):
        load_student(copy)


@pytest.mark.parametrize("name", ["model.safetensors", "student.json"])
@pytest.mark.parametrize("change", [lambda d: d[:-1], lambda d: d + b"\n", lambda _: b""])
def test_another_length_is_refused(copy, name, change):
    path = copy / name
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(VerificationError, match=name):
        load_student(copy)


@pytest.mark.parametrize("name", ["model.safetensors", "student.json"])
def test_a_missing_file_is_named(copy, name):
    (copy / name).unlink()
    with pytest.raises(VerificationError, match=name):
        load_student(copy)


def test_a_missing_folder(tmp_path):
    with pytest.raises(ModelError, match="nowhere does not exist"):
        load_student(tmp_path / "nowhere")


def test_weights_of_another_student_are_refused(copy, tmp_path):
    make(tmp_path / "other", classes=("RED", "GREEN", "BLUE"))
    shutil.copy2(tmp_path / "other" / "model.safetensors", copy / "model.safetensors")
    with pytest.raises(VerificationError, match=r"model\.safetensors differs from the hash"):
        load_student(copy)


def resealed(folder, **changes):
    value = read_sealed_json(folder / "student.json", kind="student", schema_version=2)
    write_sealed_json(folder / "student.json", {**value, **changes})


def test_a_sealed_card_that_contradicts_its_weights_is_refused(copy):
    resealed(copy, classes=["RED", "GREEN"])
    with pytest.raises(VerificationError, match="head of another size than the 2 classes"):
        load_student(copy)
    resealed(copy, classes=["RED", "GREEN", "BLUE"], architecture="torchvision/mobilenet_v2")
    with pytest.raises(ModelError, match="do not fit MobileNetV2"):
        load_student(copy)


@pytest.mark.parametrize("changes", [{"colour": "red"}, {"role": "king"}, {"classes": None}])
def test_a_malformed_card_is_refused(copy, changes):
    resealed(copy, **changes)
    with pytest.raises(VerificationError, match=r"student\.json is malformed"):
        load_student(copy)


def test_a_kill_between_weights_and_card_is_noticed(copy):
    """The old card beside new weights."""
    card = (copy / "student.json").read_bytes()
    make(copy)
    (copy / "student.json").write_bytes(card)
    with pytest.raises(VerificationError, match=r"model\.safetensors"):
        load_student(copy)
