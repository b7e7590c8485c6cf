"""Every method in a real run, taken up again after every single epoch."""

import json

import pytest
import torch
from tiny_runs import tiny_config

from dspkd.distill import METHODS
from dspkd.errors import DspkdError
from dspkd.student import load_student
from dspkd.train.checkpoint import read_checkpoint
from dspkd.train.reporter import Reporter
from dspkd.train.run import run


def stage(method, epochs=1, **settings):
    return {"method": method, "epochs": epochs, "settings": settings, "optimizer": {"lr": 0.005}}


STAGES = [
    stage("eml", 2),
    stage("ssd_head"),
    stage("ssd_kd", 2),
    stage("hf_fit", 2),
    stage("hf_masked_generation", hf="fitted", generator_width=8),
    stage("mgd", 2, mask="spatial", generator_width=8),
    stage("fitnets"),
    stage("d_kd"),
    stage("dsp_kd_joint", hf_masked_generation={"mask": "random", "generator_width": 8}),
    stage("wsld"),
    stage("vanilla_kd"),
]


class StopError(Exception):
    pass


class StopsAfterOneEpoch(Reporter):
    def __init__(self):
        self.lines = []

    def message(self, text):
        self.lines.append(text)
        if "val accuracy" in text:
            raise StopError


@pytest.fixture(scope="module")
def whole(tiny_data, tiny_teacher, tmp_path_factory):
    out = tmp_path_factory.mktemp("methods") / "whole"
    return run(tiny_config(tiny_data, out, teacher=tiny_teacher, stages=STAGES))


def history(folder):
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k != "images_per_s"} for line in lines]


def test_a_run_stopped_after_every_epoch_reaches_the_same_weights(whole, tiny_data, tiny_teacher, tmp_path):
    """Mutual learning takes its second network along, stages what an earlier one has fitted, masks the generator."""
    out = tmp_path / "run"
    for epoch in range(sum(s["epochs"] for s in STAGES)):
        with pytest.raises(StopError):
            run(
                tiny_config(tiny_data, out, teacher=tiny_teacher, stages=STAGES),
                resume=out.exists(),
                reporter=StopsAfterOneEpoch(),
            )
        if epoch == 0:
            saved = read_checkpoint(out / "checkpoints" / "last.pt")["auxiliary"]
            assert {key.split(".")[0] for key in saved} == {"peer", "method"}
            head = "head.fc.weight"
            assert not torch.equal(saved[f"peer.{head}"], load_student(tiny_teacher).model.state_dict()[head])
    run(tiny_config(tiny_data, out, teacher=tiny_teacher, stages=STAGES), resume=True)
    assert history(out) == history(whole.path)
    ours, theirs = load_student(out).model.state_dict(), whole.model.state_dict()
    assert all(torch.equal(ours[k], theirs[k]) for k in theirs)


def test_every_method_with_a_teacher_is_in_that_run():
    used = {s["method"] for s in STAGES} | {"norm_kd"}  # test_run.py has norm_kd
    assert used == {name for name, method in METHODS.items() if method.needs_teacher}


def test_a_run_without_distillation_is_no_student_even_beside_a_teacher(tiny_data, tiny_teacher, tmp_path):
    alone = run(tiny_config(tiny_data, tmp_path / "run", teacher=tiny_teacher, stages=[stage("cross_entropy")]))
    assert alone.card.role == "baseline"


def test_the_teachers_folder_stays_as_it_was(whole, tiny_teacher):
    assert load_student(tiny_teacher).card.weights_sha256 == whole.card.teacher["weights_sha256"]


def test_mutual_learning_without_a_teacher_says_so(tiny_data, tmp_path):
    with pytest.raises(DspkdError, match=r"eml.*needs a teacher"):
        run(tiny_config(tiny_data, tmp_path / "run", stages=[stage("eml")]))


def test_the_drawn_shares_of_the_classes_reach_the_method(tiny_data, tiny_teacher, tmp_path):
    """With `balance = 0` they are the natural mix of the training part."""
    seen = []

    def spy(cls, settings, context):
        seen.append(context.class_shares)
        return built(settings, context)

    built = METHODS["d_kd"].build
    data = {"root": str(tiny_data), "balance": 0.0}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(METHODS["d_kd"], "build", classmethod(spy))
        run(tiny_config(tiny_data, tmp_path / "run", teacher=tiny_teacher, stages=[stage("d_kd")], data=data))
    train = json.loads((tmp_path / "run" / "split.json").read_text())["train"]
    counts = [sum(image.startswith(name) for image in train) for name in ("RED", "GREEN", "BLUE")]
    assert seen == [pytest.approx(tuple(count / len(train) for count in counts))]
