"""Hair removal on real pictures: what it finds, how exactly, what it leaves of the skin, what a network makes of it.

python benchmarks/hair_removal.py DATA [--model RUN ...] [--sheet FILE.png] [--times]

DATA/hair has `flags.csv` (image, hair, ruler, ink, ...) and `images/`; DATA/derm, needed with --model, has the images
that the runs were trained on, with `monet_hair` in its metadata.csv. Half of DATA/hair, drawn by seed within each flag,
is for tuning (`CONTRAST` of the detector, the threshold of the cover); everything else is said of the other half. Masks
and restoration are judged on hairs that are drawn over its hair-free pictures. Prints Markdown; --sheet writes pictures
to look at; --times measures nothing but how long it takes.
"""

from __future__ import annotations

import argparse
import csv
import math
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from dspkd.cleaning import HAIR_THRESHOLD, Cleaning
from dspkd.data import hair
from dspkd.data.illumination import even_light
from dspkd.data.pixels import cached_pixels
from dspkd.data.sources import read_table
from dspkd.data.split import indices, load_split
from dspkd.evaluate import student_classifier
from dspkd.preprocess import load_rgb
from dspkd.student import load_student
from dspkd.train.metrics import lesion_draws, weighted_headline
from dspkd_bench.environment import describe_environment

SEED = 0
REPETITIONS = 2000
DRAWINGS = 2
OVERSAMPLING = 4
CONTRASTS = (8, 10, 12, 14, 16, 20)
THRESHOLDS = (0.001, 0.002, 0.003, 0.005, 0.0075, 0.01, 0.02)
WIDTHS = ((1.0, 1.5), (1.5, 2.5), (2.5, 4.0))
HAIRY = 0.5


@dataclass(frozen=True)
class Flagged:
    """N pictures, uint8 (S, S, 3) each, and what people said about them, bool (N,)."""

    names: list[str]
    pictures: list[np.ndarray]
    hair: np.ndarray
    lines: np.ndarray
    """A ruler or ink."""

    def part(self, chosen: np.ndarray) -> Flagged:
        positions = np.flatnonzero(chosen)
        return Flagged(
            [self.names[i] for i in positions],
            [self.pictures[i] for i in positions],
            self.hair[chosen],
            self.lines[chosen],
        )


@dataclass(frozen=True)
class Drawn:
    """A hair-free picture, the same with hairs drawn over it, and where they are."""

    clean: np.ndarray
    hairy: np.ndarray
    mask: np.ndarray
    width: float


def read_flagged(folder: Path) -> Flagged:
    with (folder / "flags.csv").open(newline="", encoding="utf-8") as f:
        rows = list(csv.DictReader(f))
    names = [row["image"] for row in rows]
    pictures = [np.asarray(load_rgb(folder / "images" / f"{name}.jpg")) for name in names]
    lines = np.array([row["ruler"] == "1" or row["ink"] == "1" for row in rows])
    return Flagged(names, pictures, np.array([row["hair"] == "1" for row in rows]), lines)


