"""D-KD and SSD-KD: relations against their definitions, self-supervision by hand, the whole losses in numpy."""

import numpy as np
import pytest
import torch
from numpy_losses import (
    np_angles,
    np_batch_norm,
    np_conv1x1,
    np_cosines,
    np_crkd,
    np_cross_entropy,
    np_distances,
    np_drkd,
    np_kd,
    np_linear,
    np_smooth_l1,
    np_weighted_cross_entropy,
)

from dspkd.distill import METHODS, MethodContext, StepInputs
from dspkd.distill.base import class_weights
from dspkd.distill.relations import angle_relation_loss, channel_relation_loss, distance_relation_loss
from dspkd.distill.ssd_head import four_rotations, similarity_rows, similarity_targets
from dspkd.distill.ssd_kd import kept_rows

B, K = 3, 4
CONTEXT = {
    "num_classes": K,
    "student_final": "s",
    "student_shapes": {"s": (5, 2, 2)},
    "teacher_final": "t",
    "teacher_shapes": {"t": (6, 2, 2)},
}


def build(name, *, context=None, **settings):
    torch.manual_seed(1)
    cls = METHODS[name]
    return cls.build(cls.Settings(**settings), MethodContext(**{**CONTEXT, **(context or {})}))


@pytest.fixture
def rng():
    return np.random.default_rng(11)


def arrays(rng, views):
    n = views * B
    return {
        "s": rng.normal(size=(n, 5, 2, 2)),
        "t": rng.normal(size=(n, 6, 2, 2)),
        "z_s": rng.normal(size=(n, K)),
        "z_t": rng.normal(size=(n, K)),
        "y": rng.integers(0, K, B),
    }


def run(method, a):
    student_map = torch.tensor(a["s"], dtype=torch.float32, requires_grad=True)
    logits = torch.tensor(a["z_s"], dtype=torch.float32, requires_grad=True)
    out = method(
        StepInputs(
            labels=torch.tensor(a["y"]),
            student_logits=logits,
            student_maps={"s": student_map},
            teacher_logits=torch.tensor(a["z_t"], dtype=torch.float32),
            teacher_maps={"t": torch.tensor(a["t"], dtype=torch.float32)},
        )
    )
    out["loss"].backward()
    return float(out["loss"].detach()), student_map, logits, out


def weights(module):
    return {k: v.detach().numpy().astype(float) for k, v in module.state_dict().items()}


def tensor(a):
    return torch.tensor(a, dtype=torch.float32)


def np_relations(p, a, drkd=1.0, crkd=1000.0):
    aligned = np.maximum(np_batch_norm(np_conv1x1(a["s"], p["relations.regressor.0.weight"])), 0)
    return drkd * np_drkd(a["s"].mean((2, 3)), a["t"].mean((2, 3))) + crkd * np_crkd(aligned, a["t"])


def test_distances_golden(rng):
    s, t = rng.normal(size=(6, 5)), rng.normal(size=(6, 9)) * 10 + 100
    got = distance_relation_loss(tensor(s), tensor(t))
    assert float(got) == pytest.approx(np_smooth_l1(np_distances(s), np_distances(t)), rel=1e-4)
    # Relative distances: the scale of a network's features does not matter.
    assert float(distance_relation_loss(tensor(7 * t), tensor(t))) == pytest.approx(0.0, abs=1e-6)


def test_the_mean_distance_leaves_out_the_diagonal():
    """Three corners of an equilateral triangle: every relative distance is 1, not 3/2."""
    corners = np.eye(3)
    line = np.array([[0.0], [1.0], [3.0]])
    expected = np_smooth_l1(1 - np.eye(3), np.array([[0, 0.5, 1.5], [0.5, 0, 1], [1.5, 1, 0]]))
    assert float(distance_relation_loss(tensor(corners), tensor(line))) == pytest.approx(expected, rel=1e-5)


def test_angles_golden(rng):
    s, t = rng.normal(size=(6, 5)), rng.normal(size=(6, 9)) * 10 + 100
    got = angle_relation_loss(tensor(s), tensor(t))
    assert float(got) == pytest.approx(np_smooth_l1(np_angles(s), np_angles(t)), rel=1e-4)


def test_channel_relations_golden(rng):
    s, t = rng.normal(size=(4, 6, 3, 5)), rng.normal(size=(4, 6, 3, 5))
    assert float(channel_relation_loss(tensor(s), tensor(t))) == pytest.approx(np_crkd(s, t), rel=1e-4)
    # A root of a mean of squares: twice the difference of the Gram matrices is twice the loss, not four times.
    assert float(channel_relation_loss(tensor(s * 2**0.5), tensor(t * 2**0.5))) == pytest.approx(
        2 * np_crkd(s, t), rel=1e-4
    )


