"""`dspkd eval` and `dspkd predict`."""

from __future__ import annotations

from pathlib import Path

import typer

from dspkd.cli.common import headline, open_classifier, print_json, reporting, say

MODEL = typer.Argument(..., help="A run, a student or an artifact folder.")
JSON = typer.Option(False, "--json", help="Print JSON, and nothing else, on stdout.")
DEVICE = typer.Option("cpu", "--device", help="cpu, cuda or mps, for a model in PyTorch.")


def evaluate(
    model: Path = MODEL,
    data: Path = typer.Option(..., "--data", help="Labelled images; classes are matched by name."),
    split: Path | None = typer.Option(None, "--split", help="A stored split.json."),
    part: str | None = typer.Option(
        None, "--part", help="all, train, val or test. [default: test with --split, else all]"
    ),
    predictions: Path | None = typer.Option(None, "--predictions", help="Also write one row per image to this CSV."),
    device: str = DEVICE,
    as_json: bool = JSON,
) -> None:
    """Judge a run, a student or an artifact (on its own runtime) on a data set.

    Needs a model folder and labelled images whose classes the model knows. Writes --predictions, if asked; prints
    metrics with 95 % intervals over lesions.
    """
    from dspkd.evaluate import evaluate as judge

    part = part or ("test" if split is not None else "all")
    classifier = open_classifier(model, device=device)
    with reporting() as reporter:
        result = judge(classifier, data, split=split, part=part, progress=reporter.progress)
    if predictions is not None:
        from dspkd.fileio import write_text

        write_text(predictions, result.predictions_csv())
    learned = _learned_images(model, [sample.image_id for sample in result.samples])
    if as_json:
        extra = {"model": str(model), "data": str(data), "part": part, "training_images": learned}
        if classifier.caution:
            extra["caution"] = classifier.caution
        print_json({**extra, **result.metrics})
        return
    if learned:
        say(f"{learned} of these {len(result.samples)} images are among those that the model learned from")
    for remark in (*result.remarks, *filter(None, [classifier.caution])):
        say(remark)
    say(headline(result.metrics))
    for source, own in result.metrics.get("by_source", {}).items():
        say(f"  {source}: {headline(own)}")
    say(f"{'class':12s} precision  recall  specificity  F1     images")
    for name, row in result.metrics["per_class"].items():
        say(
            f"{name:12s} {row['precision']:9.3f}  {row['recall']:6.3f}  {row['specificity']:11.3f}  {row['f1']:5.3f}  "
            f"{row['support']:6d}"
        )


def _learned_images(model: Path, image_ids: list[str]) -> int | None:
    """How many of the images the model was trained on; None where its folder does not say."""
    from dspkd.data.split import read_split

    split = model / "split.json"
    return len(set(read_split(split)["train"]) & set(image_ids)) if split.is_file() else None


def predict(
    model: Path = MODEL,
    images: list[Path] = typer.Argument(..., help="Picture files."),
    device: str = DEVICE,
    as_json: bool = JSON,
) -> None:
    """Classify pictures.

    Needs a model folder and picture files (JPEG, PNG, TIFF, WebP). Writes nothing; prints class probabilities.
    """
    from dspkd.evaluate import predict as classify

    results = classify(open_classifier(model, device=device), images)
    if as_json:
        print_json(results)
        return
    for result in results:
        likely = list(result["probabilities"].items())[:3]
        say(f"{result['image']}: " + ", ".join(f"{name} {p:.3f}" for name, p in likely))
