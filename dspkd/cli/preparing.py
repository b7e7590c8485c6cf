"""`dspkd data prepare`: decode and resize what runs will read."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import typer

from dspkd.cli.common import print_json, reporting, say
from dspkd.errors import ConfigError, UsageError, first_fault

if TYPE_CHECKING:
    from pydantic import BaseModel

    from dspkd.cleaning import Cleaning
    from dspkd.config import DataConfig

    Model = TypeVar("Model", bound=BaseModel)

__all__ = ["prepare"]

DEFAULT_MODELS = ["shufflenet_v2_x1_0"]
# Keys under `data` that this command has a flag for, or that decide what is drawn and not what is decoded.
NOT_DECODING = ("root", "split", "balance", "workers")


def prepare(
    data: Path = typer.Argument(..., help="The images: a folder, a CSV or a MedMNIST .npz."),
    size: int = typer.Option(224, "--size", min=32, help="Side of the networks' input in pixels."),
    model: list[str] = typer.Option(
        DEFAULT_MODELS, "--model", help="What will be trained or judged; repeatable. Some resize otherwise than others."
    ),
    split: Path | None = typer.Option(
        None, "--split", help="A stored split.json. Without it the one that train makes without it."
    ),
    set_: list[str] = typer.Option(
        [],
        "--set",
        help="What runs will set of the split or under `preprocess`: data.folds=5, preprocess.hair_removal=true. "
        "Repeatable.",
    ),
    as_json: bool = typer.Option(False, "--json", help="Print JSON, and nothing else, on stdout."),
) -> None:
    """Decode and resize the images once, for all later runs at this size.

    Runs do it by themselves when they start; this does it beforehand, on a machine without the GPU that would wait.
    Needs the images, in any of the layouts that the README lists. Those of the training part keep up to a quarter more
    pixels, from which views are cut, and large JPEGs among them are decoded at a reduced size. Writes into $DSPKD_CACHE
    or the user's cache folder. May be interrupted and given again.
    """
    from dspkd.data.pixels import default_cache_dir, pixel_cache
    from dspkd.models import pretrained_preprocess
    from dspkd.preprocess import Preprocess
    from dspkd.train.prepare import prepare_data

    config, cleaning = _settings(data, split, set_)
    started = time.perf_counter()
    interpolations = sorted({pretrained_preprocess(name, size).interpolation for name in model})
    forms = [Preprocess(size=size, interpolation=interpolation, cleaning=cleaning) for interpolation in interpolations]
    try:
        with reporting() as reporter:
            found = prepare_data(config, classes=None, teacher=None, stored=None, progress=reporter.progress)
            for form in forms:
                found.decode(form, reporter)
    except KeyboardInterrupt:
        typer.echo("dspkd: interrupted; give the same command again to go on", err=True)
        raise typer.Exit(130) from None
    side = found.training_side(size)
    files = [
        pixel_cache(found.table, wanted, for_training=training, cache_dir=found.cache_dir).path
        for form in forms
        for wanted, training in ((found.training_preprocess(form), True), (form, False))
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
    place = f"{total:.2f} GB in {found.cache_dir or default_cache_dir()}, {result['seconds']} s"
    say(f"{learned}, {judged} to judge on at {size} px: {place}")


def _settings(root: Path, split: Path | None, overrides: list[str]) -> tuple[DataConfig, Cleaning]:
    from dspkd.cleaning import Cleaning
    from dspkd.config import DataConfig, apply_overrides

    values = apply_overrides({}, overrides)
    data = values.get("data", {})
    foreign = [key for key in values if key not in ("data", "preprocess")]
    foreign += [f"data.{key}" for key in data if key in NOT_DECODING] if isinstance(data, dict) else []
    if foreign:
        raise UsageError(
            f"--set {foreign[0]} has no say in which pictures are decoded, and how",
            hint="preprocess.KEY=VALUE, or the keys under data that decide the split; --split for a stored one",
        )
    given = {"root": root, "split": split}
    config = _validated(DataConfig, "data", {**data, **given} if isinstance(data, dict) else data)
    return config, _validated(Cleaning, "preprocess", values.get("preprocess", {}))


def _validated(model: type[Model], table: str, values: object) -> Model:
    from pydantic import ValidationError

    try:
        return model.model_validate(values)
    except ValidationError as error:
        raise ConfigError(f"--set: {first_fault(error, table)}") from error
