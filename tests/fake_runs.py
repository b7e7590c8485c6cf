"""Comparisons without training: finished run folders with predictions of a chosen quality."""

import csv
import hashlib
import json

import numpy as np

from dspkd.compare.execution import write_recipes
from dspkd.compare.plan import make_plan
from dspkd.compare.spec import parse_comparison
from dspkd.config import to_toml
from dspkd.fileio import write_sealed_json
from dspkd.models import Architecture
from dspkd.preprocess import Preprocess
from dspkd.student import StudentCard

__all__ = ["CLASSES", "comparison_values", "fake_run", "finish_all", "plan_of"]

CLASSES = ("MEL", "NV", "BCC")
LESIONS, IMAGES_PER_LESION = 150, 2


def comparison_values(root, **more):
    """One teacher, one student, two seeds, three methods."""
    return {
        "epochs": 2,
        "seeds": [0, 1],
        "data": {"root": str(root)},
        "training": {"size": 32, "batch_size": 8, "device": "cpu", "optimizer": {"lr": 0.05}},
        "teachers": {"big": {"model": "timm/resnet18", "epochs": 1}},
        "students": {"small": {"model": "shufflenet_v2_x0_5"}},
        "methods": {
            "alone": {"stages": [{"method": "cross_entropy"}]},
            "norm_kd": {"stages": [{"method": "norm_kd"}]},
            "dsp_kd": {"preset": "default", "label": "DSP-KD", "tuned": "alpha, on validation"},
        },
        **more,
    }


def plan_of(values, out):
    return make_plan(parse_comparison(values, origin="file.toml"), out, origin="file.toml")


def fake_run(cell, skill, *, parts=("val", "test"), split_sha256="split", rng=None):
    """Write the run folder of `cell` as if it had been trained to be right with probability `skill`."""
    out = cell.config.out
    out.mkdir(parents=True, exist_ok=True)
    rng = rng or np.random.default_rng(int(hashlib.sha256(cell.name.encode()).hexdigest()[:8], 16))
    metrics = {"val": {"balanced_accuracy": skill}, "selected": {"stage": 1, "epoch": 1, "rule": "best"}}
    for part in parts:
        write_predictions(out / f"predictions-{part}.csv", skill, rng)
    teacher = None if cell.config.teacher is None else {"weights_sha256": f"sha of {cell.teacher}"}
    card = StudentCard(
        role="baseline" if teacher is None else "student",
        architecture=Architecture(cell.config.model).name,
        classes=CLASSES,
        preprocess=Preprocess(size=cell.config.size),
        weights_sha256=f"sha of {cell.teacher}" if cell.method is None else f"sha of {cell.name}",
        metrics=metrics,
        data={"images": {"train": 640, "val": 100, "test": 300}, "split_sha256": split_sha256},
        teacher=teacher,
    )
    lines, count = [], 0
    for stage in cell.config.stages:
        for epoch in range(stage.epochs):
            count += 1
            lines.append(
                {
                    "stage": stage.method,
                    "epoch": epoch + 1,
                    "global_epoch": count,
                    "train_loss": 1.0 / count,
                    "images_per_s": 64.0,
                    "val": {"balanced_accuracy": skill * (1 - 0.5**count)},
                }
            )
    (out / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (out / "config.toml").write_text(to_toml(cell.config))
    write_sealed_json(out / "student.json", card.model_dump(mode="json"))


def write_predictions(path, skill, rng):
    """300 images of 150 lesions; both images of a lesion are right or wrong together."""
    rows = []
    for lesion in range(LESIONS):
        truth = lesion % len(CLASSES)
        answer = truth if rng.random() < skill else (truth + 1 + rng.integers(len(CLASSES) - 1)) % len(CLASSES)
        for image in range(IMAGES_PER_LESION):
            rows.append([f"{lesion}-{image}", f"lesion-{lesion}", "", CLASSES[truth], CLASSES[answer]])
    with path.open("w", newline="") as f:
        csv.writer(f).writerows([["image", "lesion", "source", "label", "predicted"], *rows])


def finish_all(plan, skills):
    """Every cell finished; `skills` by method, `teacher` for the teachers'."""
    write_recipes(plan)
    for cell in plan.cells:
        fake_run(cell, skills[cell.method or "teacher"])
