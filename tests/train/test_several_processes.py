"""Several processes under torchrun (gloo, on the CPU) against one: losses, weights, files, the cache, and a killed one.

The student is small and shallow. A deep one with random weights is so sensitive that rounding alone would decide.
"""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from timm.layers import BatchNormAct2d
from tiny_runs import tiny_config
from torch import nn
from watching import processes, wait_until

from dspkd.config import to_toml
from dspkd.data.synthetic import make_synthetic_set
from dspkd.distill import METHODS, generation
from dspkd.errors import ConfigError
from dspkd.models import Architecture
from dspkd.models.shared_norms import share_batch_statistics
from dspkd.preprocess import IMAGENET_MEAN, IMAGENET_STD, Preprocess
from dspkd.student import Student, StudentCard, load_student
from dspkd.train.processes import check_divisible
from dspkd.train.reporter import Reporter
from dspkd.train.run import run
from dspkd.train.task import StageTask, method_context

# Small steps: large ones make a difference in the last place of a gradient, which the order of a sum decides, a
# hundred times as large within an epoch.
LR = 1e-3
STAGES = [
    {
        "method": "hf_masked_generation",
        "epochs": 2,
        "settings": {"generator_width": 8, "mask": "random"},
        "optimizer": {"gradient_clip": 1.0, "lr": LR},
    },
    {"method": "norm_kd", "epochs": 2, "optimizer": {"lr": LR}},
]
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "-m", "dspkd", "distill"]


class Place:
    def __init__(self, folder):
        self.folder = folder
        make_synthetic_set(folder / "data", lesions=60, size=64)
        self.cache = folder / "cache"
        run(self.config("teacher", stages=None, teacher=None, cache="off"))

    def config(self, name, *, teacher="teacher", stages=STAGES, cache="off"):
        return tiny_config(
            self.folder / "data",
            self.folder / name,
            teacher=teacher and self.folder / teacher,
            stages=stages,
            model="timm/test_resnet",
            size=64,
            batch_size=16,
            select="last",
            teacher_cache={"where": str(cache)},
        )

    def command(self, name, **more):
        recipe = self.folder / f"{name}.toml"
        recipe.write_text(to_toml(self.config(name, **more)))
        return [*TORCHRUN, "--config", str(recipe), "--json"]

    def history(self, name):
        return [json.loads(line) for line in (self.folder / name / "metrics.jsonl").read_text().splitlines()]

    def weights(self, name):
        return load_student(self.folder / name).model.state_dict()


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    made = Place(tmp_path_factory.mktemp("several"))
    run(made.config("one"))
    return made


@pytest.fixture(scope="module")
def two(place):
    """What two processes printed on stdout."""
    return subprocess.run(
        place.command("two", cache=place.cache), stdout=subprocess.PIPE, text=True, check=True, timeout=200
    ).stdout


def check_same_result(place, name):
    for own, other in zip(place.history("one"), place.history(name), strict=True):
        # For the log alone, and no mean over images.
        for record in (own, other):
            record["terms"].pop("teacher_temperature_spread", None)
        assert own["terms"] == pytest.approx(other["terms"], rel=1e-4)
        assert own["train_loss"] == pytest.approx(other["train_loss"], rel=1e-5)
        assert own["val"] == pytest.approx(other["val"], rel=1e-3)
    one, several = place.weights("one"), place.weights(name)
    assert max(float((one[key].double() - several[key].double()).abs().max()) for key in one) < 2e-4


def test_two_processes_give_what_one_gives(place, two):
    check_same_result(place, "two")


def test_only_the_first_process_reports(place, two):
    assert json.loads(two)["run"] == str(place.folder / "two")
    assert not list((place.folder / "two").rglob("*.part*"))


def test_both_fill_one_cache(place, two):
    class Listening(Reporter):
        asked = ()

        def message(self, text):
            if text.startswith("teacher: asked"):
                self.asked += (text.split()[2],)

    heard = Listening()
    run(place.config("reads", cache=place.cache), reporter=heard)
    assert heard.asked == ("0", "0")


def member(launcher, rank):
    """The process of that rank under a torchrun, or None."""
    for pid, parent, _, _ in processes():
        if parent == launcher.pid:
            try:
                environment = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
            except OSError:
                continue
            if f"RANK={rank}".encode() in environment:
                return pid
    return None


