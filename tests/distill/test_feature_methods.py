"""FitNets, MGD, and the readings of DSP-KD's first stage: golden values, shapes, and who gets a gradient."""

import numpy as np
import pytest
import torch
from numpy_losses import (
    np_batch_norm,
    np_conv1x1,
    np_conv3x3,
    np_cross_entropy,
    np_norm_kd,
    np_softmax,
    np_upsample2,
)
from pydantic import ValidationError
from torch import nn

from dspkd.distill import METHODS, MethodContext, StepInputs
from dspkd.distill.features import layer_normalised
from dspkd.distill.generation import random_mask
from dspkd.distill.hf_attention import hf_attention, shuffled_mask
from dspkd.distill.hf_convolutional import ConvolutionalHF

B, K = 3, 4
STUDENT = {"s1": (3, 16, 16), "s2": (4, 8, 8), "s3": (5, 4, 4), "s4": (6, 2, 2), "s": (7, 2, 2)}
TEACHER = {"t1": (4, 16, 16), "t2": (6, 8, 8), "t3": (8, 4, 4), "t4": (10, 2, 2), "t": (10, 2, 2)}


def context(**changes):
    return MethodContext(
        **{
            "num_classes": K,
            "student_final": "s",
            "student_levels": ("s1", "s2", "s3", "s4"),
            "student_shapes": STUDENT,
            "teacher_levels": ("t1", "t2", "t3", "t4"),
            "teacher_final": "t",
            "teacher_shapes": TEACHER,
            **changes,
        }
    )


def build(name, ctx=None, **settings):
    torch.manual_seed(1)
    return METHODS[name].build(METHODS[name].Settings(**settings), ctx or context()).double()


@pytest.fixture
def arrays():
    rng = np.random.default_rng(5)
    maps = {name: rng.normal(size=(B, *shape)) for name, shape in {**STUDENT, **TEACHER}.items()}
    return {**maps, "z_s": rng.normal(size=(B, K)), "z_t": rng.normal(size=(B, K)), "y": rng.integers(0, K, B)}


class Batch:
    """The arrays as tensors; what a method is given, and nothing else, may get a gradient."""

    def __init__(self, arrays, method):
        self.student = {n: torch.tensor(arrays[n], requires_grad=True) for n in method.student_taps}
        self.teacher = {n: torch.tensor(arrays[n]) for n in method.teacher_taps}
        self.logits = torch.tensor(arrays["z_s"], requires_grad=True)
        self.inputs = StepInputs(
            labels=torch.tensor(arrays["y"]),
            student_logits=self.logits,
            student_maps=self.student,
            teacher_logits=torch.tensor(arrays["z_t"]),
            teacher_maps=self.teacher,
        )
        self.out = method(self.inputs)
        self.out["loss"].backward()

    @property
    def loss(self):
        return float(self.out["loss"].detach())


def weights(method):
    return {k: v.detach().numpy() for k, v in method.state_dict().items()}


def size(module):
    return sum(p.numel() for p in module.parameters())


# FitNets


def np_hint(p, s, t):
    return ((np_batch_norm(np_conv1x1(s, p["regressor.0.weight"])) - t) ** 2).mean()


@pytest.mark.parametrize(("stride", "own", "other"), [(16, "s3", "t3"), (32, "s4", "t4")])
def test_fitnets_golden(arrays, stride, own, other):
    method = build("fitnets", stride=stride)
    batch = Batch(arrays, method)
    hint = np_hint(weights(method), arrays[own], arrays[other])
    assert batch.loss == pytest.approx(np_cross_entropy(arrays["z_s"], arrays["y"]) + 100 * hint, rel=1e-5)
    assert method.student_taps == (own,) and method.teacher_taps == (other,)
    assert size(method) == STUDENT[own][0] * TEACHER[other][0] + 2 * TEACHER[other][0]


def test_the_hint_is_a_mean_over_everything(arrays):
    """The reduction trap: a sum over the map would weigh C H W = 128 times as much."""
    method = build("fitnets")
    once = Batch(arrays, method).out["hint"]
    doubled = {k: np.concatenate([v, v]) for k, v in arrays.items()}
    assert float(Batch(doubled, method).out["hint"]) == pytest.approx(float(once), rel=1e-6)


