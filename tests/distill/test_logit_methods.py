"""Vanilla-KD and WSLD: golden values, and the mistakes that a port of either easily makes."""

import numpy as np
import pytest
import torch
from numpy_losses import np_cross_entropy, np_kd, np_log_softmax, np_softmax

from dspkd.distill import METHODS, MethodContext, StepInputs
from dspkd.distill.vanilla_kd import softened_divergence
from dspkd.distill.wsld import soft_cross_entropy, soft_label_weights

K = 8


@pytest.fixture
def batch():
    rng = np.random.default_rng(3)
    return rng.normal(size=(5, K)) * 3, rng.normal(size=(5, K)) * 4, rng.integers(0, K, 5)


def run(name, batch, **settings):
    z_s, z_t, y = batch
    method = METHODS[name].build(METHODS[name].Settings(**settings), MethodContext(num_classes=K))
    student, teacher = torch.tensor(z_s, requires_grad=True), torch.tensor(z_t, requires_grad=True)
    inputs = StepInputs(
        labels=torch.tensor(y), student_logits=student, student_maps={}, teacher_logits=teacher.detach()
    )
    out = method(inputs)
    out["loss"].backward()
    return out, student.grad.numpy()


def np_weights(z_s, z_t, y):
    of_student = -np_log_softmax(z_s)[np.arange(len(y)), y]
    of_teacher = -np_log_softmax(z_t)[np.arange(len(y)), y]
    return 1 - np.exp(-of_student / (of_teacher + 1e-7))


def np_wsld(z_s, z_t, y, temperature, alpha, weights):
    soft = -(np_softmax(z_t / temperature) * np_log_softmax(z_s / temperature)).sum(1)
    return np_cross_entropy(z_s, y) + alpha * temperature**2 * (weights * soft).mean()


def slope(f, z, i, j, step=1e-5):
    up, down = z.copy(), z.copy()
    up[i, j] += step
    down[i, j] -= step
    return (f(up) - f(down)) / (2 * step)


def test_vanilla_kd_golden(batch):
    z_s, z_t, y = batch
    out, grad = run("vanilla_kd", batch)
    assert float(out["loss"].detach()) == pytest.approx(
        0.1 * np_cross_entropy(z_s, y) + 0.9 * np_kd(z_s, z_t, 4), rel=1e-5
    )
    expected = slope(lambda z: 0.1 * np_cross_entropy(z, y) + 0.9 * np_kd(z, z_t, 4), z_s, 1, 2)
    assert grad[1, 2] == pytest.approx(expected, rel=1e-3)


def test_vanilla_kd_by_hand():
    # T = 2: p_t = softmax(1, -1), p_s reversed; KL = tanh(1) * 2, T² = 4.
    teacher = torch.tensor([[2.0, -2.0]])
    assert float(softened_divergence(-teacher, teacher, 2.0)) == pytest.approx(8 * np.tanh(1.0), rel=1e-6)


def test_the_divergence_is_not_divided_by_the_number_of_classes(batch):
    """The reduction trap: `reduction="mean"` divides by B K, which is K times weaker."""
    student, teacher = torch.tensor(batch[0]), torch.tensor(batch[1])
    by_elements = 16 * torch.nn.functional.kl_div(
        (student / 4).log_softmax(1), (teacher / 4).softmax(1), reduction="none"
    )
    assert float(softened_divergence(student, teacher, 4.0)) == pytest.approx(float(by_elements.sum() / 5), rel=1e-5)
    twice = softened_divergence(student.repeat(2, 1), teacher.repeat(2, 1), 4.0)
    assert float(twice) == pytest.approx(float(softened_divergence(student, teacher, 4.0)), rel=1e-6)


def test_the_size_of_the_gradient_does_not_fall_with_the_temperature():
    """The T² trap: at high temperatures T² KL tends to half the squared difference of the centred logits over K."""
    student, teacher = torch.tensor([[1.0, 0.0, -1.0]]), torch.tensor([[-2.0, 1.0, 1.0]])
    limit = float((student - teacher).square().sum() / 6)
    assert float(softened_divergence(student, teacher, 100.0)) == pytest.approx(limit, rel=1e-2)


def test_the_teacher_is_the_target_and_not_the_student(batch):
    """KL(t || s), not KL(s || t)."""
    z_s, z_t, _ = batch
    got = float(softened_divergence(torch.tensor(z_s), torch.tensor(z_t), 4.0))
    assert got == pytest.approx(np_kd(z_s, z_t, 4), rel=1e-5)
    assert got != pytest.approx(np_kd(z_t, z_s, 4), rel=1e-2)


@pytest.mark.parametrize("loss", [softened_divergence, lambda s, t, T: soft_cross_entropy(s, t, T).mean()])
def test_half_precision_logits_are_compared_in_float32(loss):
    torch.manual_seed(0)
    student = torch.randn(4, K).half()
    teacher = student + 0.01 * torch.randn(4, K).half()
    got = loss(student, teacher, 4.0)
    assert got.dtype == torch.float32
    assert float(got) == pytest.approx(float(loss(student.double(), teacher.double(), 4.0)), rel=1e-3)


def test_wsld_golden(batch):
    z_s, z_t, y = batch
    weights = np_weights(z_s, z_t, y)
    out, grad = run("wsld", batch)
    assert float(out["loss"].detach()) == pytest.approx(np_wsld(z_s, z_t, y, 2, 2.5, weights), rel=1e-5)
    assert float(out["mean_weight"]) == pytest.approx(weights.mean(), rel=1e-5)
    # The weights are constants: the slope is that of the loss with the weights held.
    held = slope(lambda z: np_wsld(z, z_t, y, 2, 2.5, weights), z_s, 0, 1)
    free = slope(lambda z: np_wsld(z, z_t, y, 2, 2.5, np_weights(z, z_t, y)), z_s, 0, int(y[0]))
    assert grad[0, 1] == pytest.approx(held, rel=1e-3)
    assert grad[0, int(y[0])] != pytest.approx(free, rel=1e-3)


def test_wslds_soft_term_is_a_cross_entropy(batch):
    """It differs from the divergence by the teacher's entropy: equal networks do not bring it to 0."""
    z = batch[1]
    entropy = -(np_softmax(z / 2) * np_log_softmax(z / 2)).sum(1)
    got = soft_cross_entropy(torch.tensor(z), torch.tensor(z), 2.0)
    np.testing.assert_allclose(got.numpy(), entropy, rtol=1e-5)


def test_wslds_weights_by_hand():
    labels = torch.tensor([0, 0, 0])
    log = torch.tensor([[0.5, 0.5], [0.5, 0.5], [0.9, 0.1]]).log()
    teacher = torch.tensor([[0.5, 0.5], [1.0, 1e-30], [0.5, 0.5]]).log()
    weights = soft_label_weights(log, teacher, labels)
    equal, certain_teacher, better_student = weights.tolist()
    assert equal == pytest.approx(1 - np.exp(-1), rel=1e-5)
    assert certain_teacher == pytest.approx(1.0)
    assert better_student == pytest.approx(1 - np.exp(np.log(0.9) / np.log(2)), rel=1e-5)


def test_the_defaults_are_the_published_ones():
    assert METHODS["vanilla_kd"].Settings().model_dump() == {
        "temperature": 4.0,
        "cross_entropy_weight": 0.1,
        "distillation_weight": 0.9,
    }
    # 2.25 with T = 4 are the values for CIFAR-100.
    assert METHODS["wsld"].Settings().model_dump() == {"temperature": 2.0, "distillation_weight": 2.5}