def test_a_killed_process_ends_the_other_by_name_and_one_process_goes_on(place):
    launcher = subprocess.Popen(place.command("killed"), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    wait_until(lambda: (place.folder / "killed" / "metrics.jsonl").exists(), 120)
    first, second = member(launcher, 0), member(launcher, 1)
    os.kill(second, signal.SIGKILL)
    _, errors = launcher.communicate(timeout=60)
    assert launcher.returncode != 0
    assert "rank      : 1" in errors
    assert f"pid: {second}" in errors
    assert "SIGKILL" in errors
    assert not any(pid in (first, second) for pid, _, _, _ in processes())
    assert not (place.folder / "killed" / "student.json").exists()
    run(place.config("killed"), resume=True)
    check_same_result(place, "killed")


def test_torchrun_names_the_error_that_ended_the_run(place):
    command = [*place.command("uneven"), "--batch-size", "9"]
    ended = subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, timeout=200)
    _, _, cause = ended.stderr.partition("Root Cause")
    assert "batch_size 9 cannot be divided among 2 processes" in cause


@pytest.fixture
def two_of_them(monkeypatch):
    for name, value in (("TORCHELASTIC_RUN_ID", "test"), ("WORLD_SIZE", "2"), ("RANK", "1")):
        monkeypatch.setenv(name, value)


def test_a_batch_that_cannot_be_divided_is_refused(two_of_them):
    check_divisible(16, 100)
    with pytest.raises(ConfigError, match="batch_size 15 cannot be divided among 2 processes"):
        check_divisible(15, 100)
    with pytest.raises(ConfigError, match="fewer than one batch of 16"):
        check_divisible(16, 10)


@pytest.fixture
def group_of_one():
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.parametrize("kind", [nn.BatchNorm2d, BatchNormAct2d])
@pytest.mark.parametrize("momentum", [0.1, None])
def test_shared_norms_are_torchs_where_there_is_one_process(group_of_one, kind, momentum):
    torch.manual_seed(0)
    plain, shared = kind(5, momentum=momentum), kind(5, momentum=momentum)
    share_batch_statistics(shared, torch.device("cpu"))
    images, weights = torch.randn(6, 5, 4, 4), torch.randn(6, 5, 4, 4)
    made = []
    for norm in (plain, shared):
        own = images.clone().requires_grad_()
        for _ in range(2):
            answer = norm(own)
        (answer * weights).sum().backward()
        made.append((answer, own.grad, *(p.grad for p in norm.parameters()), *norm.buffers(), norm.eval()(images)))
    for one, other in zip(*made, strict=True):
        assert torch.allclose(one, other, rtol=1e-5, atol=1e-6)


def small_task(name, folder, **settings):
    torch.manual_seed(0)
    classes, preprocess = ("A", "B", "C"), Preprocess(size=64, mean=IMAGENET_MEAN, std=IMAGENET_STD)
    architecture = Architecture("timm/test_resnet")
    card = StudentCard(role="baseline", architecture=architecture.name, classes=classes, preprocess=preprocess)
    teacher, student = Student(architecture.build(3).eval(), card, folder), architecture.build(3)
    context = method_context(student, architecture, 3, 64, teacher, maps=True)
    return StageTask(student, preprocess, METHODS[name].build(METHODS[name].Settings(**settings), context), teacher)


PIXELS = torch.randint(0, 256, (8, 3, 64, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
LABELS = torch.arange(8) % 3


@pytest.mark.parametrize("name", [name for name, method in METHODS.items() if method.trains_student])
def test_methods_say_whether_they_couple_the_images_of_a_batch(name, tmp_path, monkeypatch):
    monkeypatch.setattr(generation, "uniform_numbers", torch.ones)
    task = small_task(name, tmp_path).eval()

    def loss(part):
        return float(task(PIXELS[part], LABELS[part], 0.5)["loss"].detach())

    whole, halves = loss(slice(0, 8)), (loss(slice(0, 4)) + loss(slice(4, 8))) / 2
    assert (abs(whole - halves) > 1e-4 * abs(whole)) == METHODS[name].couples_images


@pytest.mark.parametrize(
    ("name", "settings"), [*((name, {}) for name in METHODS), ("ssd_kd", {"similarity_weight": 0})]
)
def test_all_that_asks_for_a_gradient_gets_one(name, settings, tmp_path):
    """Else several processes would wait for it."""
    task = small_task(name, tmp_path, **settings).train()
    task(PIXELS, LABELS, 0.5)["loss"].backward()
    assert [key for key, p in task.named_parameters() if p.requires_grad and p.grad is None] == []
