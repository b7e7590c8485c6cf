"""Networks that were not trained and yet answer every image differently, and the artifacts of one of them.

The few steps of `tiny_student` leave it with one answer, probability 1.0, for every picture: any graph agrees with
that, whatever is wrong with it.
"""

import contextlib
import io
import shutil
import sys
from unittest import mock

import numpy as np
import pytest
import torch
from tiny_runs import REAL
from torch import nn

from dspkd.cli import main
from dspkd.cli.sharing import validation_images
from dspkd.data.pixels import cached_pixels
from dspkd.data.sources import read_table
from dspkd.models import Architecture
from dspkd.preprocess import Preprocess
from dspkd.student import Student, StudentCard, load_card, load_student, save_student
from dspkd.train.reporter import Reporter
from dspkd.train.task import Normalise

__all__ = [
    "SIZE",
    "lively_artifacts",
    "lively_export_json",
    "lively_images",
    "lively_student",
    "settle_batch_norms",
    "student_of",
]

SIZE = 64

# Two conftest files import these fixtures, so pytest takes them for different ones and would export twice.
_made: dict[str, object] = {}


def settle_batch_norms(model, images, *, seed=0):
    """Running statistics as `images` have them, and affine parameters far from the identity of a fresh layer.

    With the statistics of a fresh network the last layers hardly depend on the image any more.
    """
    generator = torch.Generator().manual_seed(seed)
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None
        nn.init.uniform_(norm.weight, 0.5, 1.5, generator=generator)
        nn.init.uniform_(norm.bias, -0.3, 0.3, generator=generator)
    with torch.no_grad():
        model.train()(images)
    return model.eval()


def student_of(name, folder, *, seed=0):
    """A network of five classes for images of SIZE px that was not trained and yet answers every image differently."""
    torch.manual_seed(seed)
    architecture = Architecture(name)
    model = architecture.build(5)
    images = torch.randn(16, 3, SIZE, SIZE)
    settle_batch_norms(model, images * torch.rand(16, 3, 1, 1) + torch.randn(16, 3, 1, 1), seed=seed)
    preprocess = Preprocess(size=SIZE, mean=(0.3, 0.5, 0.6), std=(0.2, 0.25, 0.3))
    card = StudentCard(role="student", architecture=architecture.name, classes=tuple("abcde"), preprocess=preprocess)
    return Student(model.eval(), card, folder)


@pytest.fixture(scope="session")
def lively_student(tiny_student, tiny_data, tmp_path_factory):
    """The folder of the distilled student with other weights, which answer all three classes and are never certain."""
    if "student" not in _made:
        _made["student"] = _make_student(tiny_student, tiny_data, tmp_path_factory.mktemp("lively") / "run")
    return _made["student"]


def _make_student(tiny_student, tiny_data, folder):
    card = load_card(tiny_student)
    folder.mkdir()
    shutil.copy(tiny_student / "split.json", folder)
    torch.manual_seed(3)
    architecture = Architecture(REAL)
    model = architecture.build(len(card.classes))
    table = read_table(tiny_data, classes=card.classes)
    pixels = cached_pixels(table, card.preprocess)
    images = Normalise(card.preprocess)(torch.from_numpy(np.array(pixels)).permute(0, 3, 1, 2).float() / 255)
    settle_batch_norms(model, images)
    with torch.no_grad():
        logits = model(images)
        scale = 1.0 / logits.std(0)
        model.fc.bias -= logits.mean(0)
        model.fc.weight *= scale[:, None]
        model.fc.bias *= scale
        answers = torch.softmax(model(images), 1)
    assert len(answers.argmax(1).unique()) == 3
    assert answers.max() < 0.99
    accuracy = (answers.argmax(1).numpy() == table.labels).mean()
    assert 0.1 < accuracy < 0.9, "an accuracy that nothing else would have by chance"
    save_student(folder, model, card.model_copy(update={"architecture": architecture.name}))
    return folder


@pytest.fixture(scope="session")
def lively_images(lively_student):
    return validation_images(load_student(lively_student), None, Reporter())


def _export(lively_student, tmp_path_factory):
    pytest.importorskip("onnxruntime")
    pytest.importorskip("executorch")
    if "export" not in _made:
        out, stdout = tmp_path_factory.mktemp("lively-artifacts"), io.StringIO()
        arguments = ["dspkd", "export", str(lively_student), "--out", str(out), "--json"]
        with mock.patch.object(sys, "argv", arguments), contextlib.redirect_stdout(stdout):
            try:
                main()
            except SystemExit as end:
                assert not end.code
        _made["export"] = {t: out / f"{t}-fp32" for t in ("onnx", "executorch")}, stdout.getvalue()
    return _made["export"]


@pytest.fixture(scope="session")
def lively_artifacts(lively_student, tmp_path_factory):
    """{target: folder} of `lively_student`. Copy one before you break it."""
    return _export(lively_student, tmp_path_factory)[0]


@pytest.fixture(scope="session")
def lively_export_json(lively_student, tmp_path_factory):
    """What `dspkd export --json` printed on stdout."""
    return _export(lively_student, tmp_path_factory)[1]
