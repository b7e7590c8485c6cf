"""Training curves and confusion matrices as SVG text. Needs matplotlib (the `report` extra); without it there is
no picture.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

__all__ = ["confusion_svg", "curves_svg"]

COLOURS = ("#0b7285", "#c2410c", "#5f3dc4", "#2b8a3e")


def _pyplot() -> Any:
    try:
        import matplotlib
    except ModuleNotFoundError:
        return None
    matplotlib.use("Agg")
    # Text stays text, so that the pictures are small and searchable, and the ids are the same for the same data.
    matplotlib.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "dspkd", "font.size": 9})
    import matplotlib.pyplot as plt

    return plt


def _svg(plt: Any, figure: Any) -> str:
    text = io.StringIO()
    figure.savefig(text, format="svg", bbox_inches="tight", transparent=True, metadata={"Date": None, "Creator": None})
    plt.close(figure)
    svg = text.getvalue()
    return svg[svg.index("<svg") :]


def curves_svg(histories: Mapping[str, Sequence[Mapping[str, Any]]]) -> str | None:
    """Training loss and validation balanced accuracy per epoch; `histories` maps a name to the lines of metrics.jsonl.

    A dotted line marks where a new stage begins. The loss of different stages is not comparable.
    """
    plt = _pyplot()
    if plt is None:
        return None
    figure, (left, right) = plt.subplots(1, 2, figsize=(8.4, 2.9), layout="constrained")
    for (name, lines), colour in zip(histories.items(), COLOURS * len(histories), strict=False):
        epochs = [line["global_epoch"] for line in lines]
        left.plot(epochs, [line["train_loss"] for line in lines], color=colour, label=name, marker=".")
        right.plot(epochs, [line["val"]["balanced_accuracy"] for line in lines], color=colour, label=name, marker=".")
        for before, line in pairwise(lines):
            if line["stage"] != before["stage"]:
                for axes in (left, right):
                    axes.axvline(line["global_epoch"] - 0.5, color=colour, linestyle=":", linewidth=1)
    left.set(xlabel="epoch", ylabel="training loss", yscale="log")
    right.set(xlabel="epoch", ylabel="validation balanced accuracy", ylim=(0, 1))
    right.legend(frameon=False)
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.25, linewidth=0.5)
    return _svg(plt, figure)


def confusion_svg(classes: Sequence[str], matrix: Sequence[Sequence[int]]) -> str | None:
    """Confusion matrix, rows are the truth; shades are shares of the row, numbers are images."""
    plt = _pyplot()
    if plt is None:
        return None
    side = 1.6 + 0.48 * len(classes)
    figure, axes = plt.subplots(figsize=(side, side), layout="constrained")
    shares = [[n / max(1, sum(row)) for n in row] for row in matrix]
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    for i, row in enumerate(matrix):
        for j, count in enumerate(row):
            axes.text(j, i, str(count), ha="center", va="center", color="white" if shares[i][j] > 0.55 else "#222")
    axes.set_xticks(range(len(classes)), labels=classes, rotation=45, ha="right")
    axes.set_yticks(range(len(classes)), labels=classes)
    axes.set(xlabel="predicted", ylabel="truth")
    return _svg(plt, figure)
