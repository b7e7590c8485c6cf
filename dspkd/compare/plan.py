"""From the file of a comparison to its cells.

A cell is one run: one method, one student, one seed, and one teacher where the method has one. Cells of one seed start
from the same student weights and see the same views of the same images in the same number of updates, so that what
differs between them is the method alone.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dspkd.compare.spec import Comparison, MethodSpec
from dspkd.config import RunConfig, parse_run_config, to_toml
from dspkd.errors import ConfigError
from dspkd.fileio import sha256_bytes
from dspkd.presets import preset_stages

__all__ = ["Cell", "Plan", "make_plan", "student_epochs"]


@dataclass(frozen=True, slots=True)
class Cell:
    """One run. `method` is None for the fitting of a teacher, `teacher` for a method without one."""

    name: str
    config: RunConfig
    recipe: Path
    """Its resolved configuration as a TOML file. A hash of the content is part of the file's name: with other settings
    it is another file, so that nothing that has been printed or is waiting its turn comes to mean something else.
    """
    method: str | None
    student: str | None
    teacher: str | None
    seed: int
    needs: str | None = None
    """The cell that must be finished before: the fitting of its teacher."""

    @property
    def lock(self) -> Path:
        """Held by whoever carries it out, whatever the settings: they would write into the same folder."""
        return self.recipe.with_name(f"{self.name}.lock")

    @property
    def failure_record(self) -> Path:
        return self.recipe.with_name(f"{self.name}.failed.json")

    @property
    def words(self) -> list[str]:
        """The command that carries it out, or goes on with it."""
        verb = ["train", self.config.model] if self.config.teacher is None else ["distill"]
        return ["dspkd", *verb, "--config", str(self.recipe), "--out", str(self.config.out), "--resume"]

    @property
    def command(self) -> str:
        return shlex.join(self.words)


@dataclass(frozen=True, slots=True)
class Plan:
    comparison: Comparison
    out: Path
    cells: tuple[Cell, ...]
    """In the order of execution: teachers, then seed by seed all methods, so that what is finished is comparable."""
    teacher_folders: Mapping[str, Path]

    @property
    def split(self) -> Path:
        return self.out / "split.json"

    @property
    def bookkeeping(self) -> Path:
        """Recipes, locks and records of failures."""
        return self.out / "cells"

    def cell(self, method: str, student: str, teacher: str | None, seed: int) -> Cell:
        """The cell of a table's entry; a method without a teacher has the same one for every teacher."""
        for cell in self.cells:
            own = (cell.method, cell.student, cell.seed) == (method, student, seed)
            if own and cell.teacher in (teacher, None):
                return cell
        raise KeyError((method, student, teacher, seed))

    def has_teacher(self, method: str) -> bool:
        return next(cell.teacher is not None for cell in self.cells if cell.method == method)


def _needs_teacher(stages: list[dict[str, Any]]) -> bool:
    from dspkd.distill import METHODS

    return any(stage["method"] in METHODS and METHODS[stage["method"]].needs_teacher for stage in stages)


def _trains_student(method: str) -> bool:
    """False for a stage that fits only the method's own layers: its epochs are no updates of the student."""
    from dspkd.distill import METHODS

    return method not in METHODS or METHODS[method].trains_student


def make_plan(comparison: Comparison, out: Path, *, origin: str) -> Plan:
    """All cells, with every recipe resolved and checked. Raises ConfigError naming the table of the file that is wrong,
    ModelError for an unknown network.
    """
    out = out.resolve()
    folders, fitted = _teachers(comparison, out, origin)
    cells = list(fitted)
    fitted_names = {cell.teacher: cell.name for cell in fitted}
    recipes = {name: _stages(comparison, name, method, origin) for name, method in comparison.methods.items()}
    for seed in comparison.seeds:
        for student in comparison.students:
            for name, stages in recipes.items():
                teachers: list[str | None] = [*folders] if _needs_teacher(stages) else [None]
                if not teachers:
                    raise ConfigError(f"{origin}: methods.{name} needs a teacher", hint="add a [teachers.NAME]")
                for teacher in teachers:
                    values = _student_values(comparison, student, folders.get(teacher or ""), stages, seed)
                    if (views := comparison.methods[name].views) is not None:
                        values["augment"] = {**values.get("augment", {}), "views": views}
                    identity = "-".join([name, *([teacher] if teacher else []), student, f"seed{seed}"])
                    cells.append(
                        _cell(
                            identity, values, out, f"{origin}: methods.{name}",
                            method=name, student=student, teacher=teacher, seed=seed,
                            needs=fitted_names.get(teacher) if teacher else None,
                        )
                    )  # fmt: skip
    _check_models(cells)
    used = {stage["method"] for stages in recipes.values() for stage in stages}
    if unused := sorted(set(comparison.training.settings) - used):
        raise ConfigError(f"{origin}: training.settings: no method has a stage {unused[0]}", hint="check its spelling")
    plan = Plan(comparison, out, tuple(cells), folders)
    if plan.has_teacher(comparison.compared_with[0]):
        raise ConfigError(
            f"{origin}: references: {comparison.compared_with[0]} has a teacher, so it is not the undistilled student",
            hint="name the method that learns from labels alone first",
        )
    return plan


def _check_models(cells: list[Cell]) -> None:
    from dspkd.models import Architecture

    for model in dict.fromkeys(cell.config.model for cell in cells):
        Architecture(model)


