"""Table 1 of the paper: parameters to the digit, MACs within 3 % (its tool counts normalisation layers too, and they
weigh more in small networks: 5 % there).

The table mixes heads: 8 outputs for some networks, ImageNet's 1000 for others.
"""

import pytest
from torch import nn

from dspkd.models import create_model
from dspkd_bench.complexity import count

TABLE_1 = [
    ("res2net101_26w_4s", 8, 43.174, 8.10),
    ("convnext_base", 8, 87.575, 15.38),
    ("efficientnet_b4", 1000, 19.342, 1.54),
    ("shufflenet_v1_g3", 8, 0.912, 0.143),
    ("shufflenet_v2_x1_0", 8, 1.262, 0.148),
    ("efficientnet_b0", 1000, 5.289, 0.4),
    ("mobilenet_v2", 1000, 3.505, 0.313),
]


@pytest.mark.parametrize(("name", "classes", "millions", "gmacs"), TABLE_1)
def test_counts_of_the_papers_table_1(name, classes, millions, gmacs):
    found = count(create_model(name, classes), 224)
    assert f"{found.parameters / 1e6:.3f}" == f"{millions:.3f}"
    known = name in ("res2net101_26w_4s", "convnext_base", "efficientnet_b4", "shufflenet_v2_x1_0")
    assert found.macs / 1e9 == pytest.approx(gmacs, rel=0.03 if known else 0.05)
    assert found.macs_with_norm / 1e9 == pytest.approx(gmacs, rel=0.005)
    assert found.flops == 2 * found.macs


def test_macs_of_one_convolution_by_hand():
    model = nn.Sequential(
        nn.Conv2d(3, 5, 3, padding=1), nn.BatchNorm2d(5), nn.ReLU(), nn.Flatten(), nn.Linear(5 * 64, 7)
    )
    found = count(model.train(), 8)
    convolution, linear = 5 * 3 * 9 * 64, 5 * 64 * 7
    assert found.macs == convolution + linear
    assert found.macs_with_norm == found.macs + 2 * 5 * 64
    assert found.parameters == 5 * 27 + 5 + 2 * 5 + 5 * 64 * 7 + 7
    assert list(found.by_module) == [("0", convolution), ("4", linear)]
    assert model.training
    assert model[1].num_batches_tracked == 0


def test_macs_grow_with_the_batch_and_grouped_convolutions_count_once():
    model = nn.Sequential(nn.Conv2d(3, 6, 1, groups=3), nn.AdaptiveAvgPool2d(1))
    assert count(model, 4).macs == 6 * 16
    assert count(model, 4, batch=3).macs == 3 * 6 * 16
