"""The file of a comparison, checked before anything runs."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError, model_validator

from dspkd.cleaning import Cleaning
from dspkd.config import AugmentConfig, DataConfig, TeacherCacheConfig
from dspkd.errors import ConfigError, UsageError
from dspkd.presets import PRESETS

__all__ = ["Comparison", "MethodSpec", "StudentSpec", "TeacherSpec", "comparison_toml", "parse_comparison"]

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
    preprocess: Cleaning | None = None
    augment: AugmentConfig | None = None
    teacher_cache: TeacherCacheConfig | None = None
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
    views: int | None = Field(default=None, ge=1)
    """Instead of `augment.views`: how many views of an image its epochs go through."""
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
