"""The teacher cache: equal to asking the teacher at every step, refused for anything else, repaired when damaged."""

import errno
import json
import os
import shutil
import signal
import subprocess
import sys

import numpy as np
import pytest
import torch
from tiny_runs import REAL, tiny_config
from watching import wait_until

from dspkd.config import to_toml
from dspkd.distill import METHODS, Method
from dspkd.distill.base import HF_ATTENTION, LOGITS
from dspkd.errors import DataError, VerificationError
from dspkd.student import load_student
from dspkd.train.reporter import Reporter
from dspkd.train.run import run
from dspkd.train.teacher_cache import Slots, TeacherCache

STAGES = [
    {"method": "hf_masked_generation", "epochs": 1, "settings": {"generator_width": 8}},
    {"method": "norm_kd", "epochs": 2},
]


class Listening(Reporter):
    def __init__(self):
        self.messages = []

    def message(self, text):
        self.messages.append(text)

    def asked(self):
        """Of how many images the teacher was asked in each cached stage."""
        return [int(text.split()[2]) for text in self.messages if text.startswith("teacher: asked")]


class Distiller:
    """Runs with one teacher and one folder for its answers."""

    def __init__(self, data, teacher, folder):
        self.data, self.teacher, self.folder, self.cache = data, teacher, folder, folder / "cache"

    def config(self, name, *, where=None, cache=None, **more):
        settings = {"where": str(where or self.cache), **(cache or {})}
        values = {
            "teacher": self.teacher,
            "stages": STAGES,
            "teacher_cache": settings,
            "select": "last",
            "model": REAL,
            **more,
        }
        return tiny_config(self.data, self.folder / name, **values)

    def __call__(self, name, **more):
        self.heard = Listening()
        result = run(self.config(name, **more), reporter=self.heard)
        return {key: value.clone() for key, value in result.model.state_dict().items()}


def same(a, b):
    return all(torch.equal(a[key], b[key]) for key in a)


def near(a, b):
    return max(float((a[key].double() - b[key].double()).abs().max()) for key in a)


@pytest.fixture
def distil(tiny_data, tiny_teacher, tmp_path):
    return Distiller(tiny_data, tiny_teacher, tmp_path)


@pytest.fixture(scope="module")
def filled(tiny_data, tiny_teacher, tmp_path_factory):
    """A cache filled by one run, whose weights come with it. Copy it before you break it."""
    maker = Distiller(tiny_data, tiny_teacher, tmp_path_factory.mktemp("filled"))
    return maker.cache, maker("first")


@pytest.fixture
def own(filled, distil):
    shutil.copytree(filled[0], distil.cache)
    return distil


def test_online_filling_and_reading_give_the_same_student(filled, own):
    """`views` = epochs: bit for bit, in both stages."""
    online = own("online", where="off")
    assert own.heard.asked() == []
    read = own("read")
    assert own.heard.asked() == [0, 0]
    assert same(online, filled[1])
    assert same(online, read)


def test_the_teacher_is_asked_once_for_every_view(distil):
    distil("first", augment={"views": 2}, stages=[{"method": "norm_kd", "epochs": 4}], data=natural(distil))
    draws = 42 // 8 * 8
    # An image of the last, incomplete batch of an epoch may be needed in another one.
    assert 2 * draws <= sum(distil.heard.asked()) <= 2 * 42
    assert {path.name for path in distil.cache.glob("*.rows")} == {"logits-00000.rows", "logits-00001.rows"}


def natural(distil):
    return {"root": str(distil.data), "balance": 0.0}


def test_fewer_views_are_the_same_views_whether_or_not_they_are_stored(distil):
    # So slow that rounding, which depends on how many images are asked for at once, does not grow.
    stages = [{"method": "norm_kd", "epochs": 3, "optimizer": {"lr": 1e-4}}]
    online = distil("online", where="off", augment={"views": 1}, stages=stages)
    cached = distil("cached", augment={"views": 1}, stages=stages)
    other = distil("other", where="off", stages=stages)
    assert near(online, cached) < 1e-4
    assert near(online, other) > 1e-2


