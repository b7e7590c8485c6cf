"""Views are functions of (seed, image, view); the sampler is one of (seed, epoch)."""

import hashlib
import threading
from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as transforms

from dspkd.config import AugmentConfig
from dspkd.data import views as module
from dspkd.data.rand_augment import OPERATIONS, rand_augment, rare_classes
from dspkd.data.views import (
    BalancedSampler,
    TrainingViews,
    ViewLoader,
    augment,
    draw_views,
    pixels_to_tensor,
    shades_of_grey,
    view_numbers,
)

OFF = AugmentConfig(flips=False, right_angles=False, crop_scale=1.0, color_jitter=0.0)


@pytest.fixture(scope="module")
def pixels():
    return np.random.default_rng(0).integers(0, 256, (12, 40, 40, 3), dtype=np.uint8)


LABELS = np.array([0] * 8 + [1] * 3 + [2])


def source(pixels, *, seed=0, config=None, **more):
    ids = [f"image{i}" for i in range(len(pixels))]
    return TrainingViews(pixels, LABELS, ids, size=32, seed=seed, config=config or AugmentConfig(), **more)


def one(pixels, position, view, **more):
    """uint8 (3, 32, 32)"""
    return source(pixels, **more).batch([(position, view)]).pixels[0]


def views_of(image, size, config, count):
    """uint8 (count, 3, size, size): views 0, 1, ... of one picture (S, S, 3)."""
    many = np.repeat(image[None], count, axis=0)
    drawn = draw_views(0, ["a"] * count, range(count), image.shape[0], config)
    return augment(torch.from_numpy(many), drawn, size)


def test_same_key_same_bits(pixels):
    first, second = one(pixels, 3, 7), one(pixels.copy(), 3, 7)
    assert torch.equal(first, second)
    assert first.shape == (3, 32, 32) and first.dtype == torch.uint8


def test_a_view_does_not_depend_on_its_batch(pixels):
    keys = [(position, view) for position in range(12) for view in range(9)]
    together = source(pixels).batch(keys)
    assert together.labels.tolist() == [LABELS[position] for position, _ in keys]
    assert list(zip(together.positions, together.views, strict=True)) == keys
    for (position, view), image in zip(keys, together.pixels, strict=True):
        assert torch.equal(image, one(pixels, position, view))


def test_a_view_does_not_depend_on_the_number_of_threads():
    """PyTorch divides sums of more than 32,768 numbers over its threads."""
    sources = np.random.default_rng(3).integers(0, 256, (8, 240, 240, 3), dtype=np.uint8)
    large = TrainingViews(sources, np.zeros(8, np.int64), [str(i) for i in range(8)], 224, 0, AugmentConfig())
    keys = [(i, view) for i in range(8) for view in range(4)]
    before, made = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 4):
            torch.set_num_threads(threads)
            made.append(large.batch(keys).pixels)
    finally:
        torch.set_num_threads(before)
    assert torch.equal(made[0], made[1]) and torch.equal(made[0], made[2])


def test_torchs_global_generator_has_no_part_in_it(pixels):
    config = AugmentConfig(rand_augment="all")
    torch.manual_seed(1)
    first = one(pixels, 3, 7, config=config)
    torch.manual_seed(2)
    state = torch.get_rng_state()
    assert torch.equal(one(pixels, 3, 7, config=config), first)
    assert torch.equal(torch.get_rng_state(), state)


def test_another_seed_image_or_view_is_another_view(pixels):
    same = np.repeat(pixels[:1], 12, axis=0)  # one picture under twelve ids
    base = one(same, 0, 0)
    for other in (one(same, 0, 1), one(same, 1, 0), one(same, 0, 0, seed=1)):
        assert not torch.equal(base, other)


def test_numbers_do_not_run_into_each_other():
    # Ids of class folders hold slashes and digits, which a careless joining would confuse with the view.
    draws = {
        view_numbers(seed, image, view).tobytes()
        for seed in range(3)
        for image in ("a", "a/1", "1")
        for view in range(30)
    }
    assert len(draws) == 3 * 3 * 30


def test_numbers_are_the_same_on_every_machine():
    """Of BLAKE2b, by hand: hashlib.blake2b(b"7/lesion/5", digest_size=64, salt=b"\\0"), first eight bytes."""
    digest = hashlib.blake2b(b"7/lesion/5", digest_size=64, salt=bytes(1)).digest()
    expected = (int.from_bytes(digest[:8], "little") >> 11) / 2**53
    assert view_numbers(7, "lesion", 5)[0] == expected


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 2**31), image=st.text(max_size=40), view=st.integers(0, 2**40))
def test_numbers_lie_in_the_unit_interval(seed, image, view):
    numbers = view_numbers(seed, image, view)
    assert numbers.shape == (16,) and (numbers >= 0).all() and (numbers < 1).all()
    assert (numbers == view_numbers(seed, image, view)).all()


