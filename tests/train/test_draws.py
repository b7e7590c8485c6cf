"""Draws: views that repeat, and shares that are together what one process draws."""

import numpy as np
import pytest

from dspkd.data.views import VIEWS_PER_EPOCH, BalancedSampler
from dspkd.train.draws import Draws, most_draws

LABELS = np.array([0] * 40 + [1] * 9 + [2] * 3)
POSITIONS = np.arange(2, 52)


def draws(epoch=0, **more):
    sampler = Draws(POSITIONS, LABELS, balance=1.0, seed=3, **more)
    sampler.epoch = epoch
    return sampler


def plain(epoch=0):
    sampler = BalancedSampler(POSITIONS, LABELS, balance=1.0, seed=3)
    sampler.epoch = epoch
    return list(sampler)


def test_alone_and_without_repetition_they_are_the_samplers():
    assert list(draws(epoch=7, batch_size=8)) == plain(7)
    assert len(draws(batch_size=8)) == len(POSITIONS)


def test_views_come_again_while_the_order_goes_on():
    repeated = list(draws(epoch=7, views=3))
    assert [position for position, _ in repeated] == [position for position, _ in plain(7)]
    assert [view for _, view in repeated] == [view - 6 * VIEWS_PER_EPOCH for _, view in plain(7)]
    assert {view // VIEWS_PER_EPOCH for _, view in repeated} == {1}


@pytest.mark.parametrize("ranks", [2, 4])
def test_the_shares_make_up_every_batch(ranks):
    shares = [draws(5, batch_size=8, rank=rank, ranks=ranks) for rank in range(ranks)]
    each = [list(share)[: len(share)] for share in shares]
    assert {len(keys) for keys in each} == {len(POSITIONS) // 8 * 8 // ranks}
    own = 8 // ranks
    for batch in range(len(POSITIONS) // 8):
        together = [key for keys in each for key in keys[batch * own : (batch + 1) * own]]
        assert together == plain(5)[batch * 8 : (batch + 1) * 8]


@pytest.mark.parametrize("balance", [0.0, 0.5, 1.0])
def test_no_image_is_drawn_more_often_than_said(balance):
    most = most_draws(BalancedSampler(POSITIONS, LABELS, balance=balance, seed=0))
    reached = np.zeros_like(most)
    for seed in range(20):
        sampler = BalancedSampler(POSITIONS, LABELS, balance=balance, seed=seed)
        sampler.epoch = seed
        counts = np.bincount([position for position, _ in sampler], minlength=len(most))
        assert (counts <= most).all()
        reached = np.maximum(reached, counts)
    assert np.array_equal(reached, most)
    assert not most[:2].any()
