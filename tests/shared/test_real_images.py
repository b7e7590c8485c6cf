"""The way from real dermatoscopic images to certified artifacts, short: one epoch at 64 px."""

import json

import pytest

from dspkd.cli.sharing import validation_images
from dspkd.config import parse_run_config
from dspkd.models import create_model, load_weights
from dspkd.student import load_student
from dspkd.train.reporter import Reporter
from dspkd.train.run import run

pytestmark = [pytest.mark.shared, pytest.mark.slow]


@pytest.fixture(scope="module")
def student(shared_data, tmp_path_factory):
    out = tmp_path_factory.mktemp("real") / "run"
    values = {
        "model": "shufflenet_v2_x1_0",
        "data": {"root": str(shared_data / "derm")},
        "size": 64,
        "out": str(out),
        "stages": [{"method": "cross_entropy", "epochs": 1, "optimizer": {"lr": 0.02}}],
    }
    run(parse_run_config(values, origin="test"))
    return out


def test_one_epoch_is_better_than_chance(student):
    card = load_student(student).card
    assert card.classes == ("MEL", "NV", "BCC", "AK", "BKL", "DF", "VASC", "SCC")
    assert sum(card.data["images"].values()) == 12119
    # Chance is 1/8. One epoch reaches about 0.28.
    assert card.metrics["test"]["balanced_accuracy"] > 0.18


@pytest.mark.parametrize("target", ["onnx", "executorch"])
def test_certificate_over_the_whole_validation_part(student, tmp_path, target):
    from dspkd_export import export_student, verify

    images = validation_images(load_student(student), None, Reporter())
    (artifact,) = export_student(student, targets=[target], precisions=["fp32"], out=tmp_path, images=images)
    certificate = artifact.card.certificate
    assert certificate["n"] == len(json.loads((student / "split.json").read_text())["val"]) > 1000
    assert certificate["top1_agreement"] == 1.0
    assert certificate["max_abs_difference"] < 1e-4
    assert certificate["passed"]
    assert verify(artifact.path).max_abs_difference < 1e-4


def test_imagenet_weights_fit_and_the_head_is_said_to_start_afresh(shared_data):
    report = load_weights(
        create_model("tf_efficientnet_lite0", 8), shared_data / "weights" / "tf_efficientnet_lite0.pth"
    )
    assert report.loaded > 200
    assert set(report.replaced_head) == {"classifier.weight", "classifier.bias"}
    assert "start afresh" in str(report)
