"""One step of every method on two small networks: what learns, what stays, and what is left behind."""

import copy

import pytest
import torch

from dspkd.distill import METHODS
from dspkd.models import Architecture
from dspkd.preprocess import IMAGENET_MEAN, IMAGENET_STD, Preprocess
from dspkd.student import Student, StudentCard
from dspkd.train.task import StageTask, method_context

SIZE, CLASSES = 64, ("A", "B", "C")
WITH_TEACHER = [name for name, method in METHODS.items() if method.needs_teacher]


@pytest.fixture(scope="module")
def networks(tmp_path_factory):
    torch.manual_seed(0)
    preprocess = Preprocess(size=SIZE, mean=IMAGENET_MEAN, std=IMAGENET_STD)
    model = Architecture("timm/resnet10t").build(len(CLASSES))
    card = StudentCard(role="baseline", architecture="timm/resnet10t", classes=CLASSES, preprocess=preprocess)
    return Architecture("shufflenet_v2_x0_5"), Student(model.eval(), card, tmp_path_factory.mktemp("teacher"))


def hooks(model):
    return sum(len(module._forward_hooks) for module in model.modules())


def state(module):
    return {k: v.clone() for k, v in module.state_dict().items()}


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


class Step:
    """One training step, with what was there before it."""

    def __init__(self, networks, name, settings=None):
        architecture, self.teacher = networks
        torch.manual_seed(3)
        self.student = architecture.build(len(CLASSES))
        cls = METHODS[name]
        context = method_context(self.student, architecture, len(CLASSES), SIZE, self.teacher, maps=cls.needs_maps)
        self.method = cls.build(cls.Settings(**(settings or {})), context)
        self.task = StageTask(self.student, self.teacher.card.preprocess, self.method, self.teacher)
        self.task.train()
        self.before = {"student": state(self.student), "teacher": state(self.teacher.model)}
        pixels = torch.randint(0, 256, (4, 3, SIZE, SIZE), dtype=torch.uint8)
        self.losses = self.task(pixels, torch.tensor([0, 1, 2, 0]), 0.5)
        self.losses["loss"].backward()
        parameters = [p for p in self.task.parameters() if p.requires_grad]
        torch.optim.SGD(parameters, lr=0.01, momentum=0.9, weight_decay=0.1).step()
        self.task.close()


@pytest.fixture(scope="module", params=WITH_TEACHER)
def step(request, networks):
    return Step(networks, request.param)


def test_the_loss_and_its_terms_are_finite_scalars(step):
    assert len(step.losses) > 1
    assert all(value.ndim == 0 and torch.isfinite(value) for value in step.losses.values())
    assert [name for name, value in step.losses.items() if value.requires_grad] == ["loss"]


def test_the_student_learns_unless_the_stage_is_not_for_it(step):
    """And then nothing of it changes: no weight decay, no batch statistics."""
    assert same(step.before["student"], state(step.student)) != step.method.trains_student


def test_the_teacher_is_never_changed(step):
    assert same(step.before["teacher"], state(step.teacher.model))
    assert all(p.grad is None for p in step.teacher.model.parameters())
    assert not step.teacher.model.training


def test_no_hook_is_left_behind(step):
    assert hooks(step.student) == 0 and hooks(step.teacher.model) == 0
    assert step.task.peer is None or hooks(step.task.peer) == 0


def test_the_students_state_dict_keeps_its_shape(step):
    fresh = Architecture("shufflenet_v2_x0_5").build(len(CLASSES)).state_dict()
    assert {k: v.shape for k, v in step.student.state_dict().items()} == {k: v.shape for k, v in fresh.items()}


def test_every_trainable_layer_of_the_method_learns(step):
    assert all(p.grad is not None for p in step.method.parameters() if p.requires_grad)


def test_the_auxiliary_state_restores_what_the_student_does_not_have(step):
    saved = copy.deepcopy(step.task.auxiliary_state())
    assert not any(key.startswith("student.") for key in saved)
    student = state(step.student)
    for p in (*step.method.parameters(), *(step.task.peer.parameters() if step.task.peer else ())):
        p.data.add_(1.0)
    step.task.load_auxiliary_state(saved)
    assert same(saved, step.task.auxiliary_state())
    assert same(student, state(step.student))


def test_mutual_learning_trains_a_copy_of_the_teacher(networks):
    step = Step(networks, "eml")
    assert step.task.peer is not None and step.task.peer is not step.teacher.model
    assert step.task.peer.training
    changed = state(step.task.peer)
    assert changed.keys() == step.before["teacher"].keys()
    assert not any(torch.equal(changed[k], v) for k, v in step.before["teacher"].items() if k.endswith("fc.weight"))
    assert any(key.startswith("peer.") for key in step.task.auxiliary_state())


def test_the_peer_begins_as_the_teacher(networks):
    architecture, teacher = networks
    student = architecture.build(len(CLASSES))
    context = method_context(student, architecture, len(CLASSES), SIZE, teacher, maps=True)
    task = StageTask(
        student, teacher.card.preprocess, METHODS["eml"].build(METHODS["eml"].Settings(), context), teacher
    )
    assert same(state(task.peer), state(teacher.model))
    task.close()


def test_the_hint_stage_of_fitnets_leaves_the_upper_layers_alone(networks):
    step = Step(networks, "fitnets", {"cross_entropy_weight": 0.0})
    after = dict(step.student.named_parameters())
    for name, before in step.before["student"].items():
        if name.startswith(("stage4.", "conv5.", "fc.")) and name in after:
            assert torch.equal(before, after[name]), name
    assert not torch.equal(step.before["student"]["conv1.0.weight"], after["conv1.0.weight"])
