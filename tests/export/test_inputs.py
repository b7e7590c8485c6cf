"""Preprocessing that travels with the model: bytes as input, and a temperature under the softmax."""

import numpy as np
import onnx
import pytest
import torch
from lively import SIZE, student_of

from dspkd.cli.sharing import artifact_classifier
from dspkd.errors import UsageError
from dspkd.runtimes import load_model, to_input
from dspkd_export import export_student, verify
from dspkd_export.deploy_module import deploy_module
from dspkd_export.temperature import fit_temperature, tempered

TARGETS = ["onnx", "executorch"]


@pytest.fixture(scope="module")
def byte_artifacts(lively_student, lively_images, tmp_path_factory):
    """{target: artifact} that take bytes, at temperature 2."""
    made = export_student(
        lively_student,
        targets=TARGETS,
        precisions=["fp32"],
        out=tmp_path_factory.mktemp("bytes"),
        images=lively_images,
        takes_bytes=True,
        temperature=2.0,
    )
    return {artifact.card.target: artifact for artifact in made}


@pytest.mark.parametrize("target", TARGETS)
def test_a_model_that_takes_bytes_says_so_and_verifies(byte_artifacts, target):
    artifact = byte_artifacts[target]
    assert artifact.card.certificate["passed"] is True
    assert artifact.card.certificate["max_abs_difference"] > 0.0
    given = artifact.card.input
    assert (given["dtype"], given["layout"], given["shape"][1:]) == ("uint8", "NHWC", [32, 32, 3])
    assert artifact.card.output["temperature"] == 2.0
    assert load_model(target, artifact.model_path).dtype == "uint8"
    assert verify(artifact.path).max_abs_difference <= 1e-4


@pytest.mark.parametrize("target", TARGETS)
def test_bytes_give_the_tempered_answers_of_the_float_model(byte_artifacts, lively_artifacts, lively_images, target):
    pixels = lively_images.pixels[:4]
    plain = artifact_classifier(lively_artifacts[target]).run(pixels)
    got = artifact_classifier(byte_artifacts[target].path).run(pixels)
    np.testing.assert_allclose(got, tempered(plain, 2.0), atol=1e-4)
    assert np.abs(got - plain).max() > 1e-2


def test_the_onnx_graph_itself_takes_bytes(byte_artifacts):
    model = onnx.load(byte_artifacts["onnx"].model_path)
    image = model.graph.input[0].type.tensor_type
    assert image.elem_type == onnx.TensorProto.UINT8
    assert [d.dim_value for d in image.shape.dim][1:] == [32, 32, 3]


@torch.no_grad()
def test_bytes_are_exact_in_float64(tmp_path):
    student = student_of("shufflenet_v2_x0_5", tmp_path)
    pixels = np.random.default_rng(0).integers(0, 256, (3, SIZE, SIZE, 3), dtype=np.uint8)
    takes_bytes = deploy_module(student, takes_bytes=True).double()
    takes_floats = deploy_module(student).double()
    images = torch.from_numpy(pixels).double().permute(0, 3, 1, 2) / 255
    # 255 times a mean, rounded to float32, is not exactly 255 times the float32 mean.
    torch.testing.assert_close(takes_bytes(torch.from_numpy(pixels)), takes_floats(images), atol=1e-6, rtol=0.0)


def test_to_input_scales_bytes():
    assert to_input(np.full((1, 2, 2, 3), 255, np.uint8)).max() == 1.0


# Temperature ---------------------------------------------------------------------------------------------------------


def overconfident(factor, count=4000, seed=0):
    """Labels drawn from the softmax of some logits, and the softmax of `factor` times these."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, 1.5, (count, 4))
    true = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    labels = (true.cumsum(1) < rng.random((count, 1))).sum(1)
    return labels, tempered(true, 1 / factor)


@pytest.mark.parametrize("factor", [0.5, 1.0, 3.0])
def test_the_temperature_that_was_put_in_is_found(factor):
    labels, probabilities = overconfident(factor)
    assert fit_temperature(labels, probabilities) == pytest.approx(factor, rel=0.06)


def test_the_fit_is_the_likelihoods_minimum():
    labels, probabilities = overconfident(3.0)
    best = fit_temperature(labels, probabilities)

    def loss(temperature):
        return -np.log(tempered(probabilities, temperature)[np.arange(len(labels)), labels]).mean()

    assert loss(best) < min(loss(best * 1.05), loss(best / 1.05))


def test_a_temperature_moves_confidence_never_the_class():
    _, probabilities = overconfident(1.0)
    cooler, warmer = tempered(probabilities, 0.5), tempered(probabilities, 2.0)
    assert (cooler.argmax(1) == probabilities.argmax(1)).all()
    assert (warmer.max(1) < cooler.max(1)).all()
    assert tempered(probabilities, 1.0) is probabilities


def test_certain_answers_stay_finite():
    certain = np.array([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]], dtype=np.float32)
    assert np.isfinite(tempered(certain, 3.0)).all()
    # Both are right, so the sharpest is the likeliest, up to where the search ends.
    assert fit_temperature(np.array([0, 1]), certain) < 1.0


@pytest.mark.parametrize("text", ["warm", "0", "-1", "nan", "100"])
def test_temperatures_that_are_none(text):
    from dspkd.cli.sharing import _temperature

    with pytest.raises(UsageError, match="no number from"):
        _temperature(text)