def halves(hairy: np.ndarray) -> np.ndarray:
    """bool (N,): which pictures are for tuning, half of those with and half of those without hairs."""
    rng = np.random.default_rng(SEED)
    tuning = np.zeros(len(hairy), bool)
    for flag in (False, True):
        members = rng.permutation(np.flatnonzero(hairy == flag))
        tuning[members[: len(members) // 2]] = True
    return tuning


def draw_hairs(clean: np.ndarray, rng: np.random.Generator, *, light: bool = False) -> Drawn:
    """3 to 25 curves of one width from 1 to 4 pixels (of 256), antialiased, of one colour and opacity.

    The mask has the pixels of which a hair covers half or more.
    """
    side, width = len(clean), float(np.exp(rng.uniform(0, math.log(4))))
    sheet = Image.new("L", (side * OVERSAMPLING,) * 2)
    pen = ImageDraw.Draw(sheet)
    for _ in range(int(rng.integers(3, 26))):
        start, heading = rng.uniform(0, side, 2), rng.uniform(0, 2 * np.pi)
        end = start + rng.uniform(0.25, 0.9) * side * np.array([np.cos(heading), np.sin(heading)])
        bend = (start + end) / 2 + rng.normal(0, side / 12, 2)
        t = np.linspace(0, 1, 40)[:, None]
        curve = ((1 - t) ** 2 * start + 2 * t * (1 - t) * bend + t**2 * end) * OVERSAMPLING
        thickness = max(1, round(width * side / 256 * OVERSAMPLING))
        pen.line([tuple(point) for point in curve], fill=255, width=thickness, joint="curve")
    cover = np.asarray(sheet.resize((side, side), Image.Resampling.BOX)) / 255
    colour = rng.uniform((190, 180, 160), (240, 230, 215)) if light else rng.uniform((15, 10, 5), (80, 65, 55))
    opacity = cover[..., None] * rng.uniform(0.6, 0.95)
    hairy = np.rint(clean * (1 - opacity) + colour * opacity).clip(0, 255).astype(np.uint8)
    return Drawn(clean, hairy, cover >= 0.5, width)


def drawings(pictures: Iterable[np.ndarray], *, light: bool) -> list[Drawn]:
    return [
        draw_hairs(picture, np.random.default_rng([SEED, k, n, light]), light=light)
        for k, picture in enumerate(pictures)
        for n in range(DRAWINGS)
    ]


# Figures -----------------------------------------------------------------------------------------


def auroc(scores: np.ndarray, positive: np.ndarray) -> float:
    """How often a positive has the higher score than a negative; ties count half."""
    _, place, count = np.unique(scores, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(count) - (count - 1) / 2)[place]
    n, m = int(positive.sum()), int((~positive).sum())
    return float((ranks[positive].sum() - n * (n + 1) / 2) / (n * m))


def interval(values: Sequence[float] | np.ndarray) -> str:
    low, high = np.quantile(values, [0.025, 0.975])
    return f"[{low:.3f}, {high:.3f}]"


def auroc_with_interval(scores: np.ndarray, positive: np.ndarray) -> str:
    rng, draws = np.random.default_rng(SEED), []
    groups = [np.flatnonzero(positive == flag) for flag in (False, True)]
    for _ in range(REPETITIONS):
        chosen = np.concatenate([rng.choice(members, len(members)) for members in groups])
        draws.append(auroc(scores[chosen], positive[chosen]))
    return f"{auroc(scores, positive):.3f} {interval(draws)}"


def iou(found: np.ndarray, true: np.ndarray) -> float:
    return float((found & true).sum() / (found | true).sum())


def psnr(picture: np.ndarray, clean: np.ndarray, where: np.ndarray | None = None) -> float:
    """dB, over the pixels of `where` and three channels; infinite for equal pictures."""
    squares = (picture.astype(float) - clean) ** 2
    error = (squares if where is None else squares[where]).mean()
    return float(10 * np.log10(255**2 / error)) if error else math.inf


def quartiles(values: Sequence[float], digits: int = 2) -> str:
    low, middle, high = np.quantile(values, [0.25, 0.5, 0.75])
    return f"{np.mean(values):.{digits}f} | {low:.{digits}f}, {middle:.{digits}f}, {high:.{digits}f}"


def covers(pictures: Iterable[np.ndarray]) -> np.ndarray:
    return np.array([hair.hair_cover(hair.hair_mask(picture)) for picture in pictures])


@contextmanager
def contrast(value: int) -> Iterator[None]:
    before, hair.CONTRAST = hair.CONTRAST, value
    try:
        yield
    finally:
        hair.CONTRAST = before


# Parts of the page -------------------------------------------------------------------------------


def tuning_part(flagged: Flagged) -> None:
    drawn = drawings((p for p, hairy in zip(flagged.pictures, flagged.hair, strict=True) if not hairy), light=False)
    print(f"\n## Tuning half ({len(flagged.names)} pictures)\n")
    print("| contrast, grey levels | AUROC of the cover | mean IoU on drawn hairs |\n|---|---|---|")
    for value in CONTRASTS:
        with contrast(value):
            score = auroc(covers(flagged.pictures), flagged.hair)
            overlap = np.mean([iou(hair.hair_mask(d.hairy), d.mask) for d in drawn])
        print(f"| {value}{' (taken)' if value == hair.CONTRAST else ''} | {score:.3f} | {overlap:.3f} |")
    inverted = auroc(covers(255 - picture for picture in flagged.pictures), flagged.hair)
    print(f"\nThe same for light hairs (inverted pictures): AUROC {inverted:.3f}.")
    inpainting_part(drawn)
    cover = covers(flagged.pictures)
    print("\n| threshold of the cover | hairy pictures above | hair-free pictures above |\n|---|---|---|")
    for threshold in THRESHOLDS:
        taken = " (taken)" if threshold == HAIR_THRESHOLD else ""
        above = cover > threshold
        print(f"| {threshold:.2%}{taken} | {above[flagged.hair].mean():.1%} | {above[~flagged.hair].mean():.1%} |")


def inpainting_part(drawn: Sequence[Drawn]) -> None:
    import cv2

    print("\n| inpainting, radius 3, drawn hairs | PSNR inside the hairs, dB | whole picture |\n|---|---|---|")
    masks = [hair.hair_mask(d.hairy).astype(np.uint8) for d in drawn]
    for name, method in (("Navier-Stokes", cv2.INPAINT_NS), ("Telea", cv2.INPAINT_TELEA)):
        for beyond in (0, 1, 2):
            element = np.ones((2 * beyond + 1,) * 2, np.uint8)
            restored = [
                cv2.inpaint(d.hairy, cv2.dilate(mask, element), hair.INPAINT_RADIUS, method)
                for d, mask in zip(drawn, masks, strict=True)
            ]
            inside = np.mean([psnr(r, d.clean, d.mask) for r, d in zip(restored, drawn, strict=True)])
            whole = np.mean([psnr(r, d.clean) for r, d in zip(restored, drawn, strict=True)])
            taken = " (taken)" if (name, beyond) == ("Navier-Stokes", 1) else ""
            print(f"| {name}, {beyond} px beyond the mask{taken} | {inside:.1f} | {whole:.1f} |")


def detection_part(flagged: Flagged) -> np.ndarray:
    cover = covers(flagged.pictures)
    above, plain = cover > HAIR_THRESHOLD, ~flagged.lines
    print(f"\n## Detection, the other half ({len(cover)} pictures)\n")
    print("| pictures | hairy | hair-free | AUROC of the cover | hairy above the threshold | hair-free above |")
    print("|---|---|---|---|---|---|")
    for name, chosen in (("all", np.ones(len(cover), bool)), ("without ruler or ink", plain)):
        hairy = flagged.hair[chosen]
        print(
            f"| {name} | {hairy.sum()} | {(~hairy).sum()} | {auroc_with_interval(cover[chosen], hairy)} "
            f"| {above[chosen][hairy].mean():.1%} | {above[chosen][~hairy].mean():.1%} |"
        )
    changed = [
        (hair.remove_hair(picture, HAIR_THRESHOLD), picture)
        for picture, over, hairy in zip(flagged.pictures, above, flagged.hair, strict=True)
        if over and not hairy
    ]
    untouched = sum(
        hair.remove_hair(p, HAIR_THRESHOLD) is p for p, over in zip(flagged.pictures, above, strict=True) if not over
    )
    print(f"\nLeft alone, bit for bit: {untouched} of the {int((~above).sum())} pictures below the threshold.")
    for after, before in changed:
        share = (after != before).any(-1).mean()
        print(f"A hair-free picture that is changed: {share:.2%} of its pixels, PSNR {psnr(after, before):.1f} dB.")
    return cover


def drawn_part(flagged: Flagged) -> list[Drawn]:
    hair_free = [p for p, hairy in zip(flagged.pictures, flagged.hair, strict=True) if not hairy]
    dark, light = drawings(hair_free, light=False), drawings(hair_free, light=True)
    print(f"\n## Drawn hairs, over the {len(hair_free)} hair-free pictures of the other half\n")
    print("| hairs | pictures | IoU, mean | quartiles | precision | recall |\n|---|---|---|---|---|---|")
    rows: list[tuple[str, list[Drawn]]] = [("dark", dark)]
    rows += [(f"dark, {low:g} to {high:g} px", [d for d in dark if low <= d.width < high]) for low, high in WIDTHS]
    for name, drawn in (*rows, ("light", light)):
        found = [hair.hair_mask(d.hairy) for d in drawn]
        pairs = list(zip(found, (d.mask for d in drawn), strict=True))
        precision = np.mean([(f & t).sum() / max(1, f.sum()) for f, t in pairs])
        recall = np.mean([(f & t).sum() / t.sum() for f, t in pairs])
        overlap = quartiles([iou(f, t) for f, t in pairs])
        print(f"| {name} | {len(drawn)} | {overlap} | {precision:.2f} | {recall:.2f} |")
    restored = [hair.remove_hair(d.hairy, HAIR_THRESHOLD) for d in dark]
    untouched = sum(r is d.hairy for r, d in zip(restored, dark, strict=True))
    print(f"\nDark hairs, PSNR against the clean picture in dB ({untouched} of {len(dark)} lie below the threshold).\n")
    print("| | inside the hairs, mean | quartiles | whole picture, mean | quartiles |\n|---|---|---|---|---|")
    for name, pictures in (("with hairs", [d.hairy for d in dark]), ("after removal", restored)):
        inside = quartiles([psnr(p, d.clean, d.mask) for p, d in zip(pictures, dark, strict=True)], 1)
        whole = quartiles([psnr(p, d.clean) for p, d in zip(pictures, dark, strict=True)], 1)
        print(f"| {name} | {inside} | {whole} |")
    return dark


def light_part(flagged: Flagged) -> None:
    """Shadows drawn over the hair-free pictures: how much of one is left, and what happens to a picture without."""
    hair_free = [p for p, hairy in zip(flagged.pictures, flagged.hair, strict=True) if not hairy]
    before, after, unshaded = [], [], []
    for k, picture in enumerate(hair_free):
        rng = np.random.default_rng([SEED, k, 7])
        axis = (np.arange(len(picture)) + 0.5) / len(picture) * 2 - 1
        heading, strength = rng.uniform(0, 2 * np.pi), rng.uniform(0.2, 0.5)
        along = (axis * np.cos(heading) + axis[:, None] * np.sin(heading)) / 2
        shaded = np.rint(picture * (1 - strength * (0.5 + along))[..., None]).clip(0, 255).astype(np.uint8)
        before.append(_log_difference(shaded, picture))
        after.append(_log_difference(even_light(shaded), even_light(picture)))
        unshaded.append(_log_difference(even_light(picture), picture))
    print("\n## Illumination, the same pictures\n")
    print("| standard deviation of the difference in log luminance | mean | quartiles |\n|---|---|---|")
    print(f"| drawn shadow, before correction | {quartiles(before, 3)} |")
    print(f"| what is left of it after | {quartiles(after, 3)} |")
    print(f"| what correction does to a picture without one | {quartiles(unshaded, 3)} |")


def _log_difference(one: np.ndarray, other: np.ndarray) -> float:
    grey = np.array([0.299, 0.587, 0.114])
    return float(np.std(np.log(np.maximum(one @ grey, 1)) - np.log(np.maximum(other @ grey, 1))))


def classifier_part(folders: Sequence[Path], data: Path) -> None:
    print("\n## A network that was trained without it\n", flush=True)
    print("| run | test images | n | changed | accuracy | balanced accuracy | removal: accuracy | balanced accuracy |")
    print("|---|---|---|---|---|---|---|---|")
    hairy = _monet_hair(data / "metadata.csv")
    for folder in folders:
        student = load_student(folder)
        card = student.card
        table = read_table(data, classes=card.classes)
        test = indices(load_split(folder / "split.json", table), table, "test")
        with tempfile.TemporaryDirectory() as cache:
            pixels = {
                cleaning.hair_removal: cached_pixels(
                    table,
                    card.preprocess.model_copy(update={"cleaning": cleaning}),
                    positions=test,
                    cache_dir=Path(cache),
                )[test]
                for cleaning in (Cleaning(), Cleaning(hair_removal=True))
            }
        run = student_classifier(student).run
        answers = {
            on: np.concatenate([run(p[i : i + 64]) for i in range(0, len(p), 64)]).argmax(1) for on, p in pixels.items()
        }
        changed = (pixels[True] != pixels[False]).any((1, 2, 3))
        labels, samples = table.labels[test], [table.samples[int(i)] for i in test]
        estimate = np.array([hairy.get(sample.image_id, 0.0) for sample in samples])
        for name, chosen in (
            ("all", np.ones(len(test), bool)),
            (f"`monet_hair` > {HAIRY}", estimate > HAIRY),
            (f"cover > {HAIR_THRESHOLD:.1%}", changed),
        ):
            groups = [sample.group for sample, wanted in zip(samples, chosen, strict=True) if wanted]
            _print_pair(
                folder.name,
                name,
                changed[chosen],
                labels[chosen],
                [a[chosen] for a in answers.values()],
                groups,
                len(card.classes),
            )


def _print_pair(
    run: str,
    name: str,
    changed: np.ndarray,
    labels: np.ndarray,
    answers: list[np.ndarray],
    groups: list[str],
    classes: int,
) -> None:
    group_index, weights = lesion_draws(groups, REPETITIONS, seed=SEED)
    # The first row counts every lesion once.
    weights = np.concatenate([np.ones_like(weights[:1]), weights])
    without, with_ = (weighted_headline(labels, answer, group_index, weights, classes) for answer in answers)
    scores = [f"{without[metric][0]:.3f}" for metric in ("accuracy", "balanced_accuracy")]
    for metric in ("accuracy", "balanced_accuracy"):
        difference = with_[metric] - without[metric]
        scores.append(f"{difference[0]:+.3f} {interval(difference[1:])}")
    print(f"| {run} | {name} | {len(labels)} | {changed.mean():.1%} | {' | '.join(scores)} |")


def _monet_hair(path: Path) -> dict[str, float]:
    with path.open(newline="", encoding="utf-8") as f:
        return {row["image"]: float(row["monet_hair"]) for row in csv.DictReader(f) if row["monet_hair"]}


def speed_part(pictures: Sequence[np.ndarray]) -> None:
    print("\n## Time\n")
    print(f"| one picture of {len(pictures[0])} px, mean over {len(pictures)} | ms |\n|---|---|")
    for name, work in (
        ("finding hairs", hair.hair_mask),
        ("finding and removing them, whatever they cover", lambda p: hair.remove_hair(p, 0.0)),
        ("evening out the light", even_light),
    ):
        print(f"| {name} | {_milliseconds(work, pictures):.1f} |")


def _milliseconds(work: Callable[[np.ndarray], object], pictures: Sequence[np.ndarray]) -> float:
    work(pictures[0])
    started = time.perf_counter()
    for picture in pictures:
        work(picture)
    return (time.perf_counter() - started) / len(pictures) * 1000


def write_sheet(path: Path, flagged: Flagged, cover: np.ndarray, drawn: Sequence[Drawn]) -> None:
    """Before, what was found, after: hairy pictures over the whole range of covers, hair-free ones that are changed or
    nearly so, hairy ones that are left alone, and drawn hairs; then light before and after.
    """
    order = np.argsort(cover)
    hairy = [int(i) for i in order if flagged.hair[i] and cover[i] > HAIR_THRESHOLD]
    chosen = [flagged.pictures[hairy[round(k)]] for k in np.linspace(0, len(hairy) - 1, 16)]
    chosen += [flagged.pictures[int(i)] for i in order[::-1] if not flagged.hair[i]][:8]
    chosen += [d.hairy for d in drawn[:: max(1, len(drawn) // 8)]][:8]
    columns = [np.vstack([p, _marked(p), hair.remove_hair(p, HAIR_THRESHOLD)]) for p in chosen]
    rows = [np.hstack(columns[k : k + 8]) for k in range(0, len(columns), 8)]
    rows.append(np.hstack([np.vstack([p, even_light(p)]) for p in flagged.pictures[::40][:8]]))
    Image.fromarray(np.vstack(rows)).save(path)


def _marked(picture: np.ndarray) -> np.ndarray:
    marked = picture.copy()
    marked[hair.hair_mask(picture)] = (0, 255, 0)
    return marked


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--model", type=Path, action="append", default=[], help="a run on DATA/derm; repeatable")
    parser.add_argument("--sheet", type=Path)
    parser.add_argument("--times", action="store_true")
    args = parser.parse_args()
    machine = describe_environment(1)
    print(f"{machine['cpu']}; {hair.CONTRAST} grey levels, threshold {HAIR_THRESHOLD:.1%}, seed {SEED}")
    flagged = read_flagged(args.data / "hair")
    if args.times:
        speed_part(flagged.pictures[::6])
        return
    tuning = halves(flagged.hair)
    tuning_part(flagged.part(tuning))
    other = flagged.part(~tuning)
    cover = detection_part(other)
    drawn = drawn_part(other)
    light_part(other)
    if args.sheet:
        write_sheet(args.sheet, other, cover, drawn)
    if args.model:
        classifier_part(args.model, args.data / "derm")


if __name__ == "__main__":
    main()