def test_numbers_are_uniform():
    numbers = np.stack([view_numbers(0, "a", view) for view in range(4000)])
    assert abs(numbers.mean(0) - 0.5).max() < 5 * (1 / 12 / 4000) ** 0.5
    assert abs(np.corrcoef(numbers.T) - np.eye(16)).max() < 5 / 4000**0.5


@settings(max_examples=100, deadline=None)
@given(
    size=st.integers(1, 300),
    scale=st.floats(0.01, 1.0),
    jitter=st.floats(0.0, 0.99),
    view=st.integers(0, 1000),
)
def test_every_crop_lies_inside(size, scale, jitter, view):
    config = AugmentConfig(crop_scale=scale, color_jitter=jitter)
    drawn = draw_views(0, ["a"], [view], size, config)
    assert 1 <= drawn.side[0] <= size
    assert 0 <= drawn.top[0] <= size - drawn.side[0] and 0 <= drawn.left[0] <= size - drawn.side[0]
    assert drawn.side[0] ** 2 >= (size * size * scale) * (1 - 1 / max(1, drawn.side[0])) ** 2 - 1
    for factor in (drawn.brightness, drawn.contrast, drawn.saturation):
        assert abs(factor[0] - 1) <= jitter + 1e-6


def test_switching_one_augmentation_off_leaves_the_others(pixels):
    on, off = (draw_views(0, ["a"] * 8, range(8), 40, AugmentConfig(color_jitter=jitter)) for jitter in (0.15, 0.0))
    for name in ("top", "left", "side", "flip", "turns", "extra"):
        assert (getattr(on, name) == getattr(off, name)).all()
    assert (off.contrast == 1).all() and (on.contrast != 1).all()


def test_off_is_a_plain_resize(pixels):
    image = torch.from_numpy(pixels[0].transpose(2, 0, 1).copy())
    plain = transforms.resize(image, [32, 32], interpolation=InterpolationMode.BILINEAR, antialias=True)
    assert all(torch.equal(view, plain) for view in views_of(pixels[0], 32, OFF, 5))
    assert all(torch.equal(view, image) for view in views_of(pixels[0], 40, OFF, 5))


def test_the_batch_is_what_torchvision_makes_of_each_picture(pixels):
    """Its colour steps on floats, since on bytes it rounds down after each of them."""
    drawn = draw_views(3, ["a"] * 12, range(12), 40, AugmentConfig(color_jitter=0.2))
    # Nothing is clipped on the way: torchvision would do so after each step.
    pixels = 100 + pixels // 5
    batch = augment(torch.from_numpy(pixels), drawn, 32)
    for i, picture in enumerate(pixels):
        image = torch.from_numpy(picture.transpose(2, 0, 1).copy())
        side = int(drawn.side[i])
        image = transforms.resized_crop(
            image, int(drawn.top[i]), int(drawn.left[i]), side, side, [32, 32], antialias=True
        )
        image = torch.rot90(image.flip(-1) if drawn.flip[i] else image, int(drawn.turns[i]), dims=(-2, -1))
        image = transforms.adjust_brightness(image.float() / 255, float(drawn.brightness[i]))
        image = transforms.adjust_contrast(image, float(drawn.contrast[i]))
        image = transforms.adjust_saturation(image, float(drawn.saturation[i]))
        assert (batch[i] - 255 * image).abs().max() < 0.51


@pytest.mark.parametrize("size", [20, 32, 40, 55])
def test_the_way_for_gpus_cuts_and_turns_the_same(pixels, size):
    drawn = draw_views(3, ["a"] * 12, range(12), 40, AugmentConfig(crop_scale=0.2, color_jitter=0.0))
    sources = torch.from_numpy(pixels)
    one_by_one = augment(sources, drawn, size)
    at_once = module._turned(module._cut_by_matrices(sources, drawn, size), drawn)
    assert one_by_one.shape == at_once.shape == (12, 3, size, size)
    assert (one_by_one.int() - at_once.int()).abs().max() <= 1


@pytest.mark.parametrize("size", [17, 40, 64])
def test_the_way_for_gpus_colours_the_same(size):
    """Also light that is taken away first; sizes whose rows do not fill a processor's registers."""
    sources = np.random.default_rng(4).integers(0, 256, (12, size, size, 3), dtype=np.uint8)
    config = OFF.model_copy(update={"color_jitter": 0.5, "color_constancy": 0.5})
    drawn = draw_views(3, ["a"] * 12, range(12), size, config)
    one_by_one = augment(torch.from_numpy(sources), drawn, size)
    plain = torch.from_numpy(sources.transpose(0, 3, 1, 2).copy())
    at_once = module._coloured(module._under_white_light(plain, drawn), drawn)
    # Halves are rounded to the next even level by the one and up by the other.
    assert (one_by_one.int() - at_once.int()).abs().max() <= 1
    assert (one_by_one != at_once).float().mean() < 0.01


