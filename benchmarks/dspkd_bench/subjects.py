"""What is measured: a network in PyTorch or an artifact on its runtime, opened from a folder."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from dspkd.artifact import Artifact, check_runs_here, is_artifact_dir, load_artifact
from dspkd.errors import DeviceError, UsageError
from dspkd.protocol import caution
from dspkd.runtimes import LoadedModel, first_line, load_model, to_input
from dspkd.student import is_student_dir, load_student
from dspkd_bench.agent import load_onnx

__all__ = ["Batched", "ProviderError", "Subject", "open_batched", "open_subject", "short_name"]

Role = Literal["teacher", "baseline", "student", "peer"]
HEADLINE = ("n", "accuracy", "balanced_accuracy", "macro_f1", "intervals", "calibration")


@dataclass(frozen=True, slots=True)
class Subject:
    """`run` takes what `input_of` makes of uint8 pixels (N, H, W, 3). `weights_sha256` tells which network an artifact
    was made from.

    `role`: teacher is what the others are compared with, student was distilled, baseline was fitted to labels alone;
    peer is a stock export of a student or a baseline in another runtime (`dspkd_bench.peers`).
    """

    name: str
    path: Path
    role: Role
    architecture: str
    num_classes: int
    size: int
    target: str
    precision: str
    runtime: str
    file_bytes: int
    weights_sha256: str
    validation: dict[str, Any] | None
    certificate: dict[str, Any] | None
    model_file: Path
    run: Callable[[np.ndarray], object]
    load_ms: float | None = None
    """Reading the file and making it ready, the libraries imported before."""
    input_of: Callable[[np.ndarray], np.ndarray] = to_input
    batch_file: Path | None = None
    """The file that takes more than one picture in a call; None if there is none."""
    provider: str = "cpu"
    """What computes for ONNX Runtime, out of `agent.PROVIDERS`."""


class ProviderError(DeviceError):
    """The machine lacks an execution provider of ONNX Runtime, or it does not start."""


def open_subject(
    folder: Path, *, threads: int, teacher_sha256: str | None = None, here: bool = True, provider: str = "cpu"
) -> Subject:
    """Open a run, a student or an artifact folder. An artifact of the teacher's weights counts as the teacher.

    `here=False` opens an artifact to be measured elsewhere: it is checked, but not loaded, and cannot be run.
    `provider` is for ONNX artifacts. Raises UsageError for any other folder, VerificationError for one that was
    changed, ProviderError if the provider cannot be had here.
    """
    if is_artifact_dir(folder):
        return _artifact(folder, threads, teacher_sha256, here, provider)
    if not here:
        raise UsageError(
            f"{folder} is no artifact, and a device runs nothing else", hint="export it first with `dspkd export`"
        )
    if is_student_dir(folder):
        return _network(folder, threads, teacher_sha256)
    raise UsageError(f"{folder} is neither a run, a student nor an artifact", hint="give folders that dspkd wrote")


def _role(sha256: str, teacher_sha256: str | None, stored: str) -> Role:
    if sha256 == teacher_sha256 or stored == "teacher":
        return "teacher"
    return "student" if stored == "student" else "baseline"


def short_name(architecture: str) -> str:
    """`torchvision/shufflenet_v2_x1_0` -> `shufflenet_v2_x1_0`."""
    return architecture.rpartition("/")[2]


def _marked(validation: dict[str, Any], data: dict[str, Any]) -> dict[str, Any]:
    """With what has to stand beside these figures, if anything."""
    text = caution(data)
    return {**validation, "caution": text} if text else validation


def _variant(details: dict[str, Any]) -> str:
    return ", not rewritten" if details.get("rewrite") is False else ""


def _network(folder: Path, threads: int, teacher_sha256: str | None) -> Subject:
    import torch

    from dspkd.train.task import Normalise

    started = time.perf_counter()
    student = load_student(folder)
    card = student.card
    network = torch.nn.Sequential(Normalise(card.preprocess), student.model, torch.nn.Softmax(dim=1)).eval()
    load_ms = (time.perf_counter() - started) * 1e3
    torch.set_num_threads(threads)

    @torch.inference_mode()
    def run(images: np.ndarray) -> object:
        return network(torch.from_numpy(images))

    validation = card.metrics.get("val")
    return Subject(
        name=f"{short_name(card.architecture)} PyTorch fp32",
        path=folder,
        role=_role(card.weights_sha256, teacher_sha256, card.role),
        architecture=card.architecture,
        num_classes=len(card.classes),
        size=card.preprocess.size,
        target="pytorch",
        precision="fp32",
        runtime=f"PyTorch {torch.__version__} eager",
        file_bytes=(folder / "model.safetensors").stat().st_size,
        weights_sha256=card.weights_sha256,
        validation=_marked({k: validation[k] for k in HEADLINE if k in validation}, card.data) if validation else None,
        certificate=None,
        model_file=folder / "model.safetensors",
        run=run,
        load_ms=load_ms,
        batch_file=folder / "model.safetensors",
    )


def _artifact(folder: Path, threads: int, teacher_sha256: str | None, here: bool, provider: str) -> Subject:
    artifact = load_artifact(folder)
    card = artifact.card
    # The static file where there is one: a phone or a camera classifies one picture at a time.
    file = next((name for name in card.files if Path(name).stem == "model_static"), card.model_file)
    source: dict[str, Any] = card.model_dump()["source"]
    provider = provider if card.target == "onnx" else "cpu"
    model, load_ms = _loaded(artifact, folder / file, threads, provider) if here else (None, None)
    certificate = card.certificate
    deployed = _deployed(certificate, card.files[file].sha256)
    title = {"onnx": "ONNX Runtime", "executorch": "ExecuTorch", "litert": "LiteRT"}.get(card.target, card.target)
    title += {"cpu": "", "cuda": " CUDA", "tensorrt": " TensorRT"}[provider]
    return Subject(
        name=f"{short_name(card.source['architecture'])} {title} {card.precision}{_variant(card.details)}",
        path=folder,
        role=_role(source["weights_sha256"], teacher_sha256, source["role"]),
        architecture=source["architecture"],
        num_classes=len(card.classes),
        size=card.preprocess.size,
        target=card.target,
        precision=card.precision,
        runtime=model.runtime if model else "",
        file_bytes=card.files[file].bytes,
        weights_sha256=source["weights_sha256"],
        validation=_marked({"n": certificate["n"], **deployed}, source.get("data", {})) if deployed else None,
        certificate={k: v for k, v in certificate.items() if k not in ("deployed", "files")},
        model_file=folder / file,
        run=model.run if model else _elsewhere,
        load_ms=load_ms,
        input_of=model.input_of if model else to_input,
        batch_file=folder / card.model_file if card.details.get("dynamic_batch") else None,
        provider=provider,
    )


def _deployed(certificate: dict[str, Any], sha256: str) -> dict[str, Any] | None:
    """The metrics of the very file. Certificates from before files had theirs give those of the worst file."""
    files = [one for one in (certificate.get("files") or {}).values() if "sha256" in one]
    if not files:
        return certificate.get("deployed")
    return next((one["deployed"] for one in files if one["sha256"] == sha256), None)


@dataclass(frozen=True, slots=True)
class Batched:
    run: Callable[[np.ndarray], object]
    most: int | None = None
    """Pictures in one call; None for any number."""


def open_batched(subject: Subject, *, threads: int) -> Batched | None:
    """The subject as it takes several pictures in one call, from its `batch_file`; None if it has none."""
    if subject.batch_file is None:
        return None
    if subject.target == "pytorch":
        return Batched(subject.run)
    model = _load(subject.target, subject.batch_file, threads, subject.provider)
    return Batched(model.run, model.batch if subject.target == "tensorrt" else None)


def _loaded(artifact: Artifact, file: Path, threads: int, provider: str) -> tuple[LoadedModel, float]:
    check_runs_here(artifact)
    started = time.perf_counter()
    model = _load(artifact.card.target, file, threads, provider)
    return model, (time.perf_counter() - started) * 1e3


def _load(target: str, file: Path, threads: int, provider: str) -> LoadedModel:
    if provider == "cpu":
        return load_model(target, file, threads=threads)
    try:
        loaded = load_onnx(str(file), threads, provider)
    except Exception as error:  # its libraries fail in ways of their own
        raise ProviderError(first_line(error), hint="install onnxruntime-gpu and its libraries") from error
    return LoadedModel(loaded.runtime, loaded.run, dtype=loaded.dtype)


def _elsewhere(images: np.ndarray) -> object:
    raise RuntimeError("this subject was opened to be measured elsewhere")
