"""Intervals against textbook values, and their coverage where the truth is known."""

import math

import numpy as np
import pytest

from dspkd.compare.statistics import gap_closed, holm, paired_difference, t_quantile, t_two_sided

# Two-sided 5 % points of Student's distribution, from printed tables.
T_TABLE = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 10: 2.228, 30: 2.042, 120: 1.980}


@pytest.mark.parametrize(("freedom", "value"), T_TABLE.items())
def test_t_quantiles_are_the_printed_ones(freedom, value):
    assert t_quantile(0.975, freedom) == pytest.approx(value, abs=6e-4)
    assert t_two_sided(t_quantile(0.975, freedom), freedom) == pytest.approx(0.05, abs=1e-8)


def test_t_in_closed_form():
    """One degree of freedom is Cauchy's distribution, two have P(|T| > t) = 1 - t / sqrt(t² + 2)."""
    for t in (0.0, 0.3, 1.0, 5.0):
        assert t_two_sided(t, 1) == pytest.approx(1 - 2 / math.pi * math.atan(t), abs=1e-10)
        assert t_two_sided(-t, 2) == pytest.approx(1 - t / math.sqrt(t * t + 2), abs=1e-10)
    assert t_quantile(0.975, 1e6) == pytest.approx(1.959966, abs=1e-5)


def test_without_variance_over_lesions_it_is_the_textbook_t_interval():
    gains = np.array([0.01, 0.04, 0.07])
    ours = np.repeat(gains[:, None] + 0.5, 50, axis=1)
    theirs = np.full((3, 50), 0.5)
    found = paired_difference(ours, theirs, lesions=100)
    reach = 4.30265 * 0.03 / math.sqrt(3)
    assert found.value == pytest.approx(0.04)
    assert found.per_seed == pytest.approx(gains)
    assert found.lesions == pytest.approx((0.04, 0.04))
    assert found.lesions_and_seeds == pytest.approx((0.04 - reach, 0.04 + reach), abs=1e-6)
    t = 0.04 / (0.03 / math.sqrt(3))
    assert found.p == pytest.approx(1 - t / math.sqrt(t * t + 2))


def test_variances_of_lesions_and_seeds_are_added():
    """V_l = 0.0002 from the draws 0.03, 0.05 (99 degrees), V_s = 0.0002 from the seeds 0.02, 0.06 over 2 (1 degree)."""
    ours = np.array([[0.02, 0.03 - 0.02, 0.05 - 0.02], [0.06, 0.03 + 0.02, 0.05 + 0.02]])
    found = paired_difference(ours, np.zeros((2, 3)), lesions=100)
    lesions, seeds = 0.0002, 0.0008 / 2
    freedom = (lesions + seeds) ** 2 / (lesions**2 / 99 + seeds**2 / 1)
    reach = t_quantile(0.975, freedom) * math.sqrt(lesions + seeds)
    assert found.lesions_and_seeds == pytest.approx((0.04 - reach, 0.04 + reach))


def test_one_seed_says_nothing_about_others():
    found = paired_difference(np.array([[0.6, 0.5, 0.7]]), np.array([[0.5, 0.5, 0.5]]), lesions=10)
    assert found.value == pytest.approx(0.1)
    assert found.lesions_and_seeds is None
    assert found.p is None


def test_equal_methods_differ_by_nothing():
    same = np.random.default_rng(0).random((3, 20))
    found = paired_difference(same, same, lesions=10)
    assert (found.value, found.lesions, found.lesions_and_seeds, found.p) == (0.0, (0.0, 0.0), (0.0, 0.0), 1.0)


def test_holm_of_a_textbook_example():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.5, 0.9]) == pytest.approx([1.0, 1.0])
    assert holm([]) == []


# The gap ------------------------------------------------------------------------------------------


def arrays(rng, *, ours, alone, teacher, seeds=3, draws=2000, noise=0.01, seed_spread=0.01):
    """Metrics as the results give them: lesions move all networks together and each by itself."""
    common = rng.normal(0, noise, draws)

    def one(skill):
        own = skill + rng.normal(0, seed_spread)
        return np.concatenate([[own], own + common + rng.normal(0, noise / 2, draws)])

    return (
        np.stack([one(ours) for _ in range(seeds)]),
        np.stack([one(alone) for _ in range(seeds)]),
        one(teacher),
    )


