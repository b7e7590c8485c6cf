"""Quantisation-aware distillation: what it leaves, that it can be resumed, and that both runtimes take its scales."""

import json
import shutil

import numpy as np
import onnx
import pytest
import torch

from dspkd.cli.sharing import training_images, validation_images
from dspkd.errors import CheckpointError, OutputError, UsageError, VerificationError
from dspkd.student import load_student, read_quantised, save_student
from dspkd.train.reporter import Reporter
from dspkd_export import export_student, verify
from dspkd_export.temperature import tempered

pytest.importorskip("executorch")
from dspkd_export.qat import QatConfig, quantisation_aware_stage


class Interrupted(BaseException):
    pass


class StopsAfter(Reporter):
    """Interrupts when `epoch` is finished."""

    def __init__(self, epoch):
        self.epoch = epoch

    def message(self, text):
        if text.startswith(f"qat {self.epoch}/"):
            raise Interrupted


@pytest.fixture(scope="module")
def settings(real_student):
    return {"student": real_student, "epochs": 2, "lr": 1e-3, "batch_size": 8}


@pytest.fixture(scope="module")
def quantised(settings, tmp_path_factory):
    out = tmp_path_factory.mktemp("qat") / "run"
    quantisation_aware_stage(QatConfig(out=out, **settings))
    return out


@pytest.fixture(scope="module")
def int8_artifacts(quantised, tmp_path_factory):
    student = load_student(quantised)
    made = export_student(
        quantised,
        targets=["onnx", "executorch"],
        precisions=["int8"],
        out=tmp_path_factory.mktemp("int8"),
        images=validation_images(student, None, Reporter()),
        calibration=training_images(student, None, 12, Reporter()),
        margin=1.0,
    )
    return {artifact.card.target: artifact for artifact in made}


def test_the_result_is_the_same_student_with_a_second_set_of_weights(quantised, real_student):
    before, after = load_student(real_student), load_student(quantised)
    assert after.card.weights_sha256 == before.card.weights_sha256
    assert after.card.metrics == before.card.metrics
    about = after.card.quantised
    assert about["metrics"].keys() == {"val", "test"}
    assert about["metrics"]["test"]["n"] == before.card.metrics["test"]["n"]
    assert 1 <= about["epoch"] <= 2
    assert (quantised / "split.json").read_bytes() == (real_student / "split.json").read_bytes()
    lines = [json.loads(line) for line in (quantised / "metrics.jsonl").read_text().splitlines()]
    assert [(line["stage"], line["epoch"]) for line in lines] == [("qat", 1), ("qat", 2)]
    assert verify(quantised).kind == "student"


def test_it_has_trained_and_learned_scales(quantised):
    state = read_quantised(load_student(quantised))
    scales = [value for name, value in state.items() if name.endswith(".scale")]
    assert len(scales) > 100
    assert all(torch.isfinite(s).all() and (s > 0).all() for s in scales)
    assert len({float(s.flatten()[0]) for s in scales}) > 50, "ranges that saw no image are all alike"
    float_weights = {tuple(v.shape): v for v in load_student(quantised).model.state_dict().values() if v.ndim == 2}
    head = next(v for name, v in state.items() if name.endswith("classifier.weight"))
    assert not torch.equal(head, float_weights[tuple(head.shape)])


def test_both_runtimes_answer_from_the_same_scales(int8_artifacts):
    answers = {target: artifact.card.certificate for target, artifact in int8_artifacts.items()}
    assert all(artifact.card.details["trained_int8"] is True for artifact in int8_artifacts.values())
    # Nothing was calibrated, and nothing says so.
    assert all("calibration" not in artifact.card.details for artifact in int8_artifacts.values())
    assert answers["onnx"]["n"] == answers["executorch"]["n"] > 0
    with (
        np.load(int8_artifacts["onnx"].path / "golden.npz") as a,
        np.load(int8_artifacts["executorch"].path / "golden.npz") as b,
    ):
        # Kernels differ in how they round a half; other scales would differ by more.
        assert np.abs(a["deployed"] - b["deployed"]).max() < 0.05
    for artifact in int8_artifacts.values():
        assert artifact.card.source["int8_weights_sha256"] != artifact.card.source["weights_sha256"]
        assert verify(artifact.path).kind == "artifact"


def test_the_onnx_model_carries_the_stored_scales(int8_artifacts, quantised):
    model = onnx.load(int8_artifacts["onnx"].model_path)
    operators = {node.op_type for node in model.graph.node}
    assert {"QuantizeLinear", "DequantizeLinear"} <= operators
    stored = {
        round(float(v), 9)
        for name, value in read_quantised(load_student(quantised)).items()
        if name.endswith(".scale") and value.numel() == 1
        for v in value.flatten()
    }
    written = {
        round(float(onnx.numpy_helper.to_array(i)), 9)
        for i in model.graph.initializer
        if i.data_type == onnx.TensorProto.FLOAT and onnx.numpy_helper.to_array(i).size == 1
    }
    assert len(stored & written) > 20
    assert all(not node.metadata_props and not node.doc_string for node in model.graph.node)


