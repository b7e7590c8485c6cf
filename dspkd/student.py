"""The first hand-over format: a trained network as a folder that any later step, on any machine, can read and check.

    FOLDER/
      model.safetensors   the state dict
      student.json        what it is: architecture, classes in order, preprocessing, metrics, data, teacher, config,
      hashes
      int8.safetensors    after `dspkd distill --stage qat`: the weights and scales of its eight-bit form

`dspkd train` and `dspkd distill` write it into their run folder, so a run *is* a student folder. A teacher is stored
the same way, with role `teacher` or `baseline` instead of `student`. `student.json` is sealed: a hash of its own
content and of the weights stands in it, and `load_student` refuses a folder in which one byte has changed.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, ValidationError
from torch import nn

import dspkd
from dspkd.errors import ModelError, VerificationError
from dspkd.fileio import atomic_file, read_sealed_json, sha256_file, write_sealed_json
from dspkd.models import Architecture
from dspkd.models.weights import fit_state_dict, read_state_dict
from dspkd.preprocess import Preprocess
from dspkd.protocol import caution

__all__ = [
    "STUDENT_SCHEMA_VERSION",
    "Student",
    "StudentCard",
    "is_student_dir",
    "load_student",
    "read_quantised",
    "save_quantised",
    "save_student",
]

STUDENT_SCHEMA_VERSION = 2
CARD = "student.json"
WEIGHTS = "model.safetensors"
INT8_WEIGHTS = "int8.safetensors"


class StudentCard(BaseModel):
    """The content of `student.json` (without the seal)."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    schema_version: int = STUDENT_SCHEMA_VERSION
    kind: Literal["student"] = "student"
    role: Literal["teacher", "baseline", "student"]
    """teacher or baseline: fitted to labels alone; student: distilled."""
    architecture: str
    """Qualified name, e.g. `torchvision/shufflenet_v2_x1_0`."""
    classes: tuple[str, ...]
    """In the order of the logits; nothing re-sorts them."""
    preprocess: Preprocess
    weights_sha256: str = ""
    metrics: dict[str, Any] = {}
    """`val` and `test`, each as `dspkd.train.metrics.summarise` gives it."""
    data: dict[str, Any] = {}
    """`root`, `table_sha256`, `split_sha256`, and the number of images of each part."""
    teacher: dict[str, Any] | None = None
    config: dict[str, Any] = {}
    tools: dict[str, str] = {}
    quantised: dict[str, Any] | None = None
    """What `int8.safetensors` is, if there is one: its hash, quantiser, metrics, settings and tool versions."""

    @property
    def caution(self) -> str | None:
        """What has to stand beside every figure of this network, if anything."""
        return caution(self.data)


@dataclass(frozen=True, slots=True)
class Student:
    """A network ready to run (eval mode, float32, on the CPU) and what is known of it."""

    model: nn.Module
    card: StudentCard
    path: Path

    @property
    def num_classes(self) -> int:
        return len(self.card.classes)


def tool_versions() -> dict[str, str]:
    import timm
    import torchvision

    return {
        "dspkd": dspkd.__version__,
        "torch": str(torch.__version__),
        "torchvision": str(torchvision.__version__),
        "timm": str(timm.__version__),
    }


def is_student_dir(path: Path) -> bool:
    return (path / CARD).is_file()


def save_student(folder: Path, model: nn.Module, card: StudentCard) -> StudentCard:
    """Write weights, then the card that carries their hash. Returns the card as stored.

    A kill in between leaves the old card beside new weights, which `load_student` refuses by the hash.
    """
    _write_weights(folder / WEIGHTS, model.state_dict())
    card = card.model_copy(
        update={
            "schema_version": STUDENT_SCHEMA_VERSION,
            "weights_sha256": sha256_file(folder / WEIGHTS),
            "tools": tool_versions(),
        }
    )
    write_sealed_json(folder / CARD, card.model_dump(mode="json"))
    return card


def _write_weights(path: Path, state: dict[str, torch.Tensor]) -> None:
    from safetensors.torch import save_file

    with atomic_file(path) as temporary:
        save_file({k: v.detach().cpu().contiguous() for k, v in state.items()}, temporary)


def save_quantised(folder: Path, student: Student, state: dict[str, torch.Tensor], about: dict[str, Any]) -> None:
    """Write `student` into `folder` with a second set of weights beside its own; `about` goes into its card."""
    _write_weights(folder / INT8_WEIGHTS, state)
    quantised = {"sha256": sha256_file(folder / INT8_WEIGHTS), **about}
    save_student(folder, student.model, student.card.model_copy(update={"quantised": quantised}))


def read_quantised(student: Student) -> dict[str, torch.Tensor]:
    """The state of the eight-bit form. ModelError if the student has none."""
    from safetensors.torch import load_file

    if student.card.quantised is None:
        raise ModelError(f"{student.path} has no trained eight-bit form", hint="make one: dspkd distill --stage qat")
    state: dict[str, torch.Tensor] = load_file(student.path / INT8_WEIGHTS)
    return state


def load_card(folder: Path) -> StudentCard:
    """The card alone, checked against its seal. Raises VerificationError."""
    value = read_sealed_json(folder / CARD, kind="student", schema_version=STUDENT_SCHEMA_VERSION)
    value.pop("content_sha256")
    try:
        return StudentCard.model_validate(value)
    except ValidationError as error:
        raise VerificationError(f"{folder / CARD} is malformed: {error.errors()[0]['msg']}") from error


def load_student(folder: Path) -> Student:
    """Read and check a student folder.

    Raises VerificationError if a file is missing or differs from the card, ModelError if the weights do not fit.
    """
    if not folder.is_dir():
        raise ModelError(f"{folder} does not exist", hint="give the folder that `dspkd train` or `dspkd distill` wrote")
    card = load_card(folder)
    weights = folder / WEIGHTS
    _check_hash(weights, card.weights_sha256)
    if card.quantised is not None:
        _check_hash(folder / INT8_WEIGHTS, card.quantised.get("sha256"))
    model = Architecture(card.architecture).build(len(card.classes))
    report = fit_state_dict(model, read_state_dict(weights), origin=f"weights {weights}")
    if report.replaced_head:
        raise VerificationError(f"{weights} has a head of another size than the {len(card.classes)} classes in {CARD}")
    return Student(model=model.eval(), card=card, path=folder)


def _check_hash(file: Path, expected: str | None) -> None:
    if not file.is_file():
        raise VerificationError(f"{file} is missing", hint="copy the whole folder")
    if sha256_file(file) != expected:
        raise VerificationError(
            f"{file} differs from the hash in {CARD}: the file was changed or damaged", hint="copy the folder again"
        )