# Colour constancy ---------------------------------------------------------------------------------


def lit(pixels, light):
    """Under light of this colour, uint8 (B, 3, H, W)."""
    return torch.from_numpy(np.rint(pixels * np.array(light)).astype(np.uint8)).permute(0, 3, 1, 2)


def test_shades_of_grey_takes_the_colour_of_the_light_away(pixels):
    plain = pixels // 2
    white, reddish = (shades_of_grey(lit(plain, light)).double() for light in ((1, 1, 1), (1, 0.7, 0.6)))
    # In the same strength of light they would be the same.
    ratio = white.flatten(1).mean(1) / reddish.flatten(1).mean(1)
    assert (white - reddish * ratio.view(-1, 1, 1, 1)).abs().max() < 3
    assert (lit(plain, (1, 1, 1)) - lit(plain, (1, 0.7, 0.6)).double()).abs().max() > 40


def test_shades_of_grey_by_hand():
    """Finlayson and Trezzi: I_c / (e_c √3), e the channels' 6-norms at length 1."""
    image = np.random.default_rng(1).integers(1, 120, (1, 5, 7, 3))
    norms = (image.astype(float) ** 6).mean((1, 2)) ** (1 / 6)
    light = norms / np.linalg.norm(norms)
    expected = np.rint(np.clip(image / (light * np.sqrt(3)), 0, 255))
    got = shades_of_grey(torch.from_numpy(image.astype(np.uint8)).permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
    assert np.abs(got.numpy() - expected).max() <= 1 and (got.numpy() == expected).mean() > 0.99


def test_what_is_grey_or_black_stays():
    ramp = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16).expand(2, 3, 16, 16)
    assert torch.equal(shades_of_grey(ramp), ramp)
    assert not shades_of_grey(torch.zeros(1, 3, 4, 4, dtype=torch.uint8)).any()


def test_as_many_views_as_asked_for_and_the_other_draws_stay():
    none, half, all_ = (
        draw_views(0, ["a"] * 400, range(400), 40, AugmentConfig(color_constancy=share)) for share in (0.0, 0.5, 1.0)
    )
    assert not none.constancy.any() and all_.constancy.all() and 160 < half.constancy.sum() < 240
    for name in ("top", "left", "side", "flip", "turns", "brightness", "contrast", "saturation", "extra"):
        assert (getattr(none, name) == getattr(half, name)).all()


def test_only_the_drawn_views_are_changed(pixels):
    keys = [(position, view) for position in range(12) for view in range(5)]
    off, half = (
        source(pixels, config=OFF.model_copy(update={"color_constancy": share})).batch(keys).pixels
        for share in (0.0, 0.5)
    )
    drawn = draw_views(0, [f"image{p}" for p, _ in keys], [v for _, v in keys], 40, AugmentConfig(color_constancy=0.5))
    chosen = torch.from_numpy(drawn.constancy)
    assert torch.equal(half[~chosen], off[~chosen]) and 0 < chosen.sum() < len(keys)
    assert torch.equal(half[chosen], shades_of_grey(off[chosen]))


def test_a_view_with_it_does_not_depend_on_its_batch(pixels):
    config = AugmentConfig(color_constancy=0.7)
    keys = [(position, view) for position in range(12) for view in range(4)]
    for (position, view), image in zip(keys, source(pixels, config=config).batch(keys).pixels, strict=True):
        assert torch.equal(image, one(pixels, position, view, config=config))


def test_colours_end_at_black_and_white():
    image = np.zeros((8, 8, 3), np.uint8)
    image[:4] = 255
    views = views_of(image, 8, OFF.model_copy(update={"color_jitter": 0.9}), 40)
    assert int(views.min()) == 0 and int(views.max()) == 255
    # Grey stays grey, and what was brighter stays brighter.
    assert (views[:, 0] == views[:, 1]).all() and (views[:, :, 0] >= views[:, :, 7]).all()


@pytest.mark.parametrize(("name", "expected"), [("flips", 2), ("right_angles", 4), ("both", 8)])
def test_the_right_symmetries_and_no_others(name, expected):
    """An asymmetric picture without crop and colour: exactly the symmetries of a square turn up."""
    image = torch.arange(3 * 8 * 8, dtype=torch.uint8).view(3, 8, 8)
    config = OFF.model_copy(update=dict.fromkeys(("flips", "right_angles") if name == "both" else (name,), True))
    views = {view.numpy().tobytes() for view in views_of(image.permute(1, 2, 0).numpy(), 8, config, 200)}
    symmetries = {
        torch.rot90(flipped, turns, dims=(-2, -1)).numpy().tobytes()
        for flipped in (image, image.flip(-1))
        for turns in range(4)
    }
    assert len(views) == expected and views <= symmetries


