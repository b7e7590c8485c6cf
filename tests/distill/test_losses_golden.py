"""Every loss against a computation in float64 numpy that shares no code with dspkd."""

import numpy as np
import pytest
import torch
from numpy_losses import np_conv3x3, np_cross_entropy, np_energy, np_gelu, np_hf, np_norm_kd
from torch import nn

from dspkd.distill.base import MethodContext, StepInputs
from dspkd.distill.cross_entropy import CrossEntropy
from dspkd.distill.generation import GenerationBlock, default_alpha, reconstruction_loss
from dspkd.distill.hf_attention import channel_attention, hf_attention, hf_mask, spatial_energy
from dspkd.distill.hf_masked_generation import (
    HFMaskedGeneration,
    HFMaskedGenerationSettings,
)
from dspkd.distill.norm_kd import NormKD, norm_kd_loss


@pytest.fixture
def rng():
    return np.random.default_rng(7)


@pytest.fixture
def levels(rng):
    return [
        rng.normal(size=(3, c, s, s)) * scale for c, s, scale in ((4, 16, 3.0), (6, 8, 1.0), (8, 4, 0.5), (10, 2, 2.0))
    ]


def tensors(arrays):
    return [torch.tensor(a) for a in arrays]


def test_norm_kd_golden(rng):
    z_s, z_t = rng.normal(size=(5, 8)) * 3, rng.normal(size=(5, 8)) * 5
    got = norm_kd_loss(torch.tensor(z_s), torch.tensor(z_t), 1.2)
    assert float(got) == pytest.approx(np_norm_kd(z_s, z_t, 1.2), rel=1e-5)


def test_norm_kd_by_hand():
    # σ of (1, -1) with ddof 1 is √2, so both softmaxes are over ±1/√2: equal distributions, no loss.
    z = torch.tensor([[1.0, -1.0]])
    assert float(norm_kd_loss(z, 5 * z, 1.0)) == pytest.approx(0.0, abs=1e-5)
    # Reversed student: KL between σ(±√2) is tanh(1/√2)·√2; times τ_t² = 2.
    expected = 2 * np.tanh(1 / np.sqrt(2)) * np.sqrt(2)
    assert float(norm_kd_loss(-z, z, 1.0)) == pytest.approx(expected, rel=1e-5)


def test_norm_kd_is_batch_mean_not_element_mean(rng):
    z_s, z_t = tensors([rng.normal(size=(4, 8)), rng.normal(size=(4, 8))])
    twice = norm_kd_loss(z_s.repeat(2, 1), z_t.repeat(2, 1), 1.2)
    assert float(twice) == pytest.approx(float(norm_kd_loss(z_s, z_t, 1.2)), rel=1e-6)


def test_norm_kd_method_terms_and_gradients(rng):
    z_s, z_t = rng.normal(size=(6, 8)), rng.normal(size=(6, 8))
    y = rng.integers(0, 8, 6)
    student = torch.tensor(z_s, requires_grad=True)
    teacher = torch.tensor(z_t)
    out = NormKD()(StepInputs(labels=torch.tensor(y), student_logits=student, student_maps={}, teacher_logits=teacher))
    expected = 0.1 * np_cross_entropy(z_s, y) + 0.9 * np_norm_kd(z_s, z_t, 1.2)
    assert float(out["loss"].detach()) == pytest.approx(expected, rel=1e-5)
    out["loss"].backward()
    assert student.grad is not None and student.grad.abs().sum() > 0
    assert teacher.grad is None


def test_norm_kd_student_sigma_is_in_the_graph(rng):
    """With a detached σ the loss would not fall along its gradient as computed; compare with a finite difference."""
    z_s, z_t = rng.normal(size=(2, 5)), rng.normal(size=(2, 5))
    student = torch.tensor(z_s, dtype=torch.float32, requires_grad=True)
    norm_kd_loss(student, torch.tensor(z_t), 1.2).backward()
    step = np.zeros_like(z_s)
    step[0, 0] = 1e-5
    slope = (np_norm_kd(z_s + step, z_t, 1.2) - np_norm_kd(z_s - step, z_t, 1.2)) / 2e-5
    assert float(student.grad[0, 0]) == pytest.approx(slope, rel=1e-3)


def test_norm_kd_survives_constant_logits():
    student = torch.zeros(2, 8, requires_grad=True)
    loss = norm_kd_loss(student + torch.randn(2, 8), torch.zeros(2, 8), 1.2)
    loss.backward()
    assert torch.isfinite(student.grad).all()


def test_hf_attention_golden(levels):
    got = hf_attention(tensors(levels), (2, 2)).numpy()
    np.testing.assert_allclose(got, np_hf(levels, 2), rtol=1e-5)
    np.testing.assert_allclose(got.mean((1, 2, 3)), 1.0, rtol=1e-6)


def test_channel_attention_has_mean_one(levels):
    weights = channel_attention(torch.tensor(levels[0]))
    np.testing.assert_allclose(weights.mean(1).squeeze().numpy(), 1.0, rtol=1e-6)


def test_spatial_energy_ignores_the_levels_scale_across_images(levels):
    energy = spatial_energy(torch.tensor(levels[1]))
    np.testing.assert_allclose(energy.numpy(), np_energy(levels[1]), rtol=1e-6)


