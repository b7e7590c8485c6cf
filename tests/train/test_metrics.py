"""Metrics against values worked out by hand, and what the intervals promise."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from dspkd.train.metrics import bootstrap_intervals, calibration, calibration_errors, confusion_matrix, summarise

# Truth by row:      A  B  C
MATRIX = np.array([[3, 1, 0], [2, 4, 2], [0, 0, 0]])
LABELS = np.repeat(np.repeat(np.arange(3), 3), MATRIX.ravel())
PREDICTIONS = np.repeat(np.tile(np.arange(3), 3), MATRIX.ravel())


def one_hot(predictions, classes=3, confidence=0.8):
    p = np.full((len(predictions), classes), (1 - confidence) / (classes - 1))
    p[np.arange(len(predictions)), predictions] = confidence
    return p


def test_confusion_matrix():
    np.testing.assert_array_equal(confusion_matrix(LABELS, PREDICTIONS, 3), MATRIX)
    order = np.random.default_rng(0).permutation(len(LABELS))
    np.testing.assert_array_equal(confusion_matrix(LABELS[order], PREDICTIONS[order], 3), MATRIX)


def test_by_hand():
    got = summarise(LABELS, one_hot(PREDICTIONS), ["A", "B", "C"])
    # A: 3 hits of 4, predicted 5 times, 8 others of which 2 are taken for A.
    a, b, c = (got["per_class"][name] for name in "ABC")
    assert a == pytest.approx({"precision": 3 / 5, "recall": 3 / 4, "specificity": 6 / 8, "f1": 6 / 9, "support": 4})
    # B: 4 hits of 8, predicted 5 times, 4 others of which 1 is taken for B.
    assert b == pytest.approx({"precision": 4 / 5, "recall": 4 / 8, "specificity": 3 / 4, "f1": 8 / 13, "support": 8})
    # C is absent: its two false alarms count against its precision and specificity, which no average contains.
    assert c == pytest.approx({"precision": 0, "recall": 0, "specificity": 10 / 12, "f1": 0, "support": 0})
    assert got["n"] == 12
    assert got["accuracy"] == pytest.approx(7 / 12)
    assert got["balanced_accuracy"] == pytest.approx((3 / 4 + 1 / 2) / 2)
    assert got["macro_precision"] == pytest.approx((3 / 5 + 4 / 5) / 2)
    assert got["macro_specificity"] == pytest.approx(3 / 4)
    assert got["macro_f1"] == pytest.approx((6 / 9 + 8 / 13) / 2)
    assert got["confusion"] == MATRIX.tolist()
    # 7 images have 0.8 on their class, 5 have 0.1.
    assert got["loss"] == pytest.approx(-(7 * np.log(0.8) + 5 * np.log(0.1)) / 12)
    json.dumps(got, allow_nan=False)


def test_a_perfect_classifier_and_an_absent_class():
    labels = np.array([0, 0, 2, 2])
    got = summarise(labels, one_hot(labels), ["A", "B", "C"])
    assert got["balanced_accuracy"] == got["macro_f1"] == got["macro_precision"] == got["macro_specificity"] == 1.0
    assert got["per_class"]["B"]["support"] == 0


def test_balanced_accuracy_does_not_reward_the_majority():
    labels = np.array([0] * 98 + [1] * 2)
    got = summarise(labels, one_hot(np.zeros(100, int), 2), ["A", "B"])
    assert got["accuracy"] == 0.98
    assert got["balanced_accuracy"] == 0.5


def test_a_certain_mistake_has_a_finite_loss():
    got = summarise(np.array([0]), np.array([[0.0, 1.0]]), ["A", "B"])
    assert got["loss"] == pytest.approx(-np.log(1e-12))


def test_without_groups_there_are_no_intervals():
    assert "intervals" not in summarise(LABELS, one_hot(PREDICTIONS), list("ABC"))
    got = summarise(LABELS, one_hot(PREDICTIONS), list("ABC"), groups=[str(i) for i in range(12)])
    assert set(got["intervals"]) == {
        "accuracy",
        "balanced_accuracy",
        "macro_precision",
        "macro_specificity",
        "macro_f1",
    }
    for name, (low, high) in got["intervals"].items():
        assert low <= got[name] <= high, name


def draw(rng, lesions, copies=1, skill=0.8):
    """Binary answers that are right with probability `skill`; copies of a lesion succeed and fail together."""
    labels = rng.integers(0, 2, lesions)
    right = rng.random(lesions) < skill
    predictions = np.where(right, labels, 1 - labels)
    groups = np.repeat([f"L{i}" for i in range(lesions)], copies)
    return np.repeat(labels, copies), np.repeat(predictions, copies), groups


def test_the_interval_covers_the_truth_about_as_often_as_it_says():
    rng = np.random.default_rng(1)
    covered = 0
    for _ in range(200):
        low, high = bootstrap_intervals(*draw(rng, 100), 2, repetitions=300)["accuracy"]
        covered += low <= 0.8 <= high
    # 95 % of 200 is 190 ± 3; the percentile bootstrap is known to be a little narrow.
    assert 176 <= covered <= 199


def test_copies_of_a_picture_do_not_narrow_the_interval():
    labels, predictions, groups = draw(np.random.default_rng(2), 150, copies=4)
    width = {}
    for name, who in (("lesions", groups), ("images", np.arange(len(labels)).astype(str))):
        low, high = bootstrap_intervals(labels, predictions, who, 2)["accuracy"]
        width[name] = high - low
    # Four copies of each: images pretend to be four times the evidence, hence half the width.
    assert width["lesions"] == pytest.approx(2 * width["images"], rel=0.15)
    single = bootstrap_intervals(labels[::4], predictions[::4], groups[::4], 2)["accuracy"]
    clustered = bootstrap_intervals(labels, predictions, groups, 2)["accuracy"]
    assert clustered == pytest.approx(single, abs=0.01)


def test_intervals_are_repeatable_and_narrow_with_level():
    labels, predictions, groups = draw(np.random.default_rng(3), 80)
    first = bootstrap_intervals(labels, predictions, groups, 2, seed=1)
    assert first == bootstrap_intervals(labels, predictions, groups, 2, seed=1)
    assert first != bootstrap_intervals(labels, predictions, groups, 2, seed=2)
    wide, narrow = (
        bootstrap_intervals(labels, predictions, groups, 2, level=level)["macro_f1"] for level in (0.99, 0.5)
    )
    assert wide[0] < narrow[0] < narrow[1] < wide[1]


def test_the_names_of_groups_do_not_matter_and_one_group_is_no_evidence():
    labels, predictions, _ = draw(np.random.default_rng(4), 40)
    low, high = bootstrap_intervals(labels, predictions, ["one"] * 40, 2)["accuracy"]
    assert low == high == pytest.approx((labels == predictions).mean())


def test_calibration_by_hand():
    # Two bins of fifteen: top-1 probabilities 0.9 (two images, one right) and 0.5 (two images, both right).
    probabilities = np.array([[0.9, 0.1], [0.1, 0.9], [0.5, 0.5], [0.5, 0.5]])
    got = calibration(probabilities, np.array([True, False, True, True]))
    filled = [row for row in got["bins"] if row["n"]]
    assert [(row["n"], row["confidence"], row["accuracy"]) for row in filled] == [
        (2, pytest.approx(0.5), 1.0),
        (2, pytest.approx(0.9), 0.5),
    ]
    assert all(row["low"] <= row["confidence"] < row["high"] for row in filled)
    assert got["ece"] == pytest.approx(0.5 * 0.5 + 0.5 * 0.4)
    assert len(got["bins"]) == 15 and sum(row["n"] for row in got["bins"]) == 4
    json.dumps(got, allow_nan=False)


@given(
    arrays(np.float64, st.tuples(st.integers(1, 60), st.just(3)), elements=st.floats(1e-3, 1.0)),
    st.randoms(use_true_random=False),
)
def test_the_bins_give_the_error_that_stands_beside_them(scores, random):
    """The diagram and the number are of one piece."""
    probabilities = scores / scores.sum(1, keepdims=True)
    hits = np.array([random.random() < 0.5 for _ in probabilities])
    got = calibration(probabilities, hits)
    n = len(hits)
    gaps = [row["n"] / n * abs(row["accuracy"] - row["confidence"]) for row in got["bins"] if row["n"]]
    assert got["ece"] == pytest.approx(sum(gaps), abs=1e-9)
    weights = np.vstack([np.ones(n), np.full(n, 3.0)])
    assert calibration_errors(probabilities, hits, weights) == pytest.approx([got["ece"]] * 2)


def test_certain_and_broken_answers_have_a_bin():
    """A softmax in half precision may end above 1, and a broken runtime answers with NaN or infinity."""
    got = calibration(np.array([[1.0002, 0.0], [np.nan, 0.5], [np.inf, 0.0]]), np.array([True, False, True]))
    assert [row["n"] for row in got["bins"]] == [1, *[0] * 13, 2]
    json.dumps(got, allow_nan=False)


def test_summaries_carry_their_calibration():
    got = summarise(LABELS, one_hot(PREDICTIONS, confidence=0.8), ["A", "B", "C"])
    assert got["calibration"]["ece"] == pytest.approx(0.8 - 7 / 12)
