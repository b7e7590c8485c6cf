"""`dspkd data prepare`: decode and resize what runs will read."""

from __future__ import annotations

import time
from pathlib import Path

import typer

from dspkd.cli.common import print_json, reporting, say

__all__ = ["prepare"]

DEFAULT_MODELS = ["shufflenet_v2_x1_0"]


def prepare(
    data: Path = typer.Argument(..., help="The images: a folder, a CSV or a MedMNIST .npz."),
    size: int = typer.Option(224, "--size", min=32, help="Side of the networks' input in pixels."),
    model: list[str] = typer.Option(
        DEFAULT_MODELS, "--model", help="What will be trained or judged; repeatable. Some resize otherwise than others."
    ),
    split: Path | None = typer.Option(
        None, "--split", help="A stored split.json. Without it the one that train makes without it."
    ),
    as_json: bool = typer.Option(False, "--json", help="Print JSON, and nothing else, on stdout."),
) -> None:
    """Decode and resize the images once, for all later runs at this size.

    Runs do it by themselves when they start; this does it beforehand, on a machine without the GPU that would wait.
    Needs the images, in any of the layouts that the README lists. Those of the training part keep up to a quarter more
    pixels, from which views are cut, and large JPEGs among them are decoded at a reduced size. Writes into $DSPKD_CACHE
    or the user's cache folder. May be interrupted and given again.
    """
    from dspkd.config import DataConfig
    from dspkd.data.pixels import default_cache_dir, pixel_cache
    from dspkd.models import pretrained_preprocess
    from dspkd.train.prepare import prepare_data

    config = DataConfig(root=data, split=split)
    started = time.perf_counter()
    interpolations = {pretrained_preprocess(name, size).interpolation for name in model}
    try:
        with reporting() as reporter:
            found = prepare_data(config, classes=None, teacher=None, stored=None, progress=reporter.progress)
            for interpolation in sorted(interpolations):
                found.decode(size, interpolation, reporter)
    except KeyboardInterrupt:
        typer.echo("dspkd: interrupted; give the same command again to go on", err=True)
        raise typer.Exit(130) from None
    side = found.training_side(size)
    files = [
        pixel_cache(found.table, pixels, interpolation, for_training=training).path
        for interpolation in sorted(interpolations)
        for pixels, training in ((side, True), (size, False))
    ]
    judged = len(found.part("val")) + len(found.part("test"))
    result = {
        "images": {"training": len(found.part("train")), "judging": judged},
        "size": {"training": side, "judging": size},
        "seconds": round(time.perf_counter() - started, 2),
        "files": [{"path": str(path), "bytes": path.stat().st_size} for path in files],
    }
    if as_json:
        print_json(result)
        return
    total = sum(path.stat().st_size for path in files) / 1e9
    learned = f"{len(found.part('train'))} images to learn from at {side} px"
    place = f"{total:.2f} GB in {default_cache_dir()}, {result['seconds']} s"
    say(f"{learned}, {judged} to judge on at {size} px: {place}")
