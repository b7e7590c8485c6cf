"""ShuffleNetV1: the shuffle, the structure of its units, the names that pytorchcv's weights have, and its size."""

import pytest
import torch
from torch.nn import functional

from dspkd.errors import ModelError
from dspkd.models import create_model
from dspkd.models.shufflenet_v1 import ShuffleUnit, channel_shuffle


def test_the_shuffle_interleaves_the_groups():
    channels = torch.arange(6.0).view(1, 6, 1, 1)
    assert channel_shuffle(channels, 3).flatten().tolist() == [0, 2, 4, 1, 3, 5]
    assert channel_shuffle(channel_shuffle(channels, 3), 2).flatten().tolist() == list(range(6))


@pytest.mark.parametrize(("stride", "channels", "out"), [(1, 24, 24), (2, 12, 48)])
def test_a_unit_step_by_step(stride, channels, out):
    torch.manual_seed(0)
    unit = ShuffleUnit(channels, out, stride=stride, first=False)
    for module in unit.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.normal_(module.running_mean)
            torch.nn.init.uniform_(module.running_var, 0.5, 2.0)
    unit.eval()
    x = torch.randn(2, channels, 6, 6)
    p = dict(unit.state_dict())

    def norm(y, name):
        return functional.batch_norm(y, p[f"{name}.running_mean"], p[f"{name}.running_var"], p[f"{name}.weight"])

    y = norm(functional.conv2d(x, p["compress_conv1.weight"], groups=3), "compress_bn1").clamp_min(0)
    middle = out // 4
    y = torch.stack([y[:, (c % 3) * (middle // 3) + c // 3] for c in range(middle)], dim=1)
    y = norm(functional.conv2d(y, p["dw_conv2.weight"], stride=stride, padding=1, groups=middle), "dw_bn2")
    y = norm(functional.conv2d(y, p["expand_conv3.weight"], groups=3), "expand_bn3")
    y = y + x if stride == 1 else torch.cat([y, functional.avg_pool2d(x, 3, 2, 1)], dim=1)
    torch.testing.assert_close(unit(x), y.clamp_min(0))


def test_the_state_dict_has_pytorchcvs_names():
    state = create_model("shufflenet_v1_g3", 1000).state_dict()
    shapes = {
        "features.init_block.conv.weight": (24, 3, 3, 3),
        "features.stage1.unit1.compress_conv1.weight": (60, 24, 1, 1),  # not grouped
        "features.stage1.unit1.expand_conv3.weight": (216, 20, 1, 1),  # 24 channels come from the shortcut
        "features.stage1.unit2.compress_conv1.weight": (60, 80, 1, 1),
        "features.stage2.unit8.dw_conv2.weight": (120, 1, 3, 3),
        "features.stage3.unit4.expand_bn3.running_var": (960,),
        "output.weight": (1000, 960),
    }
    assert {name: tuple(state[name].shape) for name in shapes} == shapes
    # 16 units of three convolutions and the stem, each with the five tensors of its norm; the classifier.
    assert len(state) == 49 * 6 + 2


def test_the_sizes():
    def millions(name):
        with torch.device("meta"):
            return sum(p.numel() for p in create_model(name, 8).parameters()) / 1e6

    assert f"{millions('shufflenet_v1_g3'):.3f}" == "0.912"
    assert f"{millions('wide_shufflenet'):.1f}" == "1.8"


def test_there_is_nothing_to_download():
    with pytest.raises(ModelError, match=r"no pretrained weights of shufflenet_v1_g3.*pytorchcv"):
        create_model("shufflenet_v1_g3", 8, pretrained=True)
