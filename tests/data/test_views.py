"""Views are functions of (seed, image, view); the sampler is one of (seed, epoch)."""

from collections import Counter

import numpy as np
import pytest
import torch
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as transforms

from dspkd.config import AugmentConfig
from dspkd.data.views import BalancedSampler, ViewDataset, augment, make_loader, pixels_to_tensor, view_generator

OFF = AugmentConfig(flips=False, right_angles=False, crop_scale=1.0, color_jitter=0.0)


@pytest.fixture(scope="module")
def pixels():
    return np.random.default_rng(0).integers(0, 256, (12, 40, 40, 3), dtype=np.uint8)


LABELS = np.array([0] * 8 + [1] * 3 + [2])


def dataset(pixels, *, seed=0, config=None):
    ids = [f"image{i}" for i in range(len(pixels))]
    return ViewDataset(pixels, LABELS, ids, size=32, seed=seed, config=config or AugmentConfig())


def test_same_key_same_bits(pixels):
    first, second = dataset(pixels)[3, 7], dataset(pixels.copy())[3, 7]
    assert torch.equal(first[0], second[0]) and first[1] == second[1] == 0
    assert first[0].shape == (3, 32, 32) and first[0].dtype == torch.uint8


def test_torchs_global_generator_has_no_part_in_it(pixels):
    torch.manual_seed(1)
    first = dataset(pixels)[3, 7][0]
    torch.manual_seed(2)
    state = torch.get_rng_state()
    assert torch.equal(dataset(pixels)[3, 7][0], first)
    assert torch.equal(torch.get_rng_state(), state)


def test_another_seed_image_or_view_is_another_view(pixels):
    same = np.repeat(pixels[:1], 12, axis=0)  # one picture under twelve ids
    base = dataset(same)[0, 0][0]
    for other in (dataset(same)[0, 1][0], dataset(same)[1, 0][0], dataset(same, seed=1)[0, 0][0]):
        assert not torch.equal(base, other)


def test_generators_do_not_run_into_each_other():
    # Ids of class folders hold slashes and digits, which a careless joining would confuse with the view.
    draws = {
        torch.rand(4, generator=view_generator(seed, image, view)).numpy().tobytes()
        for seed in range(3)
        for image in ("a", "a/1", "1")
        for view in range(30)
    }
    assert len(draws) == 3 * 3 * 30


def test_switching_one_augmentation_off_leaves_the_others(pixels):
    image = torch.from_numpy(pixels[0].transpose(2, 0, 1).copy())
    for view in range(8):
        with_colour, without = (
            augment(image, 32, AugmentConfig(color_jitter=jitter), view_generator(0, "a", view))
            for jitter in (0.15, 0.0)
        )
        same_geometry = np.corrcoef(with_colour.numpy().ravel(), without.numpy().ravel())[0, 1]
        assert same_geometry > 0.97


def test_off_is_a_plain_resize(pixels):
    image = torch.from_numpy(pixels[0].transpose(2, 0, 1).copy())
    plain = transforms.resize(image, [32, 32], interpolation=InterpolationMode.BILINEAR, antialias=True)
    for view in range(5):
        assert torch.equal(augment(image, 32, OFF, view_generator(0, "a", view)), plain)
        assert torch.equal(augment(image, 40, OFF, view_generator(0, "a", view)), image)


@pytest.mark.parametrize(("name", "expected"), [("flips", 2), ("right_angles", 4), ("both", 8)])
def test_the_right_symmetries_and_no_others(name, expected):
    """An asymmetric picture without crop and colour: exactly the symmetries of a square turn up."""
    image = torch.arange(3 * 16 * 16, dtype=torch.uint8).view(3, 16, 16)
    config = OFF.model_copy(update=dict.fromkeys(("flips", "right_angles") if name == "both" else (name,), True))
    views = {augment(image, 16, config, view_generator(0, "a", view)).numpy().tobytes() for view in range(200)}
    symmetries = {
        torch.rot90(flipped, turns, dims=(-2, -1)).numpy().tobytes()
        for flipped in (image, image.flip(-1))
        for turns in range(4)
    }
    assert len(views) == expected and views <= symmetries