def test_crops_keep_at_least_the_configured_area():
    """On a ramp the span of values is the width of the crop."""
    ramp = np.broadcast_to(np.arange(240, dtype=np.uint8)[None, :, None], (240, 240, 3))
    rows = views_of(ramp, 240, OFF.model_copy(update={"crop_scale": 0.25}), 300)[:, 0, 120].float()
    spans = (rows[:, -1] - rows[:, 0]) / 239
    assert 0.48 <= float(spans.min()) < 0.55 and 0.95 < float(spans.max()) <= 1.0


def batches(pixels, workers):
    sampler = BalancedSampler(np.arange(12), LABELS, balance=1.0, seed=5)
    loader = ViewLoader(source(pixels), sampler, batch_size=4, workers=workers)
    out = []
    for epoch in range(2):
        sampler.epoch = epoch
        out += list(loader)
    return out


@pytest.mark.parametrize("workers", [1, 2])
def test_the_number_of_workers_does_not_matter(pixels, workers):
    alone, others = batches(pixels, 0), batches(pixels, workers)
    assert len(alone) == len(others) == 6
    for batch, other in zip(alone, others, strict=True):
        assert torch.equal(batch.pixels, other.pixels) and torch.equal(batch.labels, other.labels)
        assert (batch.positions == other.positions).all() and (batch.views == other.views).all()


def test_an_epoch_that_is_left_early_ends_its_workers(pixels):
    sampler = BalancedSampler(np.arange(12), LABELS, balance=1.0, seed=5)
    before = threading.active_count()
    for _ in ViewLoader(source(pixels), sampler, batch_size=4, workers=2):
        break
    assert threading.active_count() == before


def test_the_last_incomplete_batch_is_dropped_unless_it_is_the_only_one(pixels):
    sampler = BalancedSampler(np.arange(12), LABELS, balance=0.0, seed=0)
    for batch_size, expected in ((5, [5, 5]), (50, [12])):
        loader = ViewLoader(source(pixels), sampler, batch_size=batch_size)
        assert [len(batch.labels) for batch in loader] == expected and len(loader) == len(expected)


# RandAugment --------------------------------------------------------------------------------------


def test_the_papers_fourteen_operations():
    assert len(OPERATIONS) == 14
    image = torch.from_numpy(np.random.default_rng(0).integers(30, 200, (3, 32, 32), dtype=np.uint8))
    for name, operation in OPERATIONS.items():
        changed = operation(image, 0.5)
        assert changed.shape == image.shape and changed.dtype == torch.uint8
        assert torch.equal(changed, image) == (name == "identity"), name
        if name not in ("auto_contrast", "equalize", "identity", "posterize", "solarize"):
            assert not torch.equal(operation(image, -0.5), changed), name


def test_one_to_three_operations(monkeypatch):
    calls = []
    for name in list(OPERATIONS):
        monkeypatch.setitem(OPERATIONS, name, lambda image, m, name=name: calls.append((name, m)) or image)
    image = torch.zeros(3, 8, 8, dtype=torch.uint8)
    counts, seen, strengths = Counter(), set(), []
    for view in range(600):
        calls.clear()
        rand_augment(image, view_numbers(0, "a", view)[8:15], 0.3)
        counts[len(calls)] += 1
        seen |= {name for name, _ in calls}
        strengths += [m for _, m in calls]
    assert set(counts) == {1, 2, 3} and min(counts.values()) > 150
    assert seen == set(OPERATIONS)
    assert -0.3 <= min(strengths) < -0.28 and 0.28 < max(strengths) <= 0.3


def test_a_shifted_picture_has_no_black_edge():
    image = torch.full((3, 20, 20), 90, dtype=torch.uint8)
    for name in ("rotate", "shear_x", "shear_y", "translate_x", "translate_y"):
        assert int(OPERATIONS[name](image, 0.9).min()) == 90, name


def test_only_rare_classes_get_it(pixels):
    rare = rare_classes(LABELS)
    assert rare.tolist() == [1, 2]
    keys = [(position, 0) for position in range(12)]
    plain = source(pixels).batch(keys).pixels
    config = AugmentConfig(rand_augment="rare", rand_augment_magnitude=1.0)
    changed = source(pixels, config=config, rare=frozenset(rare.tolist())).batch(keys).pixels
    differs = [not torch.equal(a, b) for a, b in zip(plain, changed, strict=True)]
    assert not any(differs[:8]) and sum(differs[8:]) >= 3


# The sampler --------------------------------------------------------------------------------------


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