def test_half_precision_stays_near(filled, distil):
    halved = distil("half", cache={"dtype": "float16"})
    assert not same(halved, filled[1])
    exact, rounded = (first_losses(folder) for folder in (filled[0].parent / "first", distil.folder / "half"))
    assert exact != rounded
    assert exact == pytest.approx(rounded, rel=1e-3)
    assert same(halved, distil("again", cache={"dtype": "float16"})), "filled and read are rounded alike"
    assert distil.heard.asked() == [0, 0]


def first_losses(folder):
    return json.loads((folder / "metrics.jsonl").read_text().splitlines()[0])["terms"]


def test_seeds_share_a_cache_if_their_views_have_one_seed(distil):
    """What one draws, the other mostly has drawn."""
    stages = [{"method": "norm_kd", "epochs": 2}]
    distil("one", augment={"seed": 7}, seed=0, stages=stages, data=natural(distil))
    first = sum(distil.heard.asked())
    distil("two", augment={"seed": 7}, seed=1, stages=stages, data=natural(distil))
    assert sum(distil.heard.asked()) < first / 2


def test_methods_share_the_logits(filled, own):
    own("wsld", stages=[{"method": "wsld", "epochs": 3}])
    # Epoch 0 was a stage on maps.
    assert own.heard.asked() == [40]


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"seed": 1}, "seed of the views"),
        ({"augment": {"color_jitter": 0.2}}, "augmentation"),
        ({"augment": {"rand_augment": "all"}}, "augmentation"),
        ({"cache": {"dtype": "float16"}}, "number format"),
        ({"size": 48}, "input size"),
        ({"precision": "bf16-mixed"}, "precision"),
    ],
)
def test_a_cache_of_something_else_is_refused_by_name(own, change, named):
    before = {path: path.stat().st_mtime_ns for path in own.cache.glob("*.rows")}
    with pytest.raises(DataError, match=f"was made with another.* {named}"):
        own("run", **change)
    assert {path: path.stat().st_mtime_ns for path in own.cache.glob("*.rows")} == before


def test_another_teacher_is_refused(own, tmp_path):
    other = tmp_path / "teacher"
    run(tiny_config(own.data, other, model="timm/resnet10t"))
    own.teacher = other
    with pytest.raises(DataError, match="teacher's weights"):
        own("run")


def test_other_pixels_of_the_same_images_are_refused(own, tmp_path):
    own.data = shutil.copytree(own.data, tmp_path / "data")
    with pytest.raises(DataError, match="another decoded pixels"):
        own("run")


def test_another_transform_of_the_same_settings_is_refused(own, monkeypatch):
    """A newer dspkd or torch that makes other pixels of a view."""
    from dspkd.data import views

    real = views.augment
    monkeypatch.setattr(views, "augment", lambda pixels, drawn, size: real(pixels, drawn, size) ^ 1)
    with pytest.raises(DataError, match="view transform"):
        own("run")


def test_an_edited_manifest_is_refused(own):
    manifest = own.cache / "teacher-cache.json"
    manifest.write_text(manifest.read_text().replace("float32", "float16"))
    with pytest.raises(VerificationError, match="edited"):
        own("run")


def test_auto_finds_the_right_cache_and_never_another(distil):
    stages = [{"method": "norm_kd", "epochs": 1}]
    data = {"root": str(distil.data), "cache_dir": str(distil.folder / "pixels")}
    for name, seed, asked in (("one", 0, 40), ("two", 0, 0), ("three", 1, 40), ("four", 1, 0)):
        distil(name, where="auto", seed=seed, stages=stages, data=data)
        assert distil.heard.asked() == [asked], name


