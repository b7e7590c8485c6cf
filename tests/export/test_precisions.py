"""fp16 and int8: what they compile to, what they cost, and what is calibrated on."""

import json

import numpy as np
import onnx
import pytest
from tiny_runs import REAL, tiny_config

from dspkd.cli.sharing import training_images, validation_images
from dspkd.errors import UsageError
from dspkd.student import load_student
from dspkd.train.reporter import Reporter
from dspkd.train.run import run
from dspkd_export import export_student, verify
from dspkd_export.bounds import BOUNDS
from dspkd_export.calibration import Calibration, stratified_choice
from dspkd_export.comparison import compare_predictions, screening_threshold

TARGETS = ["onnx", "executorch"]


@pytest.fixture(scope="module")
def trained_student(tiny_data, tmp_path_factory):
    """Trained until batch norm's statistics have settled; with smoothed labels it stays less than certain. Random or
    hardly trained networks are so ill-conditioned that half precision changes their answers.
    """
    out = tmp_path_factory.mktemp("trained") / "run"
    stage = {
        "method": "cross_entropy",
        "epochs": 15,
        "settings": {"label_smoothing": 0.3},
        "optimizer": {"lr": 0.02},
    }
    run(tiny_config(tiny_data, out, model=REAL, size=64, stages=[stage], select="last"))
    return out


@pytest.fixture(scope="module")
def smaller_precisions(trained_student, tmp_path_factory):
    """{(target, precision): artifact}; the margin is wide, since a handful of validation pictures decides."""
    student, out = load_student(trained_student), tmp_path_factory.mktemp("precisions")
    made = export_student(
        trained_student,
        targets=TARGETS,
        precisions=["fp16", "int8"],
        out=out,
        images=validation_images(student, None, Reporter()),
        calibration=training_images(student, None, 12, Reporter()),
        margin=1.0,
    )
    return {(artifact.card.target, artifact.card.precision): artifact for artifact in made}


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_artifacts_verify(smaller_precisions, target, precision):
    artifact = smaller_precisions[(target, precision)]
    certificate = artifact.card.certificate
    assert certificate["passed"] is True
    assert certificate["max_abs_difference"] > 0.0, "it is not the fp32 model under another name"
    if precision == "fp16":
        assert certificate["max_abs_difference"] <= 1e-2
    assert verify(artifact.path).kind == "artifact"


@pytest.mark.parametrize("target", TARGETS)
def test_int8_files_are_small(smaller_precisions, trained_student, target):
    artifact = smaller_precisions[(target, "int8")]
    ratio = artifact.model_path.stat().st_size / (trained_student / "model.safetensors").stat().st_size
    # 350 k parameters: a part of the file is structure, which does not shrink.
    assert ratio < 0.45


def test_onnx_says_its_precision_explicitly(smaller_precisions):
    int8 = onnx.load(smaller_precisions[("onnx", "int8")].model_path)
    operators = {node.op_type for node in int8.graph.node}
    assert {"QuantizeLinear", "DequantizeLinear"} <= operators
    per_channel = [i for i in int8.graph.initializer if i.data_type == onnx.TensorProto.INT8 and len(i.dims) == 4]
    assert len(per_channel) > 50
    fp16 = onnx.load(smaller_precisions[("onnx", "fp16")].model_path)
    weights = [i for i in fp16.graph.initializer if len(i.dims) == 4]
    assert {i.data_type for i in weights if i.dims[0] > 1} == {onnx.TensorProto.FLOAT16}
    for model in (int8, fp16):
        assert model.graph.input[0].type.tensor_type.elem_type == onnx.TensorProto.FLOAT
        assert model.graph.output[0].type.tensor_type.elem_type == onnx.TensorProto.FLOAT
        assert json.loads({p.key: p.value for p in model.metadata_props}["dspkd.classes"]) == ["RED", "GREEN", "BLUE"]


def test_executorch_stays_one_delegate(smaller_precisions):
    details = smaller_precisions[("executorch", "int8")].card.details
    assert details["delegates"] == 1
    assert details["outside"] == []


def test_what_falls_off_the_accelerator_is_named_with_its_line(trained_student, tmp_path):
    (stock,) = export_student(
        trained_student,
        targets=["executorch"],
        precisions=["fp32"],
        out=tmp_path,
        images=validation_images(load_student(trained_student), None, Reporter()),
        rewrite=False,
    )
    assert stock.card.details["rewrite"] is False
    assert stock.card.details["delegates"] > 1
    assert any("chunk" in node["code"] for node in stock.card.details["outside"])


def test_calibration_images_are_of_the_training_part_and_recorded(smaller_precisions, trained_student):
    used = smaller_precisions[("onnx", "int8")].card.details["calibration"]
    assert (used["images"], used["part"]) == (12, "train")
    split = json.loads((trained_student / "split.json").read_text())
    chosen = training_images(load_student(trained_student), None, 12, Reporter())
    assert set(chosen.image_ids) <= set(split["train"])
    assert "calibration" not in smaller_precisions[("onnx", "fp16")].card.details


