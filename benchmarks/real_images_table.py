"""Tables of results/real-images.md from a folder that real_images.sh has filled.

python benchmarks/real_images_table.py OUT
"""

from __future__ import annotations

import csv
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

from dspkd.train.metrics import lesion_draws, weighted_headline

REPETITIONS = 2000
KINDS = {
    "alone": "student alone",
    "student": "student distilled",
    "short2": "student distilled, short stage 2",
}


def main(out: Path) -> None:
    seeds = sorted(path.name.removeprefix("alone-") for path in (out / "runs").glob("alone-*"))
    teacher = read_card(out / "runs" / "teacher")
    parts = teacher["data"]["images"]
    print(f"Images: {parts['train']} to learn from, {parts['val']} to choose the epoch, {parts['test']} to test.\n")
    print("| run | balanced accuracy, test | accuracy | macro-F1 | chosen epoch |")
    print("|---|---|---|---|---|")
    print_run("teacher", teacher)
    kinds = {kind: label for kind, label in KINDS.items() if (out / "runs" / f"{kind}-{seeds[-1]}").is_dir()}
    for kind, label in kinds.items():
        cards = [read_card(out / "runs" / f"{kind}-{seed}") for seed in seeds]
        for seed, card in zip(seeds, cards, strict=True):
            print_run(f"{label}, seed {seed}", card)
        scores = np.array([card["metrics"]["test"]["balanced_accuracy"] for card in cards])
        print(f"| **{label}, mean** | **{scores.mean():.3f}** (seeds' deviation {scores.std(ddof=1):.3f}) | | | |")
    print()
    for kind in kinds:
        if kind != "alone":
            print(gain_sentence(out, seeds, kind))
    print_certificates(out)
    print_bench(json.loads((out / "results.json").read_text(encoding="utf-8")))


def read_card(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "student.json").read_text(encoding="utf-8"))


def print_run(label: str, card: dict[str, Any]) -> None:
    test, selected = card["metrics"]["test"], card["metrics"]["selected"]
    low, high = test["intervals"]["balanced_accuracy"]
    print(
        f"| {label} | {test['balanced_accuracy']:.3f} [{low:.3f}, {high:.3f}] | {test['accuracy']:.3f} "
        f"| {test['macro_f1']:.3f} | {selected['epoch']} of stage {selected['stage']} |"
    )


def gain_sentence(out: Path, seeds: list[str], kind: str) -> str:
    """Distilled minus alone, mean over the seeds, with an interval that resamples the lesions of the test part."""
    rows = {name: read_predictions(out / "runs" / name) for s in seeds for name in (f"alone-{s}", f"{kind}-{s}")}
    lesions, labels, _ = rows[f"alone-{seeds[0]}"]
    classes = np.unique(labels)
    truth = np.searchsorted(classes, labels)
    group_index, draws = lesion_draws(lesions.tolist(), REPETITIONS)
    # Row 0 counts every lesion once: the figure itself.
    weights = np.vstack([np.ones(draws.shape[1], dtype=draws.dtype), draws])

    def balanced(name: str) -> np.ndarray:
        predictions = np.searchsorted(classes, rows[name][2])
        return weighted_headline(truth, predictions, group_index, weights, len(classes))["balanced_accuracy"]

    gains = np.array([balanced(f"{kind}-{seed}") - balanced(f"alone-{seed}") for seed in seeds])
    mean = gains.mean(0)
    low, high = np.percentile(mean[1:], [2.5, 97.5])
    each = ", ".join(f"{gain:+.3f}" for gain in gains[:, 0])
    return (
        f"{KINDS[kind].capitalize()} minus alone, test balanced accuracy: **{mean[0]:+.3f}** on average over the "
        f"seeds ({each}); 95 % interval of the average over lesions [{low:+.3f}, {high:+.3f}] "
        f"({REPETITIONS} bootstrap repetitions, paired).\n"
    )


def read_predictions(folder: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    with (folder / "predictions-test.csv").open(newline="", encoding="utf-8") as f:
        rows = list(csv.DictReader(f))
    lesions, labels, predicted = (np.array([row[key] for row in rows]) for key in ("lesion", "label", "predicted"))
    return lesions, labels, predicted


def print_certificates(out: Path) -> None:
    print("| artifact | file, MB | validation images | top-1 agreement with PyTorch | largest difference | mean |")
    print("|---|---|---|---|---|---|")
    for path in sorted((out / "artifacts").glob("*/*/artifact.json")):
        card = json.loads(path.read_text(encoding="utf-8"))
        certificate = card["certificate"]
        size = card["files"][card["model_file"]]["bytes"]
        print(
            f"| {path.parent.parent.name} {certificate['runtime']} | {size / 1e6:.2f} | {certificate['n']} "
            f"| {certificate['top1_agreement']:.2%} | {certificate['max_abs_difference']:.1e} "
            f"| {certificate['mean_abs_difference']:.1e} |"
        )
    print()


def print_bench(results: dict[str, Any]) -> None:
    machine = results["environment"]
    versions = ", ".join(f"{name} {version}" for name, version in machine["packages"].items())
    print(f"{machine['cpu']}, {machine['cores']} cores, {machine['threads']} thread, Python {machine['python']};")
    print(f"{versions}.\n")
    print("| network | parameters, M | MACs, M | file, MB | p50, ms | p90 | p99 | memory, MiB |")
    print("|---|---|---|---|---|---|---|---|")
    for s in sorted(results["subjects"], key=lambda s: (s["role"], s["latency"]["p50_ms"])):
        latency, complexity = s["latency"], s["complexity"]
        memory = f"{s['memory']['increase_mib']:.0f}" if s["memory"] else "not measured"
        times = " | ".join(f"{latency[name]:.2f}" for name in ("p50_ms", "p90_ms", "p99_ms"))
        print(
            f"| {s['role']} {s['name']} | {complexity['parameters'] / 1e6:.3f} | {complexity['macs'] / 1e6:.1f} "
            f"| {s['file_bytes'] / 1e6:.2f} | {times} | {memory} |"
        )
    print("\n| teacher / student, equal runtimes | parameters | MACs | file | latency (95 %) |")
    print("|---|---|---|---|---|")
    for ratio in results["ratios"]:
        low, high = ratio["latency"]["interval"]
        print(
            f"| {ratio['subject']} | {ratio['parameters']:.2f} | {ratio['macs']:.2f} | {ratio['file_bytes']:.2f} "
            f"| {ratio['latency']['ratio']:.2f} [{low:.2f}, {high:.2f}] |"
        )


if __name__ == "__main__":
    main(Path(sys.argv[1]))