@pytest.mark.parametrize("loss", [distance_relation_loss, angle_relation_loss])
def test_relations_are_differentiable_where_samples_coincide(loss, rng):
    s = tensor(rng.normal(size=(4, 5)))
    s[1] = s[0]
    s.requires_grad_()
    loss(s, tensor(rng.normal(size=(4, 5)))).backward()
    assert torch.isfinite(s.grad).all()


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_channel_relations_are_differentiable_where_they_agree(value):
    """The root's gradient is infinite at 0."""
    s = torch.full((2, 6, 2, 2), value, requires_grad=True)
    loss = channel_relation_loss(s, s.detach().clone())
    loss.backward()
    assert float(loss.detach()) < 1e-3 and torch.isfinite(s.grad).all()


@pytest.mark.parametrize("f", [distance_relation_loss, angle_relation_loss, channel_relation_loss])
def test_relations_stay_in_float32_under_autocast(f, rng):
    shape = (6, 8, 4, 4) if f is channel_relation_loss else (6, 8)
    s, t = tensor(rng.normal(size=shape)), tensor(rng.normal(size=shape))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = f(s, t)
    assert float(mixed) == float(f(s, t))


def test_the_student_learns_from_relations_as_their_definitions_say(rng):
    """Finite differences of the definitions in numpy against the gradient."""
    s, t = rng.normal(size=(5, 4)), rng.normal(size=(5, 7))
    maps, targets = rng.normal(size=(2, 3, 2, 2)), rng.normal(size=(2, 3, 2, 2))
    cases = [
        (distance_relation_loss, lambda x: np_smooth_l1(np_distances(x), np_distances(t)), s, t),
        (angle_relation_loss, lambda x: np_smooth_l1(np_angles(x), np_angles(t)), s, t),
        (channel_relation_loss, lambda x: np_crkd(x, targets), maps, targets),
    ]
    for loss, definition, own, target in cases:
        x = tensor(own).requires_grad_()
        loss(x, tensor(target)).backward()
        step = np.zeros_like(own)
        step.flat[3] = 1e-5
        slope = (definition(own + step) - definition(own - step)) / 2e-5
        assert float(x.grad.flatten()[3]) == pytest.approx(slope, rel=1e-2, abs=1e-6)


# D-KD


def test_d_kd_golden(rng):
    a, method = arrays(rng, 1), build("d_kd")
    loss, student_map, logits, _ = run(method, a)
    expected = 0.5 * np_cross_entropy(a["z_s"], a["y"]) + 0.5 * np_kd(a["z_s"], a["z_t"], 5)
    assert loss == pytest.approx(expected + np_relations(weights(method), a), rel=1e-4)
    assert student_map.grad.abs().sum() > 0 and logits.grad.abs().sum() > 0
    assert all(p.grad.abs().sum() > 0 for p in method.parameters())
    assert sum(p.numel() for p in method.parameters()) == 5 * 6 + 2 * 6


def test_the_parts_of_d_kd_can_be_switched_off(rng):
    a = arrays(rng, 1)
    base = 0.5 * np_cross_entropy(a["z_s"], a["y"]) + 0.5 * np_kd(a["z_s"], a["z_t"], 5)
    drkd = np_drkd(a["s"].mean((2, 3)), a["t"].mean((2, 3)))
    neither = build("d_kd", drkd_weight=0, crkd_weight=0)
    assert run(neither, a)[0] == pytest.approx(base, rel=1e-5)
    assert not list(neither.parameters())
    assert run(build("d_kd", crkd_weight=0), a)[0] == pytest.approx(base + drkd, rel=1e-4)
    without_drkd = build("d_kd", drkd_weight=0)
    assert run(without_drkd, a)[0] == pytest.approx(base + np_relations(weights(without_drkd), a, drkd=0), rel=1e-4)


def test_classes_are_weighted_by_how_rarely_they_are_drawn(rng):
    a = arrays(rng, 1)
    shares = (0.4, 0.3, 0.2, 0.1)
    off = {"drkd_weight": 0, "crkd_weight": 0, "distillation_weight": 0}
    loss = run(build("d_kd", context={"class_shares": shares}, **off), a)[0]
    expected = np_weighted_cross_entropy(a["z_s"], a["y"], 1 / np.array(shares))
    assert loss == pytest.approx(0.5 * expected, rel=1e-5)


def test_a_balanced_sampler_needs_no_weights():
    """Weighting classes that are drawn equally often would count the rare ones twice."""
    assert class_weights((0.25, 0.25, 0.25, 0.25)) is None
    assert class_weights(()) is None
    assert class_weights((0.5, 0.5, 0.0)).tolist() == [2.0, 2.0, 0.0]


# SSD-KD


def test_four_rotations_keep_the_originals_first():
    images = torch.arange(2 * 3 * 4, dtype=torch.float32).view(2, 3, 2, 2)
    views = four_rotations(images)
    assert views.shape == (8, 3, 2, 2)
    assert torch.equal(views[:2], images)
    assert torch.equal(views[4:6], images.flip(2).flip(3))
    assert len({tuple(v.flatten().tolist()) for v in views}) == 8


