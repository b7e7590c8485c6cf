"""Configuration: frozen pydantic models, read from TOML, changed by flags, saved resolved with every run.

A run is a list of stages applied to one network. Fitting a teacher is one `cross_entropy` stage; DSP-KD is
`[hf_masked_generation, norm_kd]`. `dspkd.presets` has the stages of every method by name.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from dspkd.cleaning import Cleaning
from dspkd.errors import ConfigError, first_fault
from dspkd.stored_form import StoredForm

__all__ = [
    "AugmentConfig",
    "DataConfig",
    "OptimizerConfig",
    "RunConfig",
    "StageConfig",
    "TeacherCacheConfig",
    "apply_overrides",
    "load_toml",
    "parse_run_config",
    "to_toml",
]


class _Frozen(BaseModel):
    # Infinity passes every lower bound, and no JSON manifest can hold it.
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class DataConfig(_Frozen, StoredForm):
    """The images and how they are divided. Fractions are of all images; the rest is the training part."""

    later_keys = frozenset({"protocol"})

    root: Path
    split: Path | None = None
    """A stored split to reuse. None: the teacher's split if there is a teacher, else a new one from `split_seed`."""
    val_fraction: float = Field(default=0.1, gt=0.0, lt=0.5)
    test_fraction: float = Field(default=0.2, gt=0.0, lt=0.5)
    split_seed: int = Field(default=0, ge=0)
    protocol: Literal["lesions", "paper"] = "lesions"
    """paper: pictures are divided at random, as in the paper's section 4.1, whatever lesion they show. It leaks, exists
    to measure by how much that flatters, and marks everything that is made with it."""
    folds: int | None = Field(default=None, ge=2, le=100)
    """Cross-validation: lesions are dealt into so many folds, and number `fold` is the test part."""
    fold: int = Field(default=0, ge=0)
    own_split: bool | None = None
    """Whether to keep the parts that the data set itself brings. None: if it brings any and no folds are asked for."""
    join_duplicates: bool = True
    """Treat lesions that share a picture, also turned or mirrored, as one. Every image is decoded once for it."""
    balance: float = Field(default=1.0, ge=0.0, le=1.0)
    """How far training draws even out the classes: weight count^-balance. 0 is the natural mix, 1 equal classes."""
    workers: int = Field(default=0, ge=0)
    cache_dir: Path | None = None
    """Decoded pixels are kept here. None: $DSPKD_CACHE, else the user's cache folder."""

    @model_validator(mode="after")
    def _fold_exists(self) -> DataConfig:
        if self.fold >= (self.folds or 1):
            raise ValueError(f"fold {self.fold} of {self.folds or 1} does not exist: they count from 0")
        if self.folds and self.own_split:
            raise ValueError("give either folds or own_split")
        if self.protocol == "paper" and (self.folds or self.own_split):
            raise ValueError('protocol "paper" divides at random: give neither folds nor own_split')
        return self


class AugmentConfig(_Frozen, StoredForm):
    """Random views of a training image. Dermatoscopy has no up or down, so flips and right angles are free."""

    later_keys = frozenset({"color_constancy", "views", "seed"})

    flips: bool = True
    right_angles: bool = True
    crop_scale: float = Field(default=0.6, gt=0.0, le=1.0)
    """Smallest part of the image's area that a random crop keeps. 1: no cropping."""
    color_jitter: float = Field(default=0.15, ge=0.0, lt=1.0)
    """Largest relative change of brightness, contrast and saturation."""
    color_constancy: float = Field(default=0.0, ge=0.0, le=1.0)
    """How likely a view is shown as under white light (shades of grey), before its colours are changed."""
    rand_augment: Literal["off", "rare", "all"] = "off"
    """1 to 3 of the fourteen operations of the paper's section 4.1 at random, after the others: for classes with fewer
    images than the average class ("rare", the paper's way), or for all."""
    rand_augment_magnitude: float = Field(default=0.3, gt=0.0, le=1.0)
    """Share of each operation's range. The paper gives none; 0.3 is RandAugment's usual 9 of 30."""
    views: int | None = Field(default=None, ge=1)
    """Epoch e shows the views of epoch e mod `views`. None: every epoch has new ones. An approximation that lets a
    teacher's stored answers serve again."""
    seed: int | None = Field(default=None, ge=0)
    """Of the views. None: the run's. Runs with different seeds share a teacher cache if this is the same."""


class TeacherCacheConfig(_Frozen):
    """Where a frozen teacher's answers are stored and read, for the methods that allow it."""

    where: str = "off"
    """off; auto: beside the decoded pixels, under a name that says what it belongs to; else a folder."""
    dtype: Literal["float32", "float16"] = "float32"
    """float16 takes half of the space. The student then learns from rounded answers."""
    max_gib: float = Field(default=10.0, gt=0.0)
    """A stage whose answers would take more is not cached."""


class OptimizerConfig(_Frozen):
    """SGD with linear warm-up and cosine decay (paper section 4.2)."""

    lr: float = Field(default=0.01, gt=0.0)
    min_lr: float = Field(default=1e-5, ge=0.0)
    momentum: float = Field(default=0.9, ge=0.0, lt=1.0)
    weight_decay: float = Field(default=5e-4, ge=0.0)
    warmup_epochs: float | None = Field(default=None, ge=0.0)
    """None: a sixth of the stage, the paper's 20 of 120."""
    gradient_clip: float | None = Field(default=None, gt=0.0)

    @model_validator(mode="after")
    def _decays(self) -> OptimizerConfig:
        if self.min_lr > self.lr:
            raise ValueError(f"min_lr {self.min_lr} lies above lr {self.lr}: the rate would rise")
        return self


