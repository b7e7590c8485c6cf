"""Folded batch norms: the same answers to rounding, at the same layers, from a copy."""

import copy

import pytest
import torch
from torch import nn

from dspkd.models import Architecture, FeatureTaps
from dspkd.models.folding import with_folded_norms


def stirred(model):
    """With norms that do something, as after training."""
    generator = torch.Generator().manual_seed(0)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            for values in (module.weight, module.running_var):
                values.data.uniform_(0.5, 1.5, generator=generator)
            for values in (module.bias, module.running_mean):
                values.data.uniform_(-0.2, 0.2, generator=generator)
    return model.eval()


def norms(model):
    return sum(isinstance(module, nn.BatchNorm2d) for module in model.modules())


@torch.no_grad()
def answers(model, layers, images):
    with FeatureTaps(model, layers) as taps:
        logits = model(images.clone())
        return {"logits": logits, **taps.take()}


def apart(a, b):
    assert a.keys() == b.keys()
    return max(float((a[key] - b[key]).abs().max() / a[key].abs().max()) for key in a)


@pytest.mark.parametrize(
    "name",
    ["timm/resnet18", "timm/res2net50_26w_4s", "efficientnet_b0", "tf_efficientnet_lite0", "shufflenet_v2_x0_5",
     "torchvision/mobilenet_v2"],
)  # fmt: skip
def test_answers_and_maps_agree(name):
    torch.manual_seed(0)
    architecture = Architecture(name)
    model = stirred(architecture.build(5))
    before = copy.deepcopy(model.state_dict())
    layers = architecture.layers(model)
    folded = with_folded_norms(model)
    assert norms(folded) == 0
    images = torch.randn(2, 3, 64, 64)
    tapped = (*layers.levels, layers.final)
    assert apart(answers(model, tapped, images), answers(folded, tapped, images)) < 1e-4
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert norms(model) > 0
    assert not any(p.requires_grad for p in folded.parameters())


def test_every_layer_but_the_convolutions_gives_what_it_gave():
    torch.manual_seed(0)
    model = stirred(Architecture("timm/resnet10t").build(3))
    layers = [name for name, module in model.named_modules() if name and not isinstance(module, nn.Conv2d)]
    layers.remove("conv1")  # ends with a convolution
    images = torch.randn(2, 3, 64, 64)
    assert apart(answers(model, layers, images), answers(with_folded_norms(model), layers, images)) < 1e-4


@pytest.mark.parametrize("layer", ["layer1.0.conv2", "conv1"])
def test_a_layer_that_is_tapped_before_its_norm_keeps_the_norm(layer):
    torch.manual_seed(0)
    model = stirred(Architecture("timm/resnet10t").build(3))
    images = torch.randn(1, 3, 64, 64)
    folded = with_folded_norms(model, tapped=(layer,))
    assert apart(answers(model, [layer], images), answers(folded, [layer], images)) < 1e-4
    assert norms(folded) == 1
    assert apart(answers(model, [layer], images), answers(with_folded_norms(model), [layer], images)) > 1e-2


class Unfoldable(nn.Module):
    """A convolution that two norms read, a norm that is called twice, one after a sum, one of batch statistics."""

    def __init__(self):
        super().__init__()
        self.shared, self.twice, self.last = (nn.Conv2d(3, 3, 1) for _ in range(3))
        self.one, self.two, self.again, self.summed = (nn.BatchNorm2d(3) for _ in range(4))
        self.batch = nn.BatchNorm2d(3, track_running_stats=False)
        self.activated = nn.ReLU()

    def forward(self, images):
        shared = self.shared(images)
        both = self.one(shared) + self.two(shared)
        twice = self.again(self.twice(images)) + self.again(images)
        return self.batch(self.last(self.summed(both + twice))).mean((2, 3))


def test_what_is_no_pair_is_left():
    torch.manual_seed(0)
    model = stirred_all_but_untracked(Unfoldable())
    folded = with_folded_norms(model)
    assert norms(folded) == 5
    images = torch.randn(2, 3, 8, 8)
    with torch.no_grad():
        assert torch.equal(model(images), folded(images))


def stirred_all_but_untracked(model):
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d) and module.running_mean is not None:
            module.running_mean.uniform_(-0.2, 0.2)
    return model.eval()


class Untraceable(nn.Module):
    def __init__(self):
        super().__init__()
        self.convolution, self.norm = nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)

    def forward(self, images):
        return self.norm(self.convolution(images)) if float(images.sum()) > 0 else images


def test_what_cannot_be_traced_is_copied_as_it_is():
    model = Untraceable().eval()
    folded = with_folded_norms(model)
    assert folded is not model
    assert norms(folded) == 1
    assert torch.equal(folded(torch.ones(1, 3, 2, 2)), model(torch.ones(1, 3, 2, 2)))
