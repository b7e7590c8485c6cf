"""A teacher for times alone: a large network as initialised, with the classes and the input size of a run.

python benchmarks/untrained_teacher.py RUN NETWORK OUT [--size SIZE]

Where no trained weights of a network can be had, how long it takes is still worth measuring: time does not depend on
what the weights are, unless they are zeros, which a compiler may drop together with all that is multiplied by them. So
norms that start at zero start at one here. Its card has no metrics, and its answers are worth nothing.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from dspkd.models import Architecture
from dspkd.student import load_card, save_student


def main(run: Path, network: str, out: Path, size: int | None) -> None:
    card = load_card(run)
    torch.manual_seed(0)
    architecture = Architecture(network)
    preprocess = card.preprocess.model_copy(update={"size": size or card.preprocess.size})
    known = {"architecture": architecture.name, "role": "teacher", "preprocess": preprocess, "metrics": {}}
    nothing = {"teacher": None, "quantised": None, "config": {}}
    out.mkdir(parents=True)
    model = architecture.build(len(card.classes))
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d) and module.affine and not module.weight.any():
            torch.nn.init.ones_(module.weight)
    save_student(out, model, card.model_copy(update={**known, **nothing}))
    (out / "split.json").write_bytes((run / "split.json").read_bytes())
    print(f"{out}: {architecture.name}, untrained, {preprocess.size} px")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="A network as initialised, as a teacher for times alone.")
    parser.add_argument("run", type=Path)
    parser.add_argument("network")
    parser.add_argument("out", type=Path)
    parser.add_argument("--size", type=int)
    main(*vars(parser.parse_args()).values())