def test_the_hint_stage_leaves_the_classifier_alone(arrays):
    """No gradient at all, not one of zeros, which weight decay would follow."""
    batch = Batch(arrays, build("fitnets", cross_entropy_weight=0.0))
    assert batch.logits.grad is None
    assert batch.student["s3"].grad.abs().sum() > 0


# MGD


def np_generation(p, x):
    hidden = np_conv3x3(x, p["generation.0.weight"], p["generation.0.bias"])
    return np_conv3x3(np.maximum(hidden, 0), p["generation.2.weight"], p["generation.2.bias"])


MASK_SHAPES = {"channel": (B, 10, 1, 1), "spatial": (B, 1, 2, 2)}


@pytest.mark.parametrize("mask", ["channel", "spatial", "none"])
def test_mgd_golden(arrays, mask):
    method = build("mgd", mask=mask, hidden_fraction=0.4)
    p = weights(method)
    torch.manual_seed(9)
    kept = np.ones((1, 1, 1, 1)) if mask == "none" else (torch.rand(MASK_SHAPES[mask]) >= 0.4).numpy()
    torch.manual_seed(9)
    batch = Batch(arrays, method)
    rebuilt = np_generation(p, np_conv1x1(arrays["s"], p["align.weight"], p["align.bias"]) * kept)
    alpha = 7e-5 * 512 * 49 / (10 * 4)
    expected = np_cross_entropy(arrays["z_s"], arrays["y"]) + alpha * ((rebuilt - arrays["t"]) ** 2).sum() / B
    assert batch.loss == pytest.approx(expected, rel=1e-5)
    assert mask == "none" or 0 < kept.mean() < 1


def test_mgds_published_defaults():
    settings = METHODS["mgd"].Settings()
    assert (settings.mask, settings.hidden_fraction) == ("channel", 0.15)
    shapes = {"t": (512, 7, 7)}
    assert build("mgd", context(teacher_shapes=shapes)).alpha == pytest.approx(7e-5)


def test_mgds_auxiliary_layers():
    method = build("mgd")
    assert size(method.align) == 7 * 10 + 10
    assert size(method.generation) == 2 * (10 * 10 * 9 + 10)
    assert isinstance(method.generation[1], nn.ReLU)
    same = build("mgd", context(student_shapes={"s": (10, 2, 2)}))
    assert isinstance(same.align, nn.Identity)
    with torch.device("meta"):
        full = METHODS["mgd"].build(METHODS["mgd"].Settings(), context(teacher_shapes={"t": (2048, 7, 7)}))
    assert size(full.generation) == 75_501_568


def test_hidden_channels_get_no_gradient_from_the_student(arrays):
    method = build("mgd", hidden_fraction=1.0)
    batch = Batch(arrays, method)
    assert batch.student["s"].grad.abs().sum() == 0
    assert method.align.weight.grad.abs().sum() == 0
    assert method.generation[2].weight.grad.abs().sum() > 0


@pytest.mark.parametrize(
    ("width", "parameters"), [({}, 2048 * 256 * 9 * 2 + 256 + 2048), ({"generator_width": "full"}, 75_501_568)]
)
def test_the_generation_block_of_stage_1_is_narrow_unless_asked(width, parameters):
    with torch.device("meta"):
        settings = METHODS["hf_masked_generation"].Settings(**width)
        method = METHODS["hf_masked_generation"].build(settings, context(teacher_shapes={"t": (2048, 7, 7)}))
    assert size(method.generation) == parameters


def test_a_narrow_block_is_never_wider_than_the_map():
    assert size(build("hf_masked_generation").generation) == 2 * (10 * 10 * 9 + 10)


@pytest.mark.parametrize("name", ["mgd", "hf_masked_generation"])
def test_the_mask_hides_and_does_not_scale(arrays, name):
    """No 1/(1-λ) as in dropout: what is not hidden stays as it is."""
    kept = random_mask((1000, 1), 0.3, torch.device("cpu"))
    assert set(kept.unique().tolist()) == {0.0, 1.0}
    assert float(kept.mean()) == pytest.approx(0.7, abs=0.05)
    assert float(random_mask((50,), 0.0, torch.device("cpu")).min()) == 1.0
    method = build(name, mask="none")
    seen = []
    method.generation.register_forward_pre_hook(lambda _m, args: seen.append(args[0]))
    batch = Batch(arrays, method)
    torch.testing.assert_close(seen[0], method.align(batch.student["s"]))


