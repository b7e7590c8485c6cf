"""How much better a test looks that shares lesions with the training, as the paper's does: the same student, four ways.

    python benchmarks/leak.py DATA --out OUT [--size 64] [--epochs 10] [--seeds 0 1 2]

Writes the data sets and the runs into OUT; runs that are finished are not made again. Prints Markdown. Every student
sees about the same number of pictures: the sets with copies are larger, so they get fewer epochs.
"""

from __future__ import annotations

import argparse
import csv
import json
import statistics
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dspkd.student import is_student_dir, load_card
from dspkd.train.metrics import summarise

SCORES = {"accuracy": "accuracy", "balanced_accuracy": "balanced accuracy", "macro_f1": "macro-F1"}


@dataclass(frozen=True)
class Way:
    name: str
    title: str
    protocol: str
    copies: str | None = None
    """None: the pictures as they are; else `before` or `after` the split."""


WAYS = (
    Way("clean", "by lesion", "lesions"),
    Way("clean-copies", "by lesion, then copies of the training part", "lesions", "after"),
    Way("by-picture", "by picture", "paper"),
    Way("paper", "copies of everything, then by picture (the paper)", "paper", "before"),
)


def dspkd(*arguments: object) -> None:
    command = [sys.executable, "-m", "dspkd", *map(str, arguments)]
    print("+ dspkd", *arguments, file=sys.stderr, flush=True)
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


def train(way: Way, seed: int, options: argparse.Namespace) -> Path:
    run = options.out / "runs" / f"{way.name}-{seed}"
    if is_student_dir(run):
        return run
    data, clean = options.data, options.out / "runs" / f"clean-{seed}"
    if way.copies:
        data = options.out / f"data-{way.name}-{seed}"
        if not data.exists():
            how = ["--before-split"] if way.copies == "before" else ["--split", clean / "split.json"]
            dspkd("data", "augment", options.data, "--out", data, "--seed", seed, *how)
    epochs = options.epochs
    if way.copies:
        pictures = load_card(clean).data["images"]["train"]
        with (data / "images.csv").open(newline="") as f:
            rows = list(csv.DictReader(f))
        own = sum(r["split"] == "train" for r in rows) if "split" in rows[0] else 0.7 * len(rows)
        epochs = max(1, round(options.epochs * pictures / own))
    split = ["--set", f'data.protocol="{way.protocol}"', "--set", f"data.split_seed={seed}"]
    settings = ["--size", options.size, "--epochs", epochs, "--lr", options.lr, "--seed", seed]
    resume = ["--resume"] if (run / "config.toml").exists() else []
    dspkd("train", options.model, "--data", data, "--out", run, *settings, *split, *resume)
    return run


def judge(run: Path) -> dict[str, dict[str, float]]:
    """Scores on the whole test part, and on what of it is neither a copy nor of a lesion that was learned from."""
    card = load_card(run)
    with (run / "predictions-test.csv").open(newline="") as f:
        rows = list(csv.DictReader(f))
    fresh = [r for r in rows if r.get("lesion_was_learned_from", "0") == "0" and "~" not in r["image"]]
    scores = {}
    for name, chosen in (("all", rows), ("fresh", fresh)):
        labels = np.array([card.classes.index(r["label"]) for r in chosen])
        probabilities = np.array([[float(r[f"p_{c}"]) for c in card.classes] for r in chosen])
        scores[name] = {
            **{k: 100 * summarise(labels, probabilities, card.classes)[k] for k in SCORES},
            "n": len(chosen),
        }
    scores["all"]["known"] = card.data.get("leak", {}).get("test", 0)
    scores["all"]["updates"] = card.data["images"]["train"] * len((run / "metrics.jsonl").read_text().splitlines())
    return scores


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--model", default="shufflenet_v2_x1_0")
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--lr", type=float, default=0.02)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    options = parser.parse_args()
    found: dict[str, list[dict[str, dict[str, float]]]] = {way.name: [] for way in WAYS}
    for seed in options.seeds:
        for way in WAYS:
            found[way.name].append(judge(train(way, seed, options)))
    (options.out / "leak.json").write_text(json.dumps(found, indent=2))
    for part, title in (
        ("all", "Its own test part"),
        ("fresh", "Only originals of lesions that were not learned from"),
    ):
        print(f"\n| {title} | test images | of lesions learned from | {' | '.join(SCORES.values())} |")
        print("|---|--:|--:|" + "--:|" * len(SCORES))
        for way in WAYS:
            runs = [scores[part] for scores in found[way.name]]
            known = [scores["all"]["known"] / scores["all"]["n"] for scores in found[way.name]]
            share = f"{100 * statistics.fmean(known):.0f} %" if part == "all" else "none"
            cells = [f"{statistics.fmean(values):.1f} ± {statistics.stdev(values) if len(values) > 1 else 0:.1f}"
                     for values in ([run[k] for run in runs] for k in SCORES)]  # fmt: skip
            print(f"| {way.title} | {statistics.fmean(r['n'] for r in runs):.0f} | {share} | {' | '.join(cells)} |")
    seen = {way.title: statistics.fmean(s["all"]["updates"] for s in found[way.name]) for way in WAYS}
    print("\nPictures seen in training: " + "; ".join(f"{title} {number:.0f}" for title, number in seen.items()))


if __name__ == "__main__":
    main()