def test_the_gap_is_a_share_of_the_way_to_the_teacher():
    flat = [np.full((2, 10), value) for value in (0.55, 0.50, 0.60)]
    gap = gap_closed(flat[0], flat[1], flat[2][0], lesions=50)
    assert gap.value == pytest.approx(0.5)
    assert gap.interval == pytest.approx((0.5, 0.5))


@pytest.mark.parametrize("seeds", [1, 3])
def test_the_ends_of_fiellers_interval_are_where_the_test_turns(seeds):
    ours, alone, teacher = arrays(np.random.default_rng(1), ours=0.56, alone=0.5, teacher=0.62, seeds=seeds)
    gap = gap_closed(ours, alone, teacher, lesions=400)

    def statistic(share):
        """|mean of (ours - alone) - share (teacher - alone)| in standard errors, computed straight from its draws."""
        values = (ours - alone) - share * (teacher[None] - alone)
        variance = values.mean(0)[1:].var(ddof=1)
        if seeds > 1:
            variance += values[:, 0].var(ddof=1) / seeds
        return abs(values[:, 0].mean()) / math.sqrt(variance)

    low, high = gap.interval
    assert low < gap.value < high
    assert statistic(low) == pytest.approx(statistic(high))
    assert statistic(gap.value) == pytest.approx(0, abs=1e-9)
    assert statistic(low) >= 1.96


def test_no_interval_where_the_teacher_is_not_surely_ahead():
    ours, alone, teacher = arrays(np.random.default_rng(2), ours=0.51, alone=0.5, teacher=0.51, noise=0.03)
    gap = gap_closed(ours, alone, teacher, lesions=100)
    assert gap.interval is None


def test_no_gap_where_the_teacher_is_behind():
    ours, alone, teacher = arrays(np.random.default_rng(3), ours=0.5, alone=0.6, teacher=0.5)
    gap = gap_closed(ours, alone, teacher, lesions=100)
    assert (gap.value, gap.interval) == (None, None)


# Coverage -----------------------------------------------------------------------------------------

LESIONS, DRAWS, TRIALS = 150, 200, 400


def simulate(rng, *, seeds, spread, gain):
    """Two methods: every seed has its own skill, every lesion its own difficulty, which all networks meet.

    Yields (ours, theirs, difference of these very networks' skills).
    """
    for _ in range(TRIALS):
        weights = rng.multinomial(LESIONS, np.full(LESIONS, 1 / LESIONS), size=DRAWS)
        weights = np.vstack([np.ones(LESIONS), weights]) / LESIONS
        difficulty = rng.uniform(-0.3, 0.3, LESIONS)
        skills = np.array([0.6 + gain, 0.6])[:, None] + rng.normal(0, spread, (2, seeds))
        right = rng.random((2, seeds, LESIONS)) < skills[..., None] + difficulty
        ours, theirs = right @ weights.T
        yield ours, theirs, float(skills[0].mean() - skills[1].mean())


def inside(value, interval):
    return interval[0] <= value <= interval[1]


def test_the_interval_over_lesions_covers_these_very_networks():
    trials = simulate(np.random.default_rng(4), seeds=3, spread=0.03, gain=0.02)
    covered = [inside(truth, paired_difference(a, b, LESIONS).lesions) for a, b, truth in trials]
    # 400 trials: 0.95 ± 0.033 (three standard errors).
    assert 0.917 <= np.mean(covered) <= 0.98


@pytest.mark.parametrize("seeds", [3, 5])
def test_the_interval_over_lesions_and_seeds_covers_other_seeds_too(seeds):
    found = [
        paired_difference(a, b, LESIONS)
        for a, b, _ in simulate(np.random.default_rng(5), seeds=seeds, spread=0.06, gain=0.02)
    ]
    both = np.mean([inside(0.02, d.lesions_and_seeds) for d in found])
    lesions = np.mean([inside(0.02, d.lesions) for d in found])
    assert 0.93 <= both <= 0.995
    assert lesions < 0.9, "over lesions alone it would claim too much"


def test_p_values_of_equal_methods_are_rarely_small():
    found = simulate(np.random.default_rng(6), seeds=3, spread=0.03, gain=0.0)
    small = np.mean([paired_difference(a, b, LESIONS).p < 0.05 for a, b, _ in found])
    assert small <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / TRIALS)