def test_mask_hides_the_important_places_and_the_threshold_is_inclusive():
    attention = torch.tensor([[[[0.5, 1.0], [2.0, 0.9]]]])
    assert hf_mask(attention, threshold=1.0).flatten().tolist() == [1, 0, 0, 1]
    assert hf_mask(attention, threshold=1.0, hide="unimportant").flatten().tolist() == [0, 1, 1, 0]
    assert hf_mask(attention, threshold=1.0, hidden_fraction=0.25).flatten().tolist() == [1, 1, 0, 1]
    assert hf_mask(attention, threshold=1.0, hidden_fraction=0.25, hide="unimportant").flatten().tolist() == [
        0,
        1,
        1,
        1,
    ]
    assert hf_mask(attention, threshold=1.0, hidden_fraction=0.0).min() == 1
    assert hf_mask(attention, threshold=1.0, hidden_fraction=1.0).max() == 0


def test_mask_carries_no_gradient():
    attention = torch.rand(1, 1, 4, 4, requires_grad=True)
    assert not hf_mask(attention, threshold=1.0).requires_grad


def test_alpha_is_mgds_at_its_own_map_and_scales_inversely():
    assert default_alpha(512, 7, 7) == pytest.approx(7e-5)
    assert default_alpha(2048, 7, 7) == pytest.approx(7e-5 / 4)


def test_reconstruction_is_a_sum_over_the_map_divided_by_the_batch(rng):
    a, b = rng.normal(size=(3, 2, 4, 4)), rng.normal(size=(3, 2, 4, 4))
    assert float(reconstruction_loss(*tensors([a, b]))) == pytest.approx(((a - b) ** 2).sum() / 3, rel=1e-6)


def test_reconstruction_in_half_precision_does_not_overflow():
    a = torch.full((1, 2048, 7, 7), 4.0, dtype=torch.float16)
    assert float(reconstruction_loss(a, torch.zeros_like(a))) == pytest.approx(2048 * 49 * 16)


def test_generation_block_size():
    full = GenerationBlock(64)
    assert sum(p.numel() for p in full.parameters()) == 2 * (64 * 64 * 9 + 64)
    narrow = GenerationBlock(64, 16)
    assert sum(p.numel() for p in narrow.parameters()) == (64 * 16 * 9 + 16) + (16 * 64 * 9 + 64)
    assert isinstance(full[1], nn.GELU)


NAMES = ("l1", "l2", "l3", "l4")


def stage1(rng, levels, **settings):
    context = MethodContext(
        num_classes=8,
        student_final="s",
        student_shapes={"s": (5, 2, 2)},
        teacher_levels=NAMES,
        teacher_final="f",
        teacher_shapes={"f": (12, 2, 2)},
    )
    torch.manual_seed(1)
    method = HFMaskedGeneration(HFMaskedGenerationSettings(**settings), context).double()
    arrays = {
        "s": rng.normal(size=(3, 5, 2, 2)),
        "f": rng.normal(size=(3, 12, 2, 2)),
        "z": rng.normal(size=(3, 8)),
        "y": rng.integers(0, 8, 3),
    }
    return method, arrays


def run_stage1(method, arrays, levels):
    student_map = torch.tensor(arrays["s"], requires_grad=True)
    logits = torch.tensor(arrays["z"], requires_grad=True)
    teacher = {name: torch.tensor(a) for name, a in zip(NAMES, levels, strict=True)} | {"f": torch.tensor(arrays["f"])}
    inputs = StepInputs(
        labels=torch.tensor(arrays["y"]), student_logits=logits, student_maps={"s": student_map}, teacher_maps=teacher
    )
    return method(inputs), student_map, logits


def np_stage1(method, arrays, levels, alpha, eta=0.0):
    p = {k: v.detach().numpy() for k, v in method.state_dict().items()}
    aligned = (
        np.einsum("oc,bchw->bohw", p["align.weight"][:, :, 0, 0], arrays["s"]) + p["align.bias"][None, :, None, None]
    )
    mask = (np_hf(levels, 2) < 1.0).astype(float)
    hidden = np_gelu(np_conv3x3(aligned * mask, p["generation.0.weight"], p["generation.0.bias"]))
    rebuilt = np_conv3x3(hidden, p["generation.2.weight"], p["generation.2.bias"])
    loss = np_cross_entropy(arrays["z"], arrays["y"]) + alpha * ((rebuilt - arrays["f"]) ** 2).sum() / 3
    return loss + eta * ((aligned - arrays["f"]) ** 2).sum() / 3


@pytest.mark.parametrize("settings", [{}, {"generator_width": 4}, {"alpha": 0.02, "mimic_weight": 0.5}])
def test_stage1_golden(rng, levels, settings):
    method, arrays = stage1(rng, levels, **settings)
    out, _, _ = run_stage1(method, arrays, levels)
    expected = np_stage1(
        method, arrays, levels, settings.get("alpha", 7e-5 * 512 * 49 / (12 * 4)), settings.get("mimic_weight", 0.0)
    )
    assert float(out["loss"].detach()) == pytest.approx(expected, rel=1e-5)


def test_stage1_gradients_reach_student_align_and_generation(rng, levels):
    method, arrays = stage1(rng, levels)
    out, student_map, logits = run_stage1(method, arrays, levels)
    out["loss"].backward()
    assert student_map.grad.abs().sum() > 0 and logits.grad.abs().sum() > 0
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in method.parameters())


def test_a_fully_hidden_map_gives_the_student_no_feature_gradient(rng, levels):
    method, arrays = stage1(rng, levels, hidden_fraction=1.0)
    out, student_map, _ = run_stage1(method, arrays, levels)
    out["loss"].backward()
    assert student_map.grad.abs().sum() == 0


def test_cross_entropy_golden(rng):
    z, y = rng.normal(size=(4, 8)), rng.integers(0, 8, 4)
    out = CrossEntropy()(StepInputs(labels=torch.tensor(y), student_logits=torch.tensor(z), student_maps={}))
    assert float(out["loss"].detach()) == pytest.approx(np_cross_entropy(z, y), rel=1e-6)
