"""Made-up measurements for the bench's tests. The numbers are plausible and mean nothing."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch

from dspkd.train.metrics import summarise
from dspkd_bench.latency import latency_summary, ratio_of_medians
from dspkd_bench.report import ReportContent, RunSummary

CLASSES = ("MEL", "NV", "BCC", "AK", "BKL", "DF", "VASC", "SCC")
NETWORKS = {
    "teacher": ("timm/res2net101_26w_4s", 43_174_000, 8_100_000_000, "a" * 64, 0.71),
    "student": ("torchvision/shufflenet_v2_x1_0", 1_262_000, 144_500_000, "b" * 64, 0.66),
}
MEDIANS_MS = {
    ("teacher", "pytorch"): 229.0,
    ("teacher", "onnx"): 166.0,
    ("teacher", "executorch"): 202.0,
    ("student", "pytorch"): 11.2,
    ("student", "onnx"): 4.5,
    ("student", "executorch"): 3.9,
}


@pytest.fixture(autouse=True)
def _restore_torch_threads():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def made_up_metrics(seed: int, skill: float, classes: Sequence[str] = CLASSES, *, n: int = 2425) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    labels = rng.choice(8, size=n, p=[0.18, 0.44, 0.14, 0.04, 0.12, 0.02, 0.02, 0.04])
    right = rng.random(n) < skill
    answers = np.where(right, labels, rng.choice(8, size=n, p=[0.25, 0.2, 0.1, 0.1, 0.2, 0.05, 0.02, 0.08]))
    probabilities = np.full((n, 8), 0.04)
    probabilities[np.arange(n), answers] = 0.72
    return summarise(labels, probabilities, classes, groups=[str(i // 2) for i in range(n)])


def made_up_curves(final: float, stages: list[tuple[str, int]]) -> list[dict[str, Any]]:
    lines: list[dict[str, Any]] = []
    for stage, epochs in stages:
        for epoch in range(epochs):
            number = len(lines) + 1
            score = final * (1 - np.exp(-number / 3)) + 0.01 * np.sin(5 * number)
            lines.append(
                {
                    "stage": stage,
                    "epoch": epoch + 1,
                    "global_epoch": number,
                    "train_loss": float((3.0 if stage == "norm_kd" else 2.0) * np.exp(-epoch / 6)),
                    "lr": 0.01,
                    "images_per_s": 250.0,
                    "val": {"accuracy": score, "balanced_accuracy": score, "macro_f1": score, "loss": 1.0},
                }
            )
    return lines


def made_up_results() -> dict[str, Any]:
    rng = np.random.default_rng(0)
    times = {key: (median * rng.lognormal(0.0, 0.05, 200)).tolist() for key, median in MEDIANS_MS.items()}
    subjects = []
    for (role, target), median in MEDIANS_MS.items():
        architecture, parameters, macs, sha256, score = NETWORKS[role]
        scores = {"accuracy": score + 0.04, "balanced_accuracy": score, "macro_f1": score - 0.02}
        certificate = {
            "images": "validation part",
            "n": 1215,
            "max_abs_difference": 2.4e-6,
            "mean_abs_difference": 3.1e-8,
            "top1_agreement": 1.0,
            "flipped": [],
            "pytorch": scores,
            "bounds": {"top1_agreement": 1.0, "max_abs_difference": 1e-4},
            "passed": True,
        }
        subjects.append(
            {
                "name": f"{architecture.split('/')[1]} {target}",
                "role": role,
                "path": f"runs/{role}",
                "architecture": architecture,
                "target": target,
                "precision": "fp32",
                "runtime": target,
                "weights_sha256": sha256,
                "file_bytes": 4 * parameters + 100_000,
                "complexity": {
                    "parameters": parameters, "macs": macs, "flops": 2 * macs, "macs_with_norm": macs + 10**6,
                    "size": 224, "batch": 1, "by_module": [["layer1", macs // 2]],
                },
                "latency": latency_summary(times[role, target]),
                "memory": {"peak_rss_mib": 300.0, "increase_mib": 40.0 + median, "resident_increase_mib": 30.0},
                "validation": {"n": 1215, **scores},
                "certificate": certificate if target != "pytorch" else None,
            }
        )  # fmt: skip
    ratios = [
        {
            "subject": f"shufflenet_v2_x1_0 {target}",
            "teacher": f"res2net101_26w_4s {target}",
            "same_runtime": True,
            "parameters": 43_174 / 1_262,
            "macs": 8_100 / 144.5,
            "file_bytes": 33.0,
            "latency": ratio_of_medians(times["teacher", target], times["student", target]),
        }
        for target in ("pytorch", "onnx", "executorch")
    ]
    return {
        "schema_version": 1,
        "kind": "bench-results",
        "created": "2026-11-24T10:00:00+00:00",
        "command": "dspkd bench artifacts/teacher/* artifacts/student/* --teacher runs/teacher --threads 1",
        "environment": {
            "cpu": "AMD EPYC <virtual>", "cores": 2, "governor": None, "load_average_1min": 0.41,
            "load_average_1min_after": 1.32, "os": "Linux 6.1", "machine": "x86_64", "python": "3.11.2", "threads": 1,
            "packages": {"torch": "2.14.0", "onnxruntime": "1.32.0", "executorch": "1.5.1", "tensorrt": None},
        },
        "settings": {
            "batch": 1, "threads": 1, "input": "seeded noise", "warmup_rounds": 10, "min_rounds": 50,
            "max_rounds": 2000, "seconds": 20.0,
        },
        "subjects": subjects,
        "ratios": ratios,
    }  # fmt: skip


def made_up_runs(classes: Sequence[str] = CLASSES) -> list[RunSummary]:
    teacher, student = NETWORKS["teacher"], NETWORKS["student"]
    stages = {
        "teacher": [("cross_entropy", 12)],
        "baseline": [("cross_entropy", 16)],
        "student": [("hf_masked_generation", 8), ("norm_kd", 8)],
    }
    runs = []
    for seed, (role, skill) in enumerate({"teacher": 0.66, "baseline": 0.58, "student": 0.61}.items()):
        network = teacher if role == "teacher" else student
        runs.append(
            RunSummary(
                name={"teacher": "teacher", "baseline": "alone-0", "student": "distilled-0"}[role],
                role=role,
                card={
                    "role": role,
                    "architecture": network[0],
                    "classes": list(classes),
                    "metrics": {"test": made_up_metrics(seed, skill, classes)},
                    "weights_sha256": network[3] if role != "baseline" else "c" * 64,
                    "teacher": {"weights_sha256": teacher[3]} if role == "student" else None,
                },
                history=made_up_curves(skill + 0.04, stages[role]),
            )
        )
    return runs


def made_up_picture(columns: int = 8, rows: int = 3, tile: int = 132) -> bytes:
    from PIL import Image

    y, x = np.mgrid[:tile, :tile] / tile - 0.5
    rng = np.random.default_rng(0)
    strip = Image.new("RGBA", (columns * (tile + 6) - 6, rows * (tile + 6) - 6))
    for column in range(columns):
        width, height = 3 + rng.random(2)
        lesion = np.exp(-((x * width) ** 2 + (y * height) ** 2) * 2)[..., None]
        pixels = (
            (np.array([226, 178, 158]) * (1 - lesion) + np.array([92, 52, 40]) * lesion).clip(0, 255).astype(np.uint8)
        )
        for row in range(rows):
            strip.paste(Image.fromarray(pixels), (column * (tile + 6), row * (tile + 6)))
    file = io.BytesIO()
    strip.save(file, "PNG")
    return file.getvalue()


def made_up_report(classes: Sequence[str] = CLASSES) -> ReportContent:
    return ReportContent(
        results=[made_up_results()],
        runs=made_up_runs(classes),
        strip_png=made_up_picture(),
        strip_caption="Above: one test image of each class. Below: places that stage 1 hides are dark.",
        commands="dspkd train res2net101_26w_4s --data DIR --pretrained --out runs/teacher\n"
        "dspkd distill --data DIR --teacher runs/teacher --student shufflenet_v2_x1_0 --out runs/student\n"
        "dspkd export runs/student --target onnx,executorch --out artifacts/",
    )


@pytest.fixture
def report_data() -> ReportContent:
    return made_up_report()


@pytest.fixture
def results() -> dict[str, Any]:
    return made_up_results()