def test_executorch_stays_one_delegate(int8_artifacts):
    assert int8_artifacts["executorch"].card.details["delegates"] == 1


def test_a_killed_stage_goes_on_to_the_same_weights(settings, quantised, tmp_path):
    config = QatConfig(out=tmp_path / "run", **settings)
    with pytest.raises(Interrupted):
        quantisation_aware_stage(config, reporter=StopsAfter(1))
    assert not (tmp_path / "run" / "student.json").exists()
    with pytest.raises(OutputError, match="--resume"):
        quantisation_aware_stage(config)
    with pytest.raises(CheckpointError, match="another configuration"):
        quantisation_aware_stage(QatConfig(**{**settings, "lr": 1e-4}, out=tmp_path / "run"), resume=True)
    quantisation_aware_stage(config, resume=True)
    assert (tmp_path / "run" / "int8.safetensors").read_bytes() == (quantised / "int8.safetensors").read_bytes()
    again = quantisation_aware_stage(config, resume=True)
    assert again.card.quantised == load_student(tmp_path / "run").card.quantised


def test_one_flipped_byte_of_the_eight_bit_weights_is_noticed(quantised, tmp_path):
    folder = shutil.copytree(quantised, tmp_path / "copy")
    content = bytearray((folder / "int8.safetensors").read_bytes())
    content[-1] ^= 1
    (folder / "int8.safetensors").write_bytes(content)
    with pytest.raises(VerificationError, match=r"int8\.safetensors"):
        verify(folder)
    (folder / "int8.safetensors").unlink()
    with pytest.raises(VerificationError, match=r"int8\.safetensors is missing"):
        load_student(folder)


def test_a_student_that_was_not_distilled_needs_a_teacher_by_name(tiny_teacher, tmp_path):
    with pytest.raises(UsageError, match="no teacher is known"):
        quantisation_aware_stage(QatConfig(student=tiny_teacher, out=tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_the_student_itself_is_not_overwritten(settings):
    with pytest.raises(UsageError, match="is the student itself"):
        quantisation_aware_stage(QatConfig(out=settings["student"], **settings), resume=True)


def test_another_teacher_is_not_taken_for_the_same(settings, quantised, tmp_path, tiny_teacher):
    """Retrained in place since: neither a new stage nor a resume goes on with it in silence."""
    student = load_student(settings["student"])
    other = shutil.copytree(tiny_teacher, tmp_path / "teacher")
    loaded = load_student(other)
    with torch.no_grad():
        next(loaded.model.parameters()).add_(0.1)
    save_student(other, loaded.model, loaded.card)
    moved = student.card.model_copy(update={"config": {**student.card.config, "teacher": str(other)}})
    changed = shutil.copytree(settings["student"], tmp_path / "student")
    save_student(changed, student.model, moved)
    with pytest.raises(UsageError, match="no longer the teacher"):
        quantisation_aware_stage(QatConfig(**{**settings, "student": changed}, out=tmp_path / "run"))
    run = shutil.copytree(quantised, tmp_path / "run")
    with pytest.raises(CheckpointError, match="another configuration"):
        quantisation_aware_stage(QatConfig(**settings, teacher=other, out=run), resume=True)
    # The same teacher by its name is the same stage.
    quantisation_aware_stage(QatConfig(**settings, teacher=tiny_teacher, out=run), resume=True)


@pytest.mark.parametrize("wrong", [{"lr": 0.0}, {"lr": -1.0}, {"lr": float("nan")}, {"seed": -1}, {"epochs": 0}])
def test_numbers_that_are_none(settings, tmp_path, wrong):
    with pytest.raises(UsageError, match="--"):
        quantisation_aware_stage(QatConfig(**{**settings, **wrong}, out=tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_trained_int8_with_bytes_and_a_temperature(quantised, int8_artifacts, tmp_path):
    """The stored scales fit the graph that begins with bytes and ends with a temperature."""
    student = load_student(quantised)
    (artifact,) = export_student(
        quantised,
        targets=["onnx"],
        precisions=["int8"],
        out=tmp_path,
        images=validation_images(student, None, Reporter()),
        calibration=training_images(student, None, 12, Reporter()),
        margin=1.0,
        takes_bytes=True,
        temperature=2.0,
    )
    assert artifact.card.details["trained_int8"] is True
    with (
        np.load(artifact.path / "golden.npz") as bytes_in,
        np.load(int8_artifacts["onnx"].path / "golden.npz") as plain,
    ):
        expected = tempered(plain["deployed"], 2.0)
        assert np.abs(bytes_in["deployed"] - expected).max() < 0.05
