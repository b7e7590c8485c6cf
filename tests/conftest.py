"""Small real things that many tests share: a data set, a fitted teacher, a distilled student, its artifacts."""

import csv
import os
import signal
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tiny_runs import REAL, TEACHER, tiny_config

from dspkd.presets import preset_stages
from dspkd.train.run import run

# A shell starts what it runs in the background with interrupts ignored, and that is inherited by whatever a test starts
# in order to interrupt it.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

SHARED = Path(os.environ.get("DSPKD_SHARED", Path(__file__).resolve().parents[2] / "shared"))


@pytest.fixture(scope="session")
def shared_data():
    """The folder of real images beside the checkout; the test is skipped where it is missing."""
    if not (SHARED / "data" / "derm" / "GroundTruth.csv").is_file():
        pytest.skip(f"no real images at {SHARED} (set DSPKD_SHARED)")
    return SHARED / "data"


@pytest.fixture(scope="session")
def tiny_data(tmp_path_factory):
    """60 pictures of three classes that differ in colour, two pictures a lesion, in the ISIC2019 layout."""
    root = tmp_path_factory.mktemp("tiny")
    (root / "images").mkdir()
    rng = np.random.default_rng(0)
    colours = {"RED": (200, 60, 60), "GREEN": (60, 200, 60), "BLUE": (60, 60, 200)}
    truth, metadata = [], []
    for k, (name, colour) in enumerate(colours.items()):
        for i in range(20):
            image = f"{name}_{i:02d}"
            noise = rng.integers(-40, 40, (48, 56, 3))
            pixels = np.clip(np.array(colour) + noise, 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(root / "images" / f"{image}.png")
            truth.append([image, *(1.0 if j == k else 0.0 for j in range(3)), 0.0])
            metadata.append([image, f"{name}-lesion-{i // 2}"])
    for file, header, rows in (
        ("GroundTruth.csv", ["image", *colours, "UNK"], truth),
        ("metadata.csv", ["image", "lesion_id"], metadata),
    ):
        with (root / file).open("w", newline="") as f:
            csv.writer(f).writerows([header, *rows])
    return root


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory):
    """Decoded pixels of tests never lie in the user's cache."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DSPKD_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))
        yield


@pytest.fixture(scope="session")
def tiny_teacher(tiny_data, tmp_path_factory):
    out = tmp_path_factory.mktemp("teacher") / "run"
    run(tiny_config(tiny_data, out, model=TEACHER))
    return out


def distilled(data, teacher, out, **more):
    """An uninterrupted distillation of 3 + 3 epochs."""
    run(tiny_config(data, out, teacher=teacher, stages=preset_stages(epochs=6), **more))
    return out


@pytest.fixture(scope="session")
def tiny_student(tiny_data, tiny_teacher, tmp_path_factory):
    return distilled(tiny_data, tiny_teacher, tmp_path_factory.mktemp("student") / "run")


@pytest.fixture(scope="session")
def real_student(tiny_data, tiny_teacher, tmp_path_factory):
    """A ShuffleNetV2, for what depends on the paper's student or on the time that it takes."""
    return distilled(tiny_data, tiny_teacher, tmp_path_factory.mktemp("real-student") / "run", model=REAL)


@pytest.fixture(scope="session")
def tiny_artifacts(tiny_data, tiny_student, tmp_path_factory):
    """{target: folder} of the distilled student, certified on its validation part. Copy one before you break it."""
    pytest.importorskip("onnxruntime")
    pytest.importorskip("executorch")
    from dspkd.cli.sharing import validation_images
    from dspkd.student import load_student
    from dspkd.train.reporter import Reporter
    from dspkd_export import export_student

    out = tmp_path_factory.mktemp("artifacts")
    images = validation_images(load_student(tiny_student), None, Reporter())
    made = export_student(tiny_student, targets=["onnx", "executorch"], precisions=["fp32"], out=out, images=images)
    return {artifact.card.target: artifact.path for artifact in made}


# They take long. Two processes share the files, and one that is begun last would keep one of them waiting.
LONG = (
    "test_precisions", "test_qat", "test_readme", "test_demo", "test_run", "test_processes", "test_remote",
    "test_several_processes",
)  # fmt: skip


def pytest_collection_modifyitems(items):
    items.sort(key=lambda item: item.path.stem not in LONG)