def test_int8_is_never_calibrated_silently_nor_on_the_judges(trained_student, tmp_path):
    images = validation_images(load_student(trained_student), None, Reporter())
    asked = {"targets": ["onnx"], "precisions": ["int8"], "out": tmp_path, "images": images}
    with pytest.raises(UsageError, match="calibration"):
        export_student(trained_student, **asked)
    with pytest.raises(UsageError, match="calibration and in the certificate"):
        export_student(trained_student, **asked, calibration=Calibration(images.pixels, images.image_ids))
    assert list(tmp_path.iterdir()) == []


def test_the_same_int8_export_gives_the_same_bytes(smaller_precisions, trained_student, tmp_path):
    student = load_student(trained_student)
    again = export_student(
        trained_student,
        targets=TARGETS,
        precisions=["int8"],
        out=tmp_path,
        images=validation_images(student, None, Reporter()),
        calibration=training_images(student, None, 12, Reporter()),
        margin=1.0,
    )
    for artifact in again:
        first = smaller_precisions[(artifact.card.target, "int8")].path
        for file in artifact.path.iterdir():
            assert file.read_bytes() == (first / file.name).read_bytes(), file.name


def test_stratified_choice_gives_rare_classes_their_turn():
    labels = np.array([0] * 50 + [1] * 3 + [2] * 20)
    chosen = stratified_choice(labels, 23)
    assert len(chosen) == len(set(chosen.tolist())) == 23
    assert np.bincount(labels[chosen]).tolist() == [10, 3, 10]
    assert np.array_equal(chosen, stratified_choice(labels, 23))
    assert len(stratified_choice(labels, 1000)) == 73
    with pytest.raises(UsageError, match="2 calibration images"):
        stratified_choice(labels, 2)


def test_bounds_become_looser_with_the_precision():
    assert list(BOUNDS) == ["fp32", "fp16", "int8"]
    agreement = [bound.top1_agreement for bound in BOUNDS.values()]
    assert agreement == sorted(agreement, reverse=True)


# Paired comparison ---------------------------------------------------------------------------------------------------

CLASSES = ("MEL", "NV")


def made_up(count=400, seed=0):
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 2, count)
    melanoma = np.clip(0.5 + (0.5 - labels) * 0.4 + rng.normal(0, 0.25, count), 0.001, 0.999)
    return labels, np.stack([melanoma, 1 - melanoma], axis=1), [str(i // 2) for i in range(count)]


def test_equal_answers_differ_by_nothing():
    labels, probabilities, lesions = made_up()
    result = compare_predictions(labels, probabilities, probabilities, lesions, CLASSES)
    assert set(result["metrics"]) == {
        "accuracy", "balanced_accuracy", "calibration_error", "melanoma_sensitivity", "melanoma_specificity",
    }  # fmt: skip
    for metric in result["metrics"].values():
        assert metric["difference"] == 0.0
        assert metric["interval"] == [0.0, 0.0]


def test_figures_agree_with_other_implementations():
    import torch
    from sklearn.metrics import balanced_accuracy_score, recall_score
    from torchmetrics.functional.classification import multiclass_calibration_error

    labels, probabilities, lesions = made_up()
    metrics = compare_predictions(labels, probabilities, probabilities, lesions, CLASSES)["metrics"]
    assert metrics["balanced_accuracy"]["pytorch"] == pytest.approx(
        balanced_accuracy_score(labels, probabilities.argmax(1))
    )
    expected = multiclass_calibration_error(torch.tensor(probabilities), torch.tensor(labels), num_classes=2, n_bins=15)
    assert metrics["calibration_error"]["pytorch"] == pytest.approx(float(expected), abs=1e-6)
    threshold = screening_threshold(labels, probabilities, CLASSES)
    flagged = (probabilities[:, 0] >= threshold).astype(int)
    assert metrics["melanoma_sensitivity"]["pytorch"] == pytest.approx(recall_score(labels == 0, flagged))
    assert recall_score(labels == 0, flagged) >= 0.9


def test_the_threshold_is_the_originals():
    """A deployed model that shifts every probability down misses melanomas, although its ranking is the same."""
    labels, probabilities, lesions = made_up()
    shifted = np.stack([probabilities[:, 0] * 0.8, 1 - probabilities[:, 0] * 0.8], axis=1)
    metric = compare_predictions(labels, probabilities, shifted, lesions, CLASSES)["metrics"]["melanoma_sensitivity"]
    assert metric["difference"] < -0.05
    assert metric["interval"][1] < 0.0


def test_without_melanoma_there_is_no_threshold():
    labels, probabilities, lesions = made_up()
    result = compare_predictions(labels, probabilities, probabilities, lesions, ("a", "b"))
    assert result["melanoma_threshold"] is None
    assert "melanoma_sensitivity" not in result["metrics"]


def test_the_interval_resamples_lesions():
    """Every picture four times: as one lesion each that is no new evidence, as lesions of their own it seems to be."""
    labels, reference, _ = made_up(100)
    deployed = np.roll(reference, 1, axis=0) * 0.3 + reference * 0.7
    labels, reference, deployed = (np.repeat(a, 4, axis=0) for a in (labels, reference, deployed))

    def width(lesions):
        metrics = compare_predictions(labels, reference, deployed, lesions, CLASSES)["metrics"]
        low, high = metrics["balanced_accuracy"]["interval"]
        return high - low

    together, apart = width([str(i // 4) for i in range(400)]), width([str(i) for i in range(400)])
    assert together > 1.5 * apart > 0.0