@pytest.mark.parametrize("name", ["logits-00001.rows", "final_conv-00000.rows"])
def test_a_changed_byte_is_noticed_and_mended(filled, own, name):
    path = own.cache / name
    whole = path.read_bytes()
    data = bytearray(whole)
    used = np.flatnonzero(np.frombuffer(whole, np.uint8))
    data[used[len(used) * 2 // 3]] ^= 0x40
    path.write_bytes(data)
    assert near(own("run"), filled[1]) < 1e-5
    assert sum(own.heard.asked()) > 0
    assert any("damaged" in text for text in own.heard.messages)
    assert path.read_bytes() == whole


def test_answers_stored_under_another_epoch_are_not_taken(filled, own):
    shutil.copy(own.cache / "logits-00001.rows", own.cache / "logits-00002.rows")
    assert near(own("run"), filled[1]) < 1e-5
    assert sum(own.heard.asked()) > 0


def test_a_full_disk_does_not_end_the_run(filled, distil, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "pwrite", full)
    assert same(distil("run"), filled[1])
    warnings = [text for text in distil.heard.messages if "No space left" in text]
    assert len(warnings) == 2, "one for each stage"
    monkeypatch.undo()
    assert same(distil("again"), filled[1])
    assert sum(distil.heard.asked()) > 0


def test_what_would_take_too_much_is_not_cached(distil):
    distil("run", cache={"max_gib": 1e-7})
    assert distil.heard.asked() == []
    assert any("would take" in text and "--views" in text for text in distil.heard.messages)
    assert not list(distil.cache.glob("*.rows"))


def test_two_runs_fill_one_cache_and_one_of_them_is_killed(filled, distil):
    """The other ends, the killed one goes on, and all of them reach the student that a single one reaches."""
    running = []
    for name in ("killed", "whole"):
        recipe = distil.folder / f"{name}.toml"
        recipe.write_text(to_toml(distil.config(name)))
        command = [sys.executable, "-m", "dspkd", "distill", "--config", str(recipe)]
        running.append(subprocess.Popen(command, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL))
    wait_until(lambda: (distil.cache / "final_conv-00000.rows").exists(), 120)
    running[0].send_signal(signal.SIGKILL)
    assert [process.wait(300) for process in running] == [-signal.SIGKILL, 0]
    heard = Listening()
    run(distil.config("killed"), resume=True, reporter=heard)
    assert heard.asked(), "it was killed after it had ended"
    for name in ("killed", "whole"):
        assert near(load_student(distil.folder / name).model.state_dict(), filled[1]) < 1e-5
    assert not list(distil.cache.glob("*.part*"))
    distil("third")
    assert distil.heard.asked() == [0, 0]


def test_what_may_be_stored_is_declared():
    """Never the answers of a teacher that learns, nor those for pictures that the method makes itself."""
    for name, method in METHODS.items():
        if method.teacher_learns or method.views is not Method.views or not method.trains_student:
            assert method.teacher_reads is None, name
    assert {name for name, method in METHODS.items() if method.teacher_reads == (LOGITS,)} == {
        "vanilla_kd",
        "wsld",
        "norm_kd",
    }


def test_mutual_learning_asks_its_teacher(distil):
    distil("run", stages=[{"method": "eml", "epochs": 1}])
    assert distil.heard.asked() == []
    assert any("eml: the teacher's answers cannot be stored" in text for text in distil.heard.messages)


def test_fitted_hf_is_never_stored():
    from dspkd.distill.base import MethodContext
    from dspkd.distill.hf_masked_generation import HFMaskedGeneration, HFMaskedGenerationSettings

    layers = {f"layer{i}": (4, 2, 2) for i in range(1, 5)}
    context = MethodContext(
        num_classes=3,
        student_final="conv5",
        student_shapes={"conv5": (4, 2, 2)},
        teacher_levels=tuple(layers),
        teacher_final="layer4",
        teacher_shapes=layers,
    )
    reads = {
        hf: HFMaskedGeneration.build(HFMaskedGenerationSettings(hf=hf), context).teacher_reads
        for hf in ("parameter_free", "fitted", "random_frozen")
    }
    assert reads == {"parameter_free": ("layer4", HF_ATTENTION), "fitted": None, "random_frozen": None}


def test_the_whole_of_isic_2019_takes_less_than_50_mb(tmp_path):
    """25,331 images, 120 views, eight classes, as numbers of 16 bits; the files have their full size from the start."""
    images, views = 25_331, 120
    cache = TeacherCache(tmp_path, {"number format": "float16"}, Slots.of(np.ones(images, int)), dtype="float16")
    logits = np.ones((1, 8), np.float16)
    for epoch in range(views):
        cache.write(LOGITS, np.array([epoch]), np.array([epoch << 20]), logits)
    total = sum(path.stat().st_size for path in tmp_path.iterdir())
    assert total < 50e6
    assert total > images * views * 16
    assert cache.stored_bytes() < total / 10
    assert json.loads((tmp_path / "teacher-cache.json").read_text())["identity"] == {"number format": "float16"}