def test_an_equal_seed_draws_equal_masks(arrays):
    method = build("mgd", mask="spatial", hidden_fraction=0.5)
    losses = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        losses.append(Batch(arrays, method).loss)
    assert losses[0] == losses[1] != losses[2]


@pytest.mark.parametrize("name", ["mgd", "fitnets", "hf_masked_generation"])
def test_convnexts_maps_are_normalised_and_no_others(arrays, name):
    """Raw, its few huge channels would decide the squared error alone."""
    loud = {k: v * 100 + 50 if k.startswith("t") else v for k, v in arrays.items()}
    torch.manual_seed(0)
    convnext = Batch(loud, build(name, context(teacher_name="timm/convnext_base")))
    torch.manual_seed(0)
    other = Batch(loud, build(name, context(teacher_name="timm/res2net101_26w_4s")))
    assert convnext.loss * 100 < other.loss
    normalised = layer_normalised(torch.tensor(loud["t"]))
    np.testing.assert_allclose(normalised.mean(1).numpy(), 0, atol=1e-5)


@pytest.mark.parametrize("name", ["mgd", "fitnets", "hf_masked_generation"])
def test_every_auxiliary_layer_learns(arrays, name):
    method = build(name)
    batch = Batch(arrays, method)
    assert batch.logits.grad.abs().sum() > 0
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in method.parameters())


def test_maps_of_other_sizes_are_resized_to_the_teachers(arrays):
    arrays["s"] = arrays["s"].repeat(2, axis=2).repeat(2, axis=3)
    for name in ("mgd", "hf_masked_generation"):
        assert np.isfinite(Batch(arrays, build(name)).loss)


# DSP-KD, stage 1: the other readings


LEVELS = ("t1", "t2", "t3", "t4")


def np_hf_convolutional(p, levels, theta):
    def lateral(n):
        attention = np_softmax(np.abs(levels[n]).mean((2, 3)) / 0.5) * levels[n].shape[1]
        attended = levels[n] * attention[:, :, None, None]
        attended = attended / np.abs(attended).mean((1, 2, 3), keepdims=True)
        return np_conv1x1(attended, p[f"lateral.{n}.weight"])

    q = lateral(3)
    for n in (2, 1, 0):
        u, v = np_softmax(theta[n][None])[0]
        q = u * lateral(n) + v * np_upsample2(q)
    return q


def test_convolutional_hf_golden(arrays):
    torch.manual_seed(2)
    hf = ConvolutionalHF([4, 6, 8, 10], width=5).double()
    theta = np.array([[0.3, -0.2], [0.0, 1.0], [-1.0, 0.5]])
    hf.fusion.data = torch.tensor(theta)
    q = np_hf_convolutional(weights(hf), [arrays[level] for level in LEVELS], theta)
    # The laterals see float32 maps, as they would beside a network in half precision.
    hf = hf.float()
    levels = [torch.tensor(arrays[level]) for level in LEVELS]
    np.testing.assert_allclose(hf.fuse(levels).detach().numpy(), q, rtol=1e-3, atol=1e-5)
    energy = np.abs(q).mean(1, keepdims=True).reshape(B, 1, 2, 8, 2, 8).mean((3, 5))
    attention = hf(levels, (2, 2))
    np.testing.assert_allclose(attention.numpy(), energy / energy.mean((2, 3), keepdims=True), rtol=1e-4)
    assert not attention.requires_grad


def test_convolutional_hf_has_the_published_size():
    """1x1 convolutions to 256 channels and three pairs of weights: 0.98 M for Res2Net101."""
    with torch.device("meta"):
        hf = ConvolutionalHF([256, 512, 1024, 2048])
        fused = hf.fuse([torch.zeros(1, c, s, s) for c, s in ((256, 56), (512, 28), (1024, 14), (2048, 7))])
    assert size(hf) == 983_040 + 6
    assert fused.shape == (1, 256, 56, 56)


