"""What an export leaves behind: complete, right, the same every time, free of this machine, and whole or not there."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from dspkd.artifact import load_artifact
from dspkd.errors import GateError, UsageError
from dspkd.runtimes import LoadedModel, load_model, to_input
from dspkd.student import load_card, load_student, save_student
from dspkd_export import TARGETS, export_student
from dspkd_export.bounds import BOUNDS
from dspkd_export.certificate import Images, certify
from dspkd_export.job import Compiled

onnx = pytest.importorskip("onnx")
FILES = {"onnx": {"model.onnx", "model_static.onnx"}, "executorch": {"model.pte"}}
TARGET_NAMES = tuple(FILES)
# float32 against float64. A forgotten mean or a softmax over the wrong axis is a thousand times further off.
CLOSE = 1e-4


def by_hand(folder, pixels):
    """Probabilities from the stored weights and the card alone, without any code of the export."""
    student = load_student(folder)
    preprocess = student.card.preprocess
    images = torch.from_numpy(np.array(pixels)).double().permute(0, 3, 1, 2) / 255
    mean, std = (torch.tensor(v, dtype=torch.float64).view(1, 3, 1, 1) for v in (preprocess.mean, preprocess.std))
    with torch.no_grad():
        return torch.softmax(student.model.double()((images - mean) / std), dim=1).numpy()


def snapshot(folder):
    return {p.name: p.read_bytes() for p in sorted(folder.iterdir())}


@pytest.fixture
def copying_target(lively_artifacts, monkeypatch):
    """ONNX export that takes no time: it copies the model files of `lively_artifacts`."""

    def copy(job):
        for name in FILES["onnx"]:
            shutil.copy(lively_artifacts["onnx"] / name, job.folder / name)
        models = tuple(sorted(FILES["onnx"]))
        return Compiled(models, {}, loaded={name: load_model("onnx", job.folder / name) for name in models})

    real = TARGETS["onnx"]
    monkeypatch.setitem(TARGETS, "onnx", replace(real, compile=copy))


@pytest.fixture
def other_student(lively_student, tmp_path):
    """The lively student with one logit raised: it answers another class for some pictures."""
    student, folder = load_student(lively_student), tmp_path / "other"
    shutil.copytree(lively_student, folder)
    with torch.no_grad():
        student.model.fc.bias[0] += 2.0
    save_student(folder, student.model, student.card)
    return folder


@pytest.mark.parametrize("target", TARGET_NAMES)
def test_an_artifact_is_complete(lively_artifacts, lively_student, target):
    folder = lively_artifacts[target]
    assert {p.name for p in folder.iterdir()} == FILES[target] | {"golden.npz", "artifact.json"}
    assert [p.name for p in folder.parent.iterdir() if p.name.startswith(".")] == []
    card, source = load_artifact(folder).card, load_card(lively_student)
    assert set(card.files) == FILES[target] | {"golden.npz"}
    assert card.model_file in FILES[target]
    assert (card.target, card.precision) == (target, "fp32")
    assert card.classes == source.classes == ("RED", "GREEN", "BLUE")
    assert card.preprocess == source.preprocess
    assert card.source["weights_sha256"] == source.weights_sha256
    assert card.source["role"] == "student"


@pytest.mark.parametrize("target", TARGET_NAMES)
def test_the_certificate_covers_the_whole_validation_part_on_the_targets_runtime(
    lively_artifacts, lively_student, target
):
    certificate = load_artifact(lively_artifacts[target]).card.certificate
    validation = json.loads((lively_student / "split.json").read_text())["val"]
    assert certificate["n"] == len(validation) > 1
    assert certificate["passed"] is True
    assert certificate["top1_agreement"] == 1.0
    assert certificate["flipped"] == []
    # Exactly 0 would mean that PyTorch was compared with itself, or that the answers are all 0 and 1.
    assert 0.0 < certificate["max_abs_difference"] < 1e-4
    assert certificate["runtime"].startswith({"onnx": "onnxruntime ", "executorch": "executorch "}[target])
    error = certificate["paired"]["metrics"]["calibration_error"]
    for side in ("pytorch", "deployed"):
        assert certificate[side]["calibration"]["ece"] == pytest.approx(error[side], abs=1e-6)
    assert set(certificate["files"]) == FILES[target]
    for name, of_file in certificate["files"].items():
        assert of_file["sha256"] == load_artifact(lively_artifacts[target]).card.files[name].sha256
        assert of_file["deployed"]["accuracy"] == certificate["deployed"]["accuracy"]


@pytest.mark.parametrize(("target", "file"), [(t, f) for t, files in FILES.items() for f in sorted(files)])
def test_normalisation_and_softmax_are_inside(lively_artifacts, lively_student, lively_images, target, file):
    pixels = lively_images.pixels[:5]
    got = load_model(target, lively_artifacts[target] / file).run(to_input(pixels))
    assert got.dtype == np.float32
    np.testing.assert_allclose(got.sum(1), 1.0, atol=1e-5)
    np.testing.assert_allclose(got, by_hand(lively_student, pixels), atol=CLOSE)


@pytest.mark.parametrize("batch", [1, 5])
def test_onnx_takes_any_batch_under_a_name(lively_artifacts, lively_student, lively_images, batch):
    onnxruntime = pytest.importorskip("onnxruntime")
    session = onnxruntime.InferenceSession(
        str(lively_artifacts["onnx"] / "model.onnx"), providers=["CPUExecutionProvider"]
    )
    (entry,) = session.get_inputs()
    assert (entry.name, entry.type, entry.shape) == ("image", "tensor(float)", ["batch", 3, 32, 32])
    assert [o.name for o in session.get_outputs()] == ["probabilities"]
    pixels = lively_images.pixels[:batch]
    (got,) = session.run(None, {"image": to_input(pixels)})
    np.testing.assert_allclose(got, by_hand(lively_student, pixels), atol=CLOSE)


def test_the_static_onnx_file_takes_one_image(lively_artifacts):
    model = onnx.load(lively_artifacts["onnx"] / "model_static.onnx")
    (entry,) = model.graph.input
    assert [d.dim_value for d in entry.type.tensor_type.shape.dim] == [1, 3, 32, 32]


@pytest.mark.parametrize("file", sorted(FILES["onnx"]))
def test_an_onnx_file_alone_says_its_classes_and_preprocessing(lively_artifacts, lively_student, file):
    entries = {p.key: p.value for p in onnx.load(lively_artifacts["onnx"] / file).metadata_props}
    card = load_card(lively_student)
    assert json.loads(entries["dspkd.classes"]) == list(card.classes)
    assert json.loads(entries["dspkd.preprocess"]) == card.preprocess.model_dump(mode="json")


def test_shufflenet_is_one_delegate(lively_artifacts):
    details = load_artifact(lively_artifacts["executorch"]).card.details
    assert details["backend"] == "XNNPACK"
    assert details["delegates"] == 1


@pytest.mark.parametrize("target", TARGET_NAMES)
def test_no_file_knows_where_it_was_made(lively_artifacts, lively_student, tiny_data, target):
    root = Path(__file__).resolve().parents[2]
    traces = [root, Path.home(), Path(torch.__file__).parents[1], lively_student, lively_artifacts[target], tiny_data]
    for file in lively_artifacts[target].iterdir():
        content = file.read_bytes()
        found = [str(trace) for trace in traces if str(trace).encode() in content]
        assert not found, f"{file.name} contains {found}"
        assert b".py" not in content, f"{file.name} names a source file"


def test_the_same_student_gives_the_same_bytes(lively_artifacts, lively_student, lively_images, tmp_path):
    again = export_student(
        lively_student, targets=TARGET_NAMES, precisions=["fp32"], out=tmp_path / "again", images=lively_images
    )
    for artifact in again:
        first, second = snapshot(lively_artifacts[artifact.card.target]), snapshot(artifact.path)
        assert first.keys() == second.keys()
        assert [name for name in first if first[name] != second[name]] == []


@pytest.mark.parametrize("failing", ["certify", "write_card", "describe_model"])
def test_a_failure_midway_leaves_the_old_artifact(
    copying_target, lively_artifacts, lively_student, lively_images, tmp_path, monkeypatch, failing
):
    old = tmp_path / "onnx-fp32"
    shutil.copytree(lively_artifacts["onnx"], old)
    before = snapshot(old)

    def fail(*_args, **_kwargs):
        raise RuntimeError("midway")

    monkeypatch.setattr(f"dspkd_export.export.{failing}", fail)
    with pytest.raises(RuntimeError, match="midway"):
        export_student(lively_student, targets=["onnx"], precisions=["fp32"], out=tmp_path, images=lively_images)
    assert snapshot(old) == before
    assert [p.name for p in tmp_path.iterdir()] == ["onnx-fp32"]


def test_a_failure_midway_leaves_nothing_where_nothing_was(lively_student, lively_images, tmp_path, monkeypatch):
    def fail(job):
        (job.folder / "model.onnx").write_bytes(b"half")
        raise RuntimeError("midway")

    real = TARGETS["onnx"]
    monkeypatch.setitem(TARGETS, "onnx", replace(real, compile=fail))
    with pytest.raises(RuntimeError, match="midway"):
        export_student(lively_student, targets=["onnx"], precisions=["fp32"], out=tmp_path, images=lively_images)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("targets", "precisions", "named"),
    [
        (["onnx", "coreml"], ["fp32"], "coreml"),
        (["onnx"], ["int3"], "int3"),
        ([], ["fp32"], "no target"),
        (["onnx"], [], "no precision"),
    ],
)
def test_unknown_targets_and_precisions_are_refused_before_any_work(
    lively_student, lively_images, tmp_path, targets, precisions, named
):
    with pytest.raises(UsageError, match=named) as caught:
        export_student(lively_student, targets=targets, precisions=precisions, out=tmp_path, images=lively_images)
    assert caught.value.exit_code == 2
    assert "onnx" in str(caught.value) or "fp32" in str(caught.value), "the hint says what there is"
    assert list(tmp_path.iterdir()) == []


def test_a_failed_certificate_is_a_gate_error_and_marks_the_artifact(
    copying_target, other_student, lively_images, tmp_path
):
    with pytest.raises(GateError, match="onnx-fp32") as caught:
        export_student(other_student, targets=["onnx"], precisions=["fp32"], out=tmp_path, images=lively_images)
    assert caught.value.exit_code == 3
    certificate = load_artifact(tmp_path / "onnx-fp32").card.certificate
    assert certificate["passed"] is False
    assert certificate["max_abs_difference"] > BOUNDS["fp32"].max_abs_difference
    # The images that flipped are what one looks at next.
    assert set(certificate["flipped"]) <= set(lively_images.image_ids)
    assert certificate["top1_agreement"] == 1 - len(certificate["flipped"]) / len(lively_images) < 1.0


def test_a_stand_in_that_fails_fails_the_artifact(
    other_student, lively_artifacts, lively_images, tmp_path, monkeypatch
):
    def copy(job):
        shutil.copy(lively_artifacts["onnx"] / "model.onnx", job.folder / "model.onnx")
        model = load_model("onnx", job.folder / "model.onnx")
        return Compiled(("model.onnx",), {}, not_run="no device at hand", stand_in={"model.onnx": model})

    monkeypatch.setitem(TARGETS, "tensorrt", replace(TARGETS["tensorrt"], compile=copy))
    with pytest.raises(GateError, match="tensorrt-fp32"):
        export_student(other_student, targets=["tensorrt"], precisions=["fp32"], out=tmp_path, images=lively_images)
    certificate = load_artifact(tmp_path / "tensorrt-fp32").card.certificate
    assert certificate["passed"] is certificate["stand_in"]["passed"] is False
    assert certificate["not_run"] == "no device at hand"


def test_a_precision_that_one_of_several_targets_lacks_is_left_out(
    lively_student, lively_images, tmp_path, copying_target, monkeypatch
):
    monkeypatch.setitem(TARGETS, "executorch", replace(TARGETS["onnx"], precisions=("fp16",)))
    made = export_student(
        lively_student, targets=["onnx", "executorch"], precisions=["fp32", "fp16"], out=tmp_path, images=lively_images
    )
    assert [a.path.name for a in made] == ["onnx-fp32", "onnx-fp16", "executorch-fp16"]
    with pytest.raises(UsageError, match="executorch has no precision fp32"):
        export_student(lively_student, targets=["executorch"], precisions=["fp32"], out=tmp_path, images=lively_images)


CLASSES = ("a", "b", "c")
REFERENCE = np.array([[0.5, 0.3, 0.2], [0.2, 0.6, 0.2], [0.1, 0.2, 0.7], [0.4, 0.35, 0.25]], dtype=np.float32)


def certificate_of(*answers):
    """`answers` are those of each model file, one row per image."""
    images = Images(
        np.arange(4, dtype=np.uint8).repeat(12).reshape(4, 2, 2, 3), np.array([0, 1, 2, 0]), list("wxyz"), list("1234"),
        "four made-up images",
    )  # fmt: skip

    def fake(answer):
        # The first pixel is the image's number.
        return LoadedModel("fake 1", lambda x: answer[np.rint(x[:, 0, 0, 0] * 255).astype(int)])

    deployed = {f"model{i}": fake(answer) for i, answer in enumerate(answers)}
    return certify(lambda pixels: REFERENCE[pixels[:, 0, 0, 0]], deployed, images, CLASSES, "fp32")


def changed(row, values):
    answer = REFERENCE.copy()
    answer[row] = values
    return answer


def test_equal_answers_pass():
    certificate = certificate_of(REFERENCE)
    assert certificate["passed"] is True
    assert certificate["max_abs_difference"] == 0.0


def test_a_difference_within_the_bound_passes_and_above_it_fails():
    assert certificate_of(changed(0, [0.50005, 0.29995, 0.2]))["passed"] is True
    certificate = certificate_of(changed(0, [0.5002, 0.2998, 0.2]))
    assert certificate["passed"] is False
    assert certificate["top1_agreement"] == 1.0
    assert certificate["max_abs_difference"] == pytest.approx(2e-4, rel=1e-2)


def test_one_flipped_image_fails_and_is_named():
    certificate = certificate_of(changed(3, [0.35, 0.4, 0.25]))
    assert certificate["passed"] is False
    assert certificate["flipped"] == ["z"]
    assert certificate["top1_agreement"] == 0.75


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_an_answer_that_is_no_number_fails(bad):
    # In the place of the likeliest class argmax still agrees, so that nothing but the difference can notice.
    certificate = certificate_of(changed(0, [bad, 0.3, 0.2]))
    assert certificate["passed"] is False
    json.dumps(certificate, allow_nan=False)
    only_nan = certificate_of(np.full_like(REFERENCE, bad))
    assert only_nan["passed"] is False
    json.dumps(only_nan, allow_nan=False)


def test_the_worst_file_decides():
    for answers in ((REFERENCE, changed(1, [0.3, 0.5, 0.2])), (changed(1, [0.3, 0.5, 0.2]), REFERENCE)):
        certificate = certificate_of(*answers)
        assert certificate["passed"] is False
        assert certificate["max_abs_difference"] == pytest.approx(0.1, rel=1e-4)


def test_each_file_keeps_its_own_metrics():
    certificate = certificate_of(REFERENCE, changed(3, [0.35, 0.4, 0.25]))
    accuracies = [certificate["files"][name]["deployed"]["accuracy"] for name in ("model0", "model1")]
    assert accuracies == [1.0, 0.75] and certificate["deployed"]["accuracy"] == 0.75