def test_similarity_rows_golden(rng):
    e = rng.normal(size=(4 * B, 7))
    rows = similarity_rows(tensor(e))
    np.testing.assert_allclose(rows.numpy(), np_cosines(e), rtol=1e-4, atol=1e-6)
    assert similarity_targets(rows).tolist() == [0, 1, 2, 0, 1, 2, 0, 1, 2]


def test_a_rotated_copy_finds_its_original():
    """Row and target go together: with equal embeddings of all views each row's own original is at 1."""
    e = torch.eye(3).repeat(4, 1)
    rows = similarity_rows(e)
    assert torch.equal(rows.argmax(1), similarity_targets(rows))


def test_kept_rows_by_hand():
    rows = torch.tensor(
        [
            [0.9, 0.1, 0.0],  # right
            [0.5, 0.4, 0.1],  # second: wrong
            [0.1, 0.2, 0.9],  # right
            [0.3, 0.2, 0.1],  # right
            [0.9, 0.1, 0.5],  # third: wrong
            [0.5, 0.6, 0.4],  # third: wrong
            [0.1, 0.2, 0.3],  # third: wrong
            [0.1, 0.9, 0.2],  # right
            [0.1, 0.1, 0.2],  # right
        ]
    )
    # Four are wrong; ⌊0.75 · 4⌋ = 3 of them are kept, the one that is only second first.
    assert sorted(kept_rows(rows, 0.75).tolist()) == [0, 1, 2, 3, 4, 5, 7, 8]
    assert sorted(kept_rows(rows, 0.0).tolist()) == [0, 2, 3, 7, 8]
    assert sorted(kept_rows(rows, 0.5).tolist()) == [0, 1, 2, 3, 4, 7, 8]
    assert sorted(kept_rows(rows, 1.0).tolist()) == list(range(9))


def np_head(p, x):
    return np_linear(np.maximum(np_linear(x, p["0.weight"], p["0.bias"]), 0), p["2.weight"], p["2.bias"])


def test_the_head_golden(rng):
    a, method = arrays(rng, 4), build("ssd_head")
    loss, student_map, logits, _ = run(method, a)
    rows = np_cosines(np_head(weights(method.teacher_head), a["t"].mean((2, 3))))
    assert loss == pytest.approx(np_cross_entropy(rows, np.tile(np.arange(B), 3)), rel=1e-4)
    assert student_map.grad is None and logits.grad is None
    assert not method.trains_student
    assert sum(p.numel() for p in method.parameters()) == 2 * (6 * 6 + 6)


def np_similarity(method, a):
    theirs = np_cosines(np_head(weights(method.teacher_head), a["t"].mean((2, 3))))
    own = np_cosines(np_head(weights(method.student_head), a["s"].mean((2, 3))))
    target = np.tile(np.arange(B), 3)
    rank = np.array([(row > row[t]).sum() for row, t in zip(theirs, target, strict=True)])
    wrong = int((rank > 0).sum())
    kept = np.argsort(rank, kind="stable")[: len(rank) - wrong + int(0.75 * wrong)]
    return np_kd(own[kept], theirs[kept], 0.5), wrong


def test_ssd_kd_golden(rng):
    a, method = arrays(rng, 4), build("ssd_kd")
    loss, student_map, logits, _ = run(method, a)
    similarity, wrong = np_similarity(method, a)
    assert wrong > 1
    expected = (
        0.1 * np_cross_entropy(a["z_s"][:B], a["y"])
        + 0.9 * np_kd(a["z_s"][:B], a["z_t"][:B], 4)
        + 2.7 * np_kd(a["z_s"][B:], a["z_t"][B:], 4)
        + 10 * similarity
        + np_relations(weights(method), a)
    )
    assert loss == pytest.approx(expected, rel=1e-4)
    assert student_map.grad.abs().sum() > 0 and logits.grad.abs().sum() > 0


def test_the_teachers_head_comes_from_the_stage_before_and_stays(rng):
    first, method = build("ssd_head"), build("ssd_kd")
    for p in first.parameters():
        p.data.normal_()
    assert type(method).predecessor(method.settings) == "ssd_head"
    method.inherit(first.state_dict())
    run(method, arrays(rng, 4))
    for own, fitted in zip(method.teacher_head.parameters(), first.teacher_head.parameters(), strict=True):
        assert torch.equal(own, fitted) and own.grad is None
    assert all(p.grad is not None for p in method.student_head.parameters())


def test_without_the_similarity_term_no_head_is_needed(rng):
    a, method = arrays(rng, 4), build("ssd_kd", similarity_weight=0)
    assert type(method).predecessor(method.settings) is None
    assert "similarity" not in run(method, a)[3]
