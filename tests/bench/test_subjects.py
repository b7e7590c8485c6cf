"""Which accuracy stands beside a file that is measured."""

import pytest

from dspkd.artifact import ArtifactCard, FileRecord, write_card
from dspkd.fileio import sha256_file
from dspkd.preprocess import Preprocess
from dspkd_bench.subjects import open_subject

SCORES = {"model.onnx": 0.9, "model_static.onnx": 0.8}


def metrics(accuracy):
    return {"accuracy": accuracy, "balanced_accuracy": accuracy, "macro_f1": accuracy}


def artifact(folder, certificate_of_files):
    """An artifact that is opened, but cannot be run; bench measures its static file."""
    for name in SCORES:
        (folder / name).write_text(name)
    files = {n: FileRecord(sha256=sha256_file(folder / n), bytes=(folder / n).stat().st_size) for n in SCORES}
    card = ArtifactCard(
        target="onnx",
        precision="fp32",
        model_file="model.onnx",
        model_files=tuple(SCORES),
        files=files,
        classes=("a", "b"),
        preprocess=Preprocess(size=32),
        input={},
        output={},
        source={"architecture": "torchvision/shufflenet_v2_x0_5", "role": "student", "weights_sha256": "a" * 64},
        tools={},
        certificate={"n": 10, "deployed": metrics(0.7), "files": certificate_of_files(files)},
    )
    write_card(folder, card)
    return open_subject(folder, threads=1, here=False)


def with_hashes(files):
    return {name: {"sha256": files[name].sha256, "deployed": metrics(score)} for name, score in SCORES.items()}


@pytest.mark.parametrize(
    ("certificate_of_files", "expected"),
    [
        (with_hashes, {"n": 10, **metrics(0.8)}),
        (lambda files: {name: {"runtime": "onnxruntime"} for name in files}, {"n": 10, **metrics(0.7)}),
        (lambda files: {"model.onnx": with_hashes(files)["model.onnx"]}, None),
    ],
    ids=["its own", "older certificates: the worst file's", "not certified"],
)
def test_accuracy_is_of_the_very_file(tmp_path, certificate_of_files, expected):
    subject = artifact(tmp_path, certificate_of_files)
    assert subject.model_file.name == "model_static.onnx"
    assert subject.validation == expected
