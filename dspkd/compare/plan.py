"""The file of a comparison, checked before anything runs, and the cells that follow from it.

A cell is one run: one method, one student, one seed, and one teacher where the method has one. Cells of one seed start
from the same student weights and see the same views of the same images in the same number of updates, so that what
differs between them is the method alone.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError, model_validator

from dspkd.config import AugmentConfig, DataConfig, RunConfig, parse_run_config
from dspkd.errors import ConfigError, UsageError
from dspkd.presets import PRESETS, preset_stages

__all__ = [
    "Cell",
    "Comparison",
    "MethodSpec",
    "Plan",
    "TeacherSpec",
    "comparison_toml",
    "make_plan",
    "parse_comparison",
]

BASELINE, RIVAL = "alone", "norm_kd"
# No dash: it joins the parts of a cell's name, which is the name of its folder.
Name = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.]*$", max_length=60)]


class _Spec(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class TrainingSpec(_Spec):
    """What all cells share, teachers included. The keys are those of a run's recipe, with its defaults."""

    size: int | None = None
    batch_size: int | None = None
    select: Literal["best", "last"] | None = None
    device: str | None = None
    precision: str | None = None
    channels_last: bool | None = None
    deterministic: bool | None = None
    augment: AugmentConfig | None = None
    optimizer: dict[str, Any] = {}
    """Of every stage that does not say otherwise."""
    settings: dict[str, dict[str, Any]] = {}
    """By the name of a stage's method, for every stage of that name that does not say otherwise."""


class TeacherSpec(_Spec):
    """Either `run`, the folder of a fitted teacher, or a recipe by which it is fitted first: `model` and `epochs`."""

    label: str = ""
    run: Path | None = None
    model: str | None = None
    epochs: int | None = Field(default=None, ge=1)
    weights: Path | None = None
    pretrained: bool = False
    seed: int = Field(default=0, ge=0)
    settings: dict[str, Any] = {}
    optimizer: dict[str, Any] = {}

    @model_validator(mode="after")
    def _one_of_two(self) -> TeacherSpec:
        recipe = self.model_fields_set - {"run", "label"}
        if self.run is not None and recipe:
            raise ValueError(f"a teacher with `run` is not fitted again: leave out {', '.join(sorted(recipe))}")
        if self.run is None and (self.model is None or self.epochs is None):
            raise ValueError("give `run`, a folder, or `model` and `epochs`")
        return self


class StudentSpec(_Spec):
    model: str
    label: str = ""
    weights: Path | None = None
    pretrained: bool = False


class StageSpec(_Spec):
    method: str
    epochs: int | None = Field(default=None, ge=1)
    """None: an equal part of what the other stages leave of the budget."""
    settings: dict[str, Any] = {}
    optimizer: dict[str, Any] = {}


class MethodSpec(_Spec):
    """One row of the tables: the name of a preset (`dspkd.presets`), or stages."""

    label: str = ""
    source: str = ""
    """Where its knowledge comes from, as the paper's Table 2 has it: labels, logits, features, both."""
    stages: tuple[StageSpec, ...] = ()
    preset: str | None = None
    lr: float | None = Field(default=None, gt=0.0)
    """Peak learning rate of a preset, which its stages take their share of. None: that of [training.optimizer]."""
    settings: dict[str, dict[str, Any]] = {}
    """Of a preset's stages, by the name of their method."""
    budget: Literal["shared", "own"] = "shared"
    """own: as many epochs as its stages say, for controls that train longer. Marked in the tables."""
    tuned: str = ""
    """What was tuned for this method, and on which data. Printed beside the tables."""

    @model_validator(mode="after")
    def _one_of_two(self) -> MethodSpec:
        if bool(self.stages) == (self.preset is not None):
            raise ValueError("give `stages` or `preset`, one of the two")
        if self.preset is not None and self.preset not in PRESETS:
            raise ValueError(f"unknown preset {self.preset!r}; known: {', '.join(PRESETS)}")
        if self.stages and (self.lr is not None or self.settings):
            raise ValueError("`lr` and `settings` go with `preset`; give each stage its own")
        if self.budget == "own" and any(stage.epochs is None for stage in self.stages):
            raise ValueError('with budget = "own" every stage says its epochs')
        if self.budget == "own" and self.preset is not None:
            raise ValueError('a preset divides the shared budget; write its stages for budget = "own"')
        return self


