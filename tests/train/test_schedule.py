"""The learning rate over a stage: up to lr, down to min_lr, nothing else."""

import math
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dspkd.config import OptimizerConfig
from dspkd.train.schedule import learning_rate


def rates(steps, epochs, **config):
    return [learning_rate(step, steps, epochs, OptimizerConfig(**config)) for step in range(steps * epochs)]


def test_the_papers_warm_up_is_20_of_120_epochs():
    got = rates(10, 120, lr=0.01)
    assert got[0] == pytest.approx(0.01 / 200)
    assert got[199] == got[200] == 0.01
    assert got[198] == pytest.approx(0.01 * 199 / 200)
    assert max(got) == 0.01
    assert got[-1] == pytest.approx(1e-5)


def test_the_middle_of_the_cosine():
    got = rates(1, 101, lr=1.0, min_lr=0.2, warmup_epochs=0)
    assert got[0] == 1.0
    assert got[50] == pytest.approx(0.6)
    assert got[25] == pytest.approx(0.2 + 0.8 * 0.5 * (1 + math.cos(math.pi / 4)))
    assert got[100] == pytest.approx(0.2)


def test_a_part_of_an_epoch_of_warm_up():
    got = rates(10, 3, lr=1.0, warmup_epochs=0.5)
    assert got[:5] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
    assert got[6] < 1.0


@settings(max_examples=200, deadline=None)
@given(
    steps=st.integers(1, 40),
    epochs=st.integers(1, 40),
    warmup=st.none() | st.floats(0, 50),
    lr=st.floats(1e-4, 10),
    low=st.floats(0, 1e-4),
)
def test_it_rises_once_and_falls_once(steps, epochs, warmup, lr, low):
    got = rates(steps, epochs, lr=lr, min_lr=low, warmup_epochs=warmup)
    peak = got.index(max(got))
    tolerance = 1e-12 * lr
    assert max(got) == pytest.approx(lr)
    assert all(a < b for a, b in pairwise(got[: peak + 1]))
    assert all(a >= b - tolerance for a, b in pairwise(got[peak:]))
    assert min(got) > 0 or low == 0
    # Where the warm-up leaves room for it, the last step has the lowest rate.
    planned = round((epochs / 6 if warmup is None else warmup) * steps)
    if planned < steps * epochs - 1:
        assert got[-1] == pytest.approx(low, abs=tolerance)
    else:
        assert got[-1] == pytest.approx(lr)
