"""Training curves and confusion matrices as SVG text. Needs matplotlib (the `report` extra); without it there is
no picture.
"""

from __future__ import annotations

import io
import textwrap
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

__all__ = ["confusion_grid_svg", "confusion_svg", "curves_grid_svg", "curves_svg"]

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


def curves_svg(histories: Mapping[str, Sequence[Mapping[str, Any]]], *, note: str | None = None) -> str | None:
    """Training loss and validation balanced accuracy per epoch; `histories` maps a name to the lines of metrics.jsonl.

    A dotted line marks where a new stage begins. The loss of different stages is not comparable. `note` stands above.
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
    _head(figure, note, 110)
    return _svg(plt, figure)


def _head(figure: Any, note: str | None, width: int) -> None:
    """`note` over the panels, in lines of so many characters."""
    if note is not None:
        figure.suptitle(textwrap.fill(note, width), fontsize=8, color="#c2410c")


def confusion_svg(classes: Sequence[str], matrix: Sequence[Sequence[int]], *, note: str | None = None) -> str | None:
    """Confusion matrix, rows are the truth; shades are shares of the row, numbers are images. `note` stands above."""
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
    _head(figure, note, 12 * len(classes))
    return _svg(plt, figure)


def _grid(plt: Any, count: int, width: float, height: float, columns: int = 4) -> tuple[Any, list[Any]]:
    """A figure of `count` panels of `width` x `height` inches; places without one stay empty."""
    columns = min(columns, count)
    rows = -(-count // columns)
    size = (width * columns, height * rows)
    figure, axes = plt.subplots(rows, columns, figsize=size, squeeze=False, layout="constrained")
    panels = list(axes.flat)
    for axis in panels[count:]:
        axis.set_visible(False)
    return figure, panels[:count]


def curves_grid_svg(
    histories: Mapping[str, Sequence[Sequence[Mapping[str, Any]]]], *, note: str | None = None
) -> str | None:
    """Validation balanced accuracy per epoch, one panel for each name and one line for each of its runs (seeds).

    `histories` maps a name to runs, each the lines of metrics.jsonl. The runs of the first name are drawn in every
    panel, in grey, to compare with. A dotted line marks where a new stage begins.
    """
    plt = _pyplot()
    if plt is None or not histories:
        return None
    figure, panels = _grid(plt, len(histories), 2.5, 1.9)
    first = next(iter(histories))
    for axes, (name, runs) in zip(panels, histories.items(), strict=True):
        for lines in histories[first]:
            axes.plot(*_validation(lines), color="#9aa1a9", linewidth=0.9)
        for lines in runs if name != first else ():
            axes.plot(*_validation(lines), color=COLOURS[0], linewidth=1.3)
        for before, line in pairwise(runs[0]):
            if line["stage"] != before["stage"]:
                axes.axvline(line["global_epoch"] - 0.5, color=COLOURS[0], linestyle=":", linewidth=1)
        axes.set_title(name, fontsize=9, loc="left")
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.25, linewidth=0.5)
        axes.sharey(panels[0])
    figure.supxlabel("epoch", fontsize=9)
    figure.supylabel("validation balanced accuracy", fontsize=9)
    _head(figure, note, 100)
    return _svg(plt, figure)


def _validation(lines: Sequence[Mapping[str, Any]]) -> tuple[list[int], list[float]]:
    return [line["global_epoch"] for line in lines], [line["val"]["balanced_accuracy"] for line in lines]


def confusion_grid_svg(
    classes: Sequence[str], matrices: Mapping[str, Sequence[Sequence[int]]], *, note: str | None = None
) -> str | None:
    """One confusion matrix for each name: rows are the truth, shades and numbers the share of the row in percent."""
    plt = _pyplot()
    if plt is None or not matrices:
        return None
    side = 1.0 + 0.26 * len(classes)
    figure, panels = _grid(plt, len(matrices), side, side, columns=3)
    for axes, (name, matrix) in zip(panels, matrices.items(), strict=True):
        shares = [[n / max(1, sum(row)) for n in row] for row in matrix]
        axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
        for i, row in enumerate(shares):
            for j, share in enumerate(row):
                colour = "white" if share > 0.55 else "#222"
                axes.text(j, i, f"{100 * share:.0f}", ha="center", va="center", color=colour, fontsize=6.5)
        axes.set_xticks(range(len(classes)), labels=classes, rotation=90, fontsize=7)
        axes.set_yticks(range(len(classes)), labels=classes, fontsize=7)
        axes.set_title(name, fontsize=9)
    figure.supxlabel("predicted", fontsize=9)
    figure.supylabel("truth", fontsize=9)
    _head(figure, note, 40)
    return _svg(plt, figure)
