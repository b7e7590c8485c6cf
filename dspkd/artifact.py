"""The second hand-over format: a compiled model as a folder that can be run, checked and measured on any machine.

    FOLDER/
      model.onnx, model.pte or model.tflite   what the target's runtime loads (ONNX: dynamic batch; model_static.onnx:
      1x3xHxW)
      golden.npz               a few real pictures as uint8 pixels, the probabilities they must give, and what those
      mean (classes, preprocessing)
      artifact.json            what it is, hashes of every file, and the certificate; sealed with a hash of its own
      content

The graph takes float32 (N, 3, H, W) RGB in [0, 1] (LiteRT: NHWC), named `image`, or bytes as `input` in artifact.json
says, and gives float32 (N, K) `probabilities`: normalisation and softmax are inside.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from dspkd.errors import DeviceError, VerificationError, first_fault
from dspkd.fileio import read_sealed_json, sha256_file, write_sealed_json
from dspkd.preprocess import Preprocess

__all__ = [
    "ARTIFACT_SCHEMA_VERSION",
    "Artifact",
    "ArtifactCard",
    "check_runs_here",
    "is_artifact_dir",
    "load_artifact",
    "write_card",
]

ARTIFACT_SCHEMA_VERSION = 2
CARD = "artifact.json"
GOLDEN = "golden.npz"


class FileRecord(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    sha256: str
    bytes: int


class ArtifactCard(BaseModel):
    """The content of `artifact.json` (without the seal)."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    schema_version: int = ARTIFACT_SCHEMA_VERSION
    kind: Literal["artifact"] = "artifact"
    target: str
    precision: str
    model_file: str
    """The file that a runtime loads by default."""
    model_files: tuple[str, ...]
    """All model files; other files are what goes with them."""
    files: dict[str, FileRecord]
    classes: tuple[str, ...]
    """In the order of the probabilities."""
    preprocess: Preprocess
    input: dict[str, Any]
    output: dict[str, Any]
    source: dict[str, Any]
    """The student: architecture, role, hash of its weights, its data's hashes and its test metrics."""
    tools: dict[str, str]
    details: dict[str, Any] = {}
    """What the target's compiler has to say, e.g. the number of delegates."""
    certificate: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Artifact:
    card: ArtifactCard
    path: Path

    @property
    def model_path(self) -> Path:
        return self.path / self.card.model_file

    @property
    def name(self) -> str:
        return f"{self.card.target}-{self.card.precision}"


def check_runs_here(artifact: Artifact) -> None:
    """DeviceError for an artifact that was exported without its runtime, such as a kit for another device."""
    if "not_run" in artifact.card.certificate:
        raise DeviceError(
            f"{artifact.path} cannot be run here: {artifact.card.certificate['not_run']}", hint="use it where it runs"
        )


def is_artifact_dir(path: Path) -> bool:
    return (path / CARD).is_file()


def write_card(folder: Path, card: ArtifactCard) -> None:
    write_sealed_json(folder / CARD, card.model_dump(mode="json"))


def load_artifact(folder: Path) -> Artifact:
    """Read an artifact and check its seal and the hash of every file; VerificationError names what differs."""
    if not folder.is_dir():
        raise VerificationError(f"{folder} does not exist", hint="give a folder that `dspkd export` wrote")
    value = read_sealed_json(folder / CARD, kind="artifact", schema_version=ARTIFACT_SCHEMA_VERSION)
    value.pop("content_sha256")
    try:
        card = ArtifactCard.model_validate(value)
    except ValidationError as error:
        fault = first_fault(error, with_value=False)
        raise VerificationError(f"{folder / CARD} is malformed: {fault}") from error
    for name, record in card.files.items():
        file = folder / name
        # A manifest may come from anywhere: it must not make us read outside its own folder.
        if Path(name).name != name:
            raise VerificationError(f"{folder / CARD} names a file outside its folder: {name!r}")
        if not file.is_file():
            raise VerificationError(f"{file} is missing", hint="copy the whole folder")
        if file.stat().st_size != record.bytes or sha256_file(file) != record.sha256:
            raise VerificationError(
                f"{file} differs from its hash in {CARD}: it was changed or damaged", hint="export again"
            )
    for name in (card.model_file, *card.model_files):
        if name not in card.files:
            raise VerificationError(f"{folder / CARD}: model_file {name!r} is not among its files")
    return Artifact(card, folder)