def test_fitting_hf_is_a_classifier_on_the_teacher_and_trains_nothing_else(arrays):
    method = build("hf_fit").float()
    assert not method.trains_student and method.student_taps == ()
    batch = Batch(arrays, method)
    assert batch.logits.grad is None
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in method.parameters())
    q = method.hf.fuse([torch.tensor(arrays[level]) for level in LEVELS]).mean((2, 3)).detach().double().numpy()
    p = weights(method.head)
    assert batch.loss == pytest.approx(np_cross_entropy(q @ p["weight"].T + p["bias"], arrays["y"]), rel=1e-4)


def test_fitted_hf_is_taken_over_and_frozen(arrays):
    first = build("hf_fit").float()
    for p in first.parameters():
        p.data.normal_()
    second = build("hf_masked_generation", hf="fitted")
    assert type(second).predecessor(second.settings) == "hf_fit"
    second.inherit(first.state_dict())
    second.float()
    assert all(torch.equal(a, b) for a, b in zip(first.hf.parameters(), second.hf.parameters(), strict=True))
    floats = {k: v.astype(np.float32) if v.dtype == float else v for k, v in arrays.items()}
    Batch(floats, second)
    assert all(p.grad is None and not p.requires_grad for p in second.hf.parameters())
    assert second.align.weight.grad is not None


def test_the_random_hf_is_another_one_and_is_never_fitted(arrays):
    method = build("hf_masked_generation", hf="random_frozen").float()
    levels = [torch.tensor(arrays[level]).float() for level in LEVELS]
    assert not torch.allclose(method.hf(levels, (2, 2)), hf_attention(levels, (2, 2)), rtol=0.01)
    assert not any(p.requires_grad for p in method.hf.parameters())
    assert type(method).predecessor(method.settings) is None
    assert build("hf_masked_generation").hf is None


def test_a_random_mask_hides_as_many_places_of_each_image():
    rng = torch.Generator().manual_seed(0)
    mask = (torch.rand(64, 1, 7, 7, generator=rng) > torch.rand(64, 1, 1, 1, generator=rng)).float()
    torch.manual_seed(3)
    shuffled = shuffled_mask(mask)
    assert torch.equal(shuffled.sum((1, 2, 3)), mask.sum((1, 2, 3)))
    assert not torch.equal(shuffled, mask)
    # Every place is equally likely, wherever the original mask looked.
    half = torch.zeros(4000, 1, 2, 2)
    half[:, :, 0] = 1
    np.testing.assert_allclose(shuffled_mask(half).mean(0).numpy(), 0.5, atol=0.05)


def test_random_and_no_mask_in_stage_1(arrays):
    hf = Batch(arrays, build("hf_masked_generation")).out["hidden_fraction"]
    torch.manual_seed(4)
    blind = Batch(arrays, build("hf_masked_generation", mask="random"))
    assert float(blind.out["hidden_fraction"]) == pytest.approx(float(hf))
    unmasked = build("hf_masked_generation", mask="none")
    assert unmasked.teacher_taps == ("t",)
    assert float(Batch(arrays, unmasked).out["hidden_fraction"]) == 0.0


@pytest.mark.parametrize("settings", [{"hf": "fitted"}, {"hidden_fraction": 0.5}])
def test_what_has_no_effect_without_a_mask_is_refused(settings):
    with pytest.raises(ValidationError, match="no effect"):
        METHODS["hf_masked_generation"].Settings(mask="none", **settings)


def test_joint_is_the_sum_of_the_two_stages(arrays):
    joint = build("dsp_kd_joint", norm_kd={"t_norm": 2.0}, hf_masked_generation={"alpha": 0.1})
    batch = Batch(arrays, joint)
    first = build("hf_masked_generation", alpha=0.1)
    first.load_state_dict({k.removeprefix("features."): v for k, v in joint.state_dict().items()})
    second = 0.1 * np_cross_entropy(arrays["z_s"], arrays["y"]) + 0.9 * np_norm_kd(arrays["z_s"], arrays["z_t"], 2.0)
    assert batch.loss == pytest.approx(Batch(arrays, first).loss + second, rel=1e-5)
    assert {"reconstruction", "norm_kd"} <= batch.out.keys()
    assert size(joint) == size(first)
