"""The quick ways of a step against the plain ones: the same losses over many steps."""

import pytest
import torch
from torch.nn import functional

from dspkd.distill import METHODS
from dspkd.models import Architecture
from dspkd.preprocess import IMAGENET_MEAN, IMAGENET_STD, Preprocess
from dspkd.student import Student, StudentCard
from dspkd.train.task import Normalise, StageTask, method_context

SIZE, CLASSES, STEPS, BATCH = 64, ("A", "B", "C"), 50, 8
PREPROCESS = Preprocess(size=SIZE, mean=IMAGENET_MEAN, std=IMAGENET_STD)


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    torch.manual_seed(0)
    model = with_running_statistics(Architecture("timm/resnet10t").build(len(CLASSES)))
    card = StudentCard(role="baseline", architecture="timm/resnet10t", classes=CLASSES, preprocess=PREPROCESS)
    return Student(model.eval(), card, tmp_path_factory.mktemp("teacher"))


def pictures(labels, generator):
    """uint8 (B, 3, SIZE, SIZE) with structure at a coarse scale, and a class that is seen in the colour."""
    coarse = torch.randint(0, 156, (len(labels), 3, 4, 4), generator=generator).float()
    coarse[torch.arange(len(labels)), labels] += 100
    return functional.interpolate(coarse, SIZE, mode="bicubic").clamp(0, 255).to(torch.uint8)


@torch.no_grad()
def with_running_statistics(model):
    generator = torch.Generator().manual_seed(3)
    normalise = Normalise(PREPROCESS)
    for _ in range(20):
        labels = torch.randint(0, len(CLASSES), (32,), generator=generator)
        model(normalise(pictures(labels, generator) / 255.0))
    return model


def losses(name, settings, teacher, *, channels_last=False, fold_norms=False, fused=False):
    """float64 (STEPS,) of one stage. All three are what `dspkd.train.run` does."""
    torch.manual_seed(1)
    architecture = Architecture("shufflenet_v2_x0_5")
    memory_format = torch.channels_last if channels_last else torch.contiguous_format
    student = with_running_statistics(architecture.build(len(CLASSES))).to(memory_format=memory_format)
    method_class = METHODS[name]
    context = method_context(student, architecture, len(CLASSES), SIZE, teacher, maps=method_class.needs_maps)
    method = method_class.build(method_class.Settings(**settings), context)
    task = StageTask(student, PREPROCESS, method, teacher, memory_format=memory_format, fold_norms=fold_norms)
    task.place_teacher(torch.device("cpu"))
    task.train()
    # A batch's statistics make a network that has just begun so sensitive that any rounding decides in a few steps.
    student.eval()
    trained = [p for p in task.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(trained, lr=5e-3, momentum=0.9, weight_decay=5e-4, fused=fused)
    generator = torch.Generator().manual_seed(2)
    curve = []
    for step in range(STEPS):
        labels = torch.randint(0, len(CLASSES), (BATCH,), generator=generator)
        optimizer.zero_grad(set_to_none=True)
        loss = task(pictures(labels, generator), labels, step / STEPS)["loss"]
        loss.backward()
        optimizer.step()
        curve.append(loss.item())
    task.close()
    return torch.tensor(curve, dtype=torch.float64)


STAGES = [("hf_masked_generation", {"generator_width": 16}), ("norm_kd", {})]
WAYS = [
    {"fold_norms": True},
    {"fused": True},
    {"fold_norms": True, "fused": True, "channels_last": True},
]


@pytest.fixture(scope="module", params=STAGES, ids=[name for name, _ in STAGES])
def stage(request, teacher):
    return request.param, losses(*request.param, teacher)


@pytest.mark.parametrize("ways", WAYS, ids=["folded norms", "fused optimiser", "with channels last"])
def test_the_losses_are_those_of_the_plain_steps(stage, teacher, ways):
    (name, settings), plain = stage
    assert torch.allclose(losses(name, settings, teacher, **ways), plain, rtol=1e-5, atol=0.0)