def test_crops_keep_at_least_the_configured_area():
    """On a ramp the span of values is the width of the crop."""
    ramp = torch.arange(0, 240, dtype=torch.uint8).repeat(3, 240, 1)
    config = OFF.model_copy(update={"crop_scale": 0.25})
    spans = []
    for view in range(300):
        row = augment(ramp, 240, config, view_generator(0, "a", view))[0, 120].float()
        spans.append(float(row[-1] - row[0]) / 239)
    assert 0.48 <= min(spans) < 0.55 and 0.95 < max(spans) <= 1.0


def batches(pixels, workers):
    sampler = BalancedSampler(np.arange(12), LABELS, balance=1.0, seed=5)
    loader = make_loader(dataset(pixels), sampler, batch_size=4, workers=workers)
    out = []
    for epoch in range(2):
        sampler.epoch = epoch
        out += list(loader)
    return out


def test_the_number_of_workers_does_not_matter(pixels):
    alone, two = batches(pixels, 0), batches(pixels, 2)
    assert len(alone) == len(two) == 6
    for (images, labels), (other_images, other_labels) in zip(alone, two, strict=True):
        assert torch.equal(images, other_images) and torch.equal(labels, other_labels)


def test_the_last_incomplete_batch_is_dropped_unless_it_is_the_only_one(pixels):
    sampler = BalancedSampler(np.arange(12), LABELS, balance=0.0, seed=0)
    assert [len(y) for _, y in make_loader(dataset(pixels), sampler, batch_size=5, workers=0)] == [5, 5]
    assert [len(y) for _, y in make_loader(dataset(pixels), sampler, batch_size=50, workers=0)] == [12]


def draw(*, balance, seed=0, epoch=0, positions=None, labels=LABELS):
    sampler = BalancedSampler(
        np.arange(len(labels)) if positions is None else positions, labels, balance=balance, seed=seed
    )
    sampler.epoch = epoch
    drawn = list(sampler)
    assert len(drawn) == len(sampler)
    return drawn


def test_balance_0_is_a_permutation_of_the_part():
    positions = np.array([1, 3, 5, 8, 11])
    drawn = [p for p, _ in draw(balance=0.0, positions=positions)]
    assert sorted(drawn) == positions.tolist()
    assert drawn != positions.tolist()


def test_balance_1_draws_the_classes_equally():
    drawn = draw(balance=1.0)
    assert Counter(LABELS[p] for p, _ in drawn) == {0: 4, 1: 4, 2: 4}
    # Every image of a class once before any twice.
    images = Counter(p for p, _ in drawn)
    assert max(images[p] for p in range(8)) == 1
    assert sorted(images[p] for p in range(8, 11)) == [1, 1, 2]
    assert images[11] == 4


def test_balance_in_between():
    labels = np.array([0] * 900 + [1] * 100)
    counts = Counter(labels[p] for p, _ in draw(balance=0.5, labels=labels))
    # Shares go with count^0.5: 30 to 10.
    assert counts == {0: 750, 1: 250}


def test_repeated_draws_and_epochs_are_other_views():
    views = [draw(balance=1.0, epoch=epoch) for epoch in range(3)]
    keys = [key for epoch in views for key in epoch]
    assert len(set(keys)) == len(keys)


def test_fixed_by_seed_and_epoch():
    assert draw(balance=1.0, seed=1, epoch=2) == draw(balance=1.0, seed=1, epoch=2)
    order = [p for p, _ in draw(balance=1.0, seed=1, epoch=2)]
    assert order != [p for p, _ in draw(balance=1.0, seed=1, epoch=3)]
    assert order != [p for p, _ in draw(balance=1.0, seed=2, epoch=2)]


def test_pixels_to_tensor(pixels):
    tensor = pixels_to_tensor(pixels[:2])
    assert tensor.shape == (2, 3, 40, 40) and tensor.dtype == torch.float32
    assert float(tensor[1, 2, 5, 6]) == pytest.approx(pixels[1, 5, 6, 2] / 255)