def _teachers(comparison: Comparison, out: Path, origin: str) -> tuple[dict[str, Path], list[Cell]]:
    """Where each teacher lies or will lie, and the cells that fit those with a recipe."""
    folders, cells = {}, []
    for name, spec in comparison.teachers.items():
        if spec.run is not None:
            folders[name] = spec.run.resolve()
            continue
        stage = {
            "method": "cross_entropy",
            "epochs": spec.epochs,
            "settings": spec.settings,
            "optimizer": {**comparison.training.optimizer, **spec.optimizer},
        }
        start = {"model": spec.model, "pretrained": spec.pretrained, **_weights(spec.weights)}
        values = {**_shared_values(comparison), **start, "stages": [stage], "seed": spec.seed}
        cell = _cell(
            f"teacher-{name}", values, out, f"{origin}: teachers.{name}",
            method=None, student=None, teacher=name, seed=spec.seed,
        )  # fmt: skip
        folders[name] = cell.config.out
        cells.append(cell)
    return folders, cells


def _cell(name: str, values: dict[str, Any], out: Path, origin: str, **identity: Any) -> Cell:
    values = {**values, "out": str(out / "runs" / name)}
    values["data"] = {**values["data"], "split": str(out / "split.json")}
    config = parse_run_config(values, origin=origin)
    content = sha256_bytes(to_toml(config).encode())
    return Cell(name, config, out / "cells" / f"{name}-{content[:10]}.toml", **identity)


def _student_values(
    comparison: Comparison, student: str, teacher: Path | None, stages: list[dict[str, Any]], seed: int
) -> dict[str, Any]:
    spec = comparison.students[student]
    values = {**_shared_values(comparison), "model": spec.model, "pretrained": spec.pretrained, "seed": seed}
    values |= {**_weights(spec.weights), "stages": stages}
    if teacher is not None:
        values["teacher"] = str(teacher)
    return values


def _weights(path: Path | None) -> dict[str, str]:
    return {} if path is None else {"weights": str(path.resolve())}


def _shared_values(comparison: Comparison) -> dict[str, Any]:
    data = comparison.data.model_dump(mode="json", exclude_none=True)
    data["root"] = str(comparison.data.root.resolve())
    if comparison.data.cache_dir is not None:
        data["cache_dir"] = str(comparison.data.cache_dir.resolve())
    training = comparison.training.model_dump(mode="json", exclude_none=True)
    del training["optimizer"], training["settings"]
    where = training.get("teacher_cache", {}).get("where", "off")
    if where not in ("off", "auto"):
        training["teacher_cache"]["where"] = str(Path(where).resolve())
    return {"data": data, **training}


def _stages(comparison: Comparison, name: str, method: MethodSpec, origin: str) -> list[dict[str, Any]]:
    """The stages of one method with their epochs. Raises ConfigError if those of the student are not the budget."""
    common = comparison.training.optimizer
    if method.preset is not None:
        # paper_literal has a rate of its own, as printed.
        lr = method.lr or (None if method.preset == "paper_literal" else common.get("lr"))
        try:
            stages = preset_stages(method.preset, epochs=comparison.epochs, lr=lr)
        except ConfigError as error:
            raise ConfigError(f"{origin}: methods.{name}: {error.message}", hint=error.hint) from error
        if foreign := sorted(set(method.settings) - {stage["method"] for stage in stages}):
            raise ConfigError(f"{origin}: methods.{name}.settings: preset {method.preset} has no stage {foreign[0]}")
        return [
            {
                **stage,
                "settings": {
                    **comparison.training.settings.get(stage["method"], {}),
                    **stage["settings"],
                    **method.settings.get(stage["method"], {}),
                },
                "optimizer": {**common, **stage["optimizer"]},
            }
            for stage in stages
        ]
    counted = [_trains_student(stage.method) for stage in method.stages]
    for stage, counts in zip(method.stages, counted, strict=True):
        if not counts and stage.epochs is None:
            raise ConfigError(
                f"{origin}: methods.{name}: stage {stage.method} does not train the student, so it has no share of the "
                "budget",
                hint="say its epochs",
            )
    own = [stage.epochs for stage, counts in zip(method.stages, counted, strict=True) if counts]
    shares = _divide(comparison.epochs, own)
    if method.budget == "shared" and (sum(shares) != comparison.epochs or min(shares, default=0) < 1):
        raise ConfigError(
            f"{origin}: methods.{name} has {sum(shares)} epochs in {len(shares)} stages, the budget is "
            f"{comparison.epochs}",
            hint='give every method the same budget; write budget = "own" for a control that trains longer',
        )
    epochs = iter(shares)
    return [
        {
            "method": stage.method,
            "epochs": next(epochs) if counts else stage.epochs,
            "settings": {**comparison.training.settings.get(stage.method, {}), **stage.settings},
            "optimizer": {**common, **stage.optimizer},
        }
        for stage, counts in zip(method.stages, counted, strict=True)
    ]


def student_epochs(config: RunConfig) -> int:
    """Over all stages that train the student."""
    return sum(stage.epochs for stage in config.stages if _trains_student(stage.method))


def _divide(budget: int, given: list[int | None]) -> list[int]:
    """Stages without epochs share what the others leave; of an odd rest the later ones get more."""
    open_stages = given.count(None)
    rest = max(0, budget - sum(epochs or 0 for epochs in given))
    shares = iter([(rest * (k + 1)) // open_stages - (rest * k) // open_stages for k in range(open_stages)])
    return [next(shares) if epochs is None else epochs for epochs in given]