class AblationRow(_Spec):
    """One row of Table 7: `method` minus `against`."""

    method: str
    against: str


class Comparison(_Spec):
    """The content of the file."""

    title: str = ""
    notes: str = ""
    judge: Literal["val", "test"] = "test"
    """The part whose stored predictions are compared. val while anything is still being chosen."""
    epochs: int = Field(ge=1)
    """The budget: epochs of every student, over all stages of its method."""
    seeds: tuple[Annotated[int, Field(ge=0)], ...] = Field(min_length=1)
    references: tuple[str, ...] | None = Field(default=None, min_length=1)
    """Methods that every other one is compared with; the first is the undistilled student. None: `alone`, and `norm_kd`
    where there is one.
    """
    data: DataConfig
    training: TrainingSpec = TrainingSpec()
    teachers: dict[Name, TeacherSpec] = {}
    students: dict[Name, StudentSpec] = Field(min_length=1)
    methods: dict[Name, MethodSpec] = Field(min_length=1)
    ablation: tuple[AblationRow, ...] = ()

    @model_validator(mode="after")
    def _names_exist(self) -> Comparison:
        if len(set(self.seeds)) < len(self.seeds):
            raise ValueError("a seed stands twice in `seeds`")
        rows = [name for row in self.ablation for name in (row.method, row.against)]
        for key, names in (("references", self.references or ()), ("ablation", rows)):
            for name in names:
                if name not in self.methods:
                    raise ValueError(f"{key}: there is no method {name!r}")
        if self.references is None and BASELINE not in self.methods:
            raise ValueError(
                f"no undistilled student: add [methods.{BASELINE}], or name another method first in `references`"
            )
        return self

    @property
    def compared_with(self) -> tuple[str, ...]:
        """The references, the undistilled student first."""
        if self.references is not None:
            return self.references
        return (BASELINE, RIVAL) if RIVAL in self.methods else (BASELINE,)


@dataclass(frozen=True, slots=True)
class Cell:
    """One run. `method` is None for the fitting of a teacher, `teacher` for a method without one."""

    name: str
    config: RunConfig
    recipe: Path
    """Its resolved configuration as a TOML file."""
    method: str | None
    student: str | None
    teacher: str | None
    seed: int
    needs: str | None = None
    """The cell that must be finished before: the fitting of its teacher."""

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


def comparison_toml(comparison: Comparison) -> str:
    """The file as it was understood, flags included."""
    import tomli_w

    return tomli_w.dumps(comparison.model_dump(mode="json", exclude_none=True))


def parse_comparison(values: Mapping[str, Any], *, origin: str) -> Comparison:
    """Validate the content of a file. Raises ConfigError naming the file, the key and the value."""
    data = values.get("data", {})
    if isinstance(data, Mapping) and "root" not in data:
        raise UsageError(f"{origin} names no images", hint="give --data FOLDER, or data.root in the file")
    try:
        return Comparison.model_validate(values)
    except ValidationError as error:
        faults = error.errors()
        # A misspelt key is also a missing one; its own name says more.
        fault = next((f for f in faults if f["type"] == "extra_forbidden"), faults[0])
        key = ".".join(str(part) for part in fault["loc"])
        if fault["type"] == "extra_forbidden":
            raise ConfigError(f"{origin}: {key} is no key of a comparison", hint="check its spelling") from error
        # The value of the whole file says nothing.
        got = f" (got {fault.get('input')!r})" if key and not isinstance(fault.get("input"), dict) else ""
        where = f"{key}: " if key else ""
        raise ConfigError(f"{origin}: {where}{fault['msg'].removeprefix('Value error, ')}{got}") from error


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
    return Cell(name, parse_run_config(values, origin=origin), out / "cells" / f"{name}.toml", **identity)


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
