"""Table 1 of the paper: parameters to the digit, MACs within 3 % (its tool counts batch norm too)."""

import pytest

from dspkd.models import create_model
from dspkd_bench.complexity import count

TABLE_1 = [
    ("res2net101_26w_4s", 8, 43.174, 8.102),
    ("convnext_base", 8, 87.575, 15.383),
    ("efficientnet_b4", 1000, 19.342, 1.543),
    ("shufflenet_v2_x1_0", 8, 1.262, 0.148),
]


@pytest.mark.parametrize(("name", "classes", "millions", "gmacs"), TABLE_1)
def test_counts_of_the_papers_table_1(name, classes, millions, gmacs):
    found = count(create_model(name, classes), 224)
    assert f"{found.parameters / 1e6:.3f}" == f"{millions:.3f}"
    assert found.macs / 1e9 == pytest.approx(gmacs, rel=0.03)
    assert found.flops == 2 * found.macs


def test_macs_of_one_convolution_by_hand():
    from torch import nn

    found = count(nn.Sequential(nn.Conv2d(3, 5, 3, padding=1), nn.Flatten(), nn.Linear(5 * 64, 7)), 8)
    assert found.macs == 5 * 3 * 9 * 64 + 5 * 64 * 7
    assert found.parameters == 5 * 27 + 5 + 5 * 64 * 7 + 7