class StageConfig(_Frozen):
    """One stage: a method of `dspkd.distill.METHODS`, its settings, and how long and how it is optimised."""

    method: str
    epochs: int = Field(ge=1)
    settings: dict[str, Any] = {}
    optimizer: OptimizerConfig = OptimizerConfig()


class RunConfig(_Frozen, StoredForm):
    """Everything that decides the outcome of `dspkd train` or `dspkd distill`."""

    later_keys = frozenset({"preprocess"})

    model: str
    weights: Path | None = None
    """Initial weights from a file. A head of another size starts afresh."""
    pretrained: bool = False
    """Initial weights from timm or torchvision; needs a network."""
    teacher: Path | None = None
    """A model folder. Its split is reused, so that the student is never tested on what the teacher saw."""
    data: DataConfig
    preprocess: Cleaning | None = None
    """What is done to every picture before it is resized, in training, judging and use alike. None: what the teacher
    was fitted with, if there is one."""
    augment: AugmentConfig = AugmentConfig()
    teacher_cache: TeacherCacheConfig = TeacherCacheConfig()
    stages: tuple[StageConfig, ...] = Field(min_length=1)
    size: int = Field(default=224, ge=32, le=2048)
    batch_size: int = Field(default=64, ge=2)
    seed: int = Field(default=0, ge=0)
    select: Literal["best", "last"] = "best"
    """Which epoch of the last stage becomes the result: best on validation (balanced accuracy) or the last."""
    device: str = "auto"
    precision: Literal["32-true", "bf16-mixed", "16-mixed"] = "32-true"
    channels_last: bool = True
    """NHWC memory layout while training. Faster on CPUs and on tensor cores; rounding differs from NCHW."""
    deterministic: bool = True
    out: Path

    @model_validator(mode="after")
    def _check(self) -> RunConfig:
        if self.weights is not None and self.pretrained:
            raise ValueError("give either weights or pretrained, not both")
        return self

    @field_validator("stages")
    @classmethod
    def _methods_exist(cls, stages: tuple[StageConfig, ...]) -> tuple[StageConfig, ...]:
        from dspkd.distill import METHODS

        before = None
        for index, stage in enumerate(stages):
            if stage.method not in METHODS:
                raise ValueError(f"unknown method {stage.method!r}; known: {', '.join(METHODS)}")
            try:
                settings = METHODS[stage.method].Settings.model_validate(stage.settings)
            except ValidationError as error:
                # Left alone, pydantic would merge it into this list's own error and lose which stage it was.
                raise ValueError(first_fault(error, index, "settings")) from error
            wanted = METHODS[stage.method].predecessor(settings)
            if wanted not in (None, before):
                raise ValueError(f"{index}: {stage.method} goes on from a stage {wanted}: put one right before it")
            before = stage.method
        return stages


def load_toml(path: Path) -> dict[str, Any]:
    try:
        with path.open("rb") as f:
            return tomllib.load(f)
    except FileNotFoundError as error:
        raise ConfigError(f"config {path} does not exist", hint="check --config") from error
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(f"config {path} cannot be read: {error}") from error


def apply_overrides(values: dict[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """Apply `--set a.b.0.c=VALUE` to nested tables; VALUE is read as TOML, and as a string if it is none."""
    for override in overrides:
        key, equals, text = override.partition("=")
        if not equals or not key:
            raise ConfigError(f"--set {override!r} has no '='", hint="write --set stages.0.epochs=5")
        try:
            value = tomllib.loads(f"x = {text}")["x"]
        except tomllib.TOMLDecodeError:
            value = text
        node: Any = values
        *parents, last = key.split(".")
        for part in parents:
            node = _child(node, part, override, create=True)
        if isinstance(node, list):
            _child(node, last, override, create=False)
            node[int(last)] = value
        elif isinstance(node, dict):
            node[last] = value
        else:
            raise ConfigError(f"--set {override!r}: {last!r} lies inside a value that is no table")
    return values


def _child(node: Any, part: str, override: str, *, create: bool) -> Any:
    if isinstance(node, list):
        if not part.isdecimal() or int(part) >= len(node):
            raise ConfigError(f"--set {override!r}: {part!r} is no index of a list of {len(node)}")
        return node[int(part)]
    if not isinstance(node, dict):
        raise ConfigError(f"--set {override!r}: {part!r} lies inside a value that is no table")
    return node.setdefault(part, {}) if create else node.get(part)


def parse_run_config(values: Mapping[str, Any], *, origin: str) -> RunConfig:
    """Validate; the first fault becomes one ConfigError that names the key and the value."""
    try:
        return RunConfig.model_validate(values)
    except ValidationError as error:
        raise ConfigError(f"{origin}: {first_fault(error, whole='the configuration')}") from error


def to_toml(config: RunConfig) -> str:
    """The resolved configuration as TOML (keys that are None are left out: TOML has no null)."""
    import tomli_w

    return tomli_w.dumps(_without_none(config.model_dump(mode="json")))


def _without_none(value: Any) -> Any:
    # pydantic's exclude_none leaves the None inside a stage's free-form settings.
    if isinstance(value, dict):
        return {k: _without_none(v) for k, v in value.items() if v is not None}
    return [_without_none(v) for v in value] if isinstance(value, list) else value
