"""Rewriting for compilers changes the shape of the network, never its answers."""

import pytest
import torch
from lively import SIZE, student_of
from torch import nn

from dspkd_export.deploy_module import deploy_module, fold_batch_norms
from dspkd_export.live_channels import Widths


@pytest.mark.parametrize(
    "name", ["shufflenet_v2_x0_5", "shufflenet_v2_x1_0", "shufflenet_v2_x1_5", "shufflenet_v2_x2_0", "timm/resnet18"]
)
@torch.no_grad()
def test_deployed_equals_original_in_float64(name, tmp_path):
    student = student_of(name, tmp_path)
    student.model.double()
    generator = torch.Generator().manual_seed(1)
    images = torch.rand(4, 3, SIZE, SIZE, dtype=torch.float64, generator=generator)
    images *= torch.rand(4, 3, 1, 1, dtype=torch.float64, generator=generator)
    # The constants as float32 holds them, which is how they are deployed: the rest has to agree to float64. Before
    # anything is folded, so that a folding in place could not change both sides.
    mean, std = (torch.tensor(v).double().view(1, 3, 1, 1) for v in ((0.3, 0.5, 0.6), (0.2, 0.25, 0.3)))
    logits = student.model((images - mean) / std)
    assert logits.std(0).min() > 1e-2, "every image would be answered alike"
    deployed = deploy_module(student).double()
    torch.testing.assert_close(deployed(images), torch.softmax(logits, 1), atol=1e-10, rtol=0.0)


@torch.no_grad()
def test_channels_are_rounded_up_exactly(tmp_path):
    student = student_of("shufflenet_v2_x1_0", tmp_path)
    student.model.double()
    images = torch.rand(4, 3, SIZE, SIZE, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    plain, wide = (deploy_module(student, widths=widths).double() for widths in (None, Widths(inner=16, outputs=8)))
    torch.testing.assert_close(wide(images), plain(images), atol=1e-14, rtol=0.0)
    branches = [
        [layer.out_channels for layer in branch if isinstance(layer, nn.Conv2d)] for branch in wide.network.branches
    ]
    # Units of 58, 116 and 232 channels. Where a branch begins with a depthwise convolution its reader's width stays.
    assert branches[1] == [64, 64, 64]
    assert branches[6] == [128, 128, 120]
    assert branches[-1] == [240, 240, 232]
    assert branches[0] == [24, 64]
    assert all(layer.groups in (1, layer.out_channels) for layer in wide.modules() if isinstance(layer, nn.Conv2d))


@pytest.mark.parametrize("name", ["shufflenet_v2_x0_5", "timm/resnet18"])
def test_the_student_is_left_as_it_was(name, tmp_path):
    student = student_of(name, tmp_path)
    before = {key: value.clone() for key, value in student.model.state_dict().items()}
    modules = [(key, type(module)) for key, module in student.model.named_modules()]
    deployed = deploy_module(student)
    with torch.no_grad():
        for parameter in deployed.parameters():
            parameter.zero_()
    after = student.model.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[key], after[key]) for key in before)
    assert [(key, type(module)) for key, module in student.model.named_modules()] == modules
    assert not student.model.training


def test_shufflenet_has_no_batch_norm_left(tmp_path):
    model = student_of("shufflenet_v2_x0_5", tmp_path).model
    assert any(isinstance(module, nn.BatchNorm2d) for module in model.modules())
    fold_batch_norms(model)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in model.modules())


@torch.no_grad()
def test_only_a_norm_that_directly_follows_its_convolution_is_folded():
    torch.manual_seed(0)

    def norm():
        layer = nn.BatchNorm2d(4)
        nn.init.normal_(layer.running_mean)
        nn.init.uniform_(layer.running_var, 0.5, 2.0)
        return layer

    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(), norm(), nn.Conv2d(4, 4, 3, bias=False), norm()).eval()
    images = torch.randn(2, 3, 8, 8)
    before = model(images)
    fold_batch_norms(model)
    torch.testing.assert_close(model(images), before, atol=1e-5, rtol=1e-5)
    assert [type(layer) for layer in model] == [nn.Conv2d, nn.ReLU, nn.BatchNorm2d, nn.Conv2d, nn.Identity]
