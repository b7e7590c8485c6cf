"""Copies are found in all eight orientations and after what programs do to pictures; look-alikes are not."""

import io

import numpy as np
import pytest
from PIL import Image, ImageEnhance

from dspkd.data.fingerprints import duplicate_images, find_duplicates, take_fingerprints
from dspkd.data.near_duplicates import ORIENTATIONS, find_near_duplicates, orient, perceptual_hashes
from dspkd.data.sources import read_table
from dspkd.data.synthetic import make_synthetic_set


def picture(seed, size=(96, 96)):
    rng = np.random.default_rng(seed)
    blotches = Image.fromarray(rng.integers(0, 256, (12, 12, 3), dtype=np.uint8)).resize(size, Image.Resampling.BICUBIC)
    grain = rng.normal(0, 8, (size[1], size[0], 1))
    return Image.fromarray(np.clip(np.asarray(blotches) + grain, 0, 255).astype(np.uint8))


def thumbnails(pictures):
    return np.stack([np.asarray(p.convert("RGB").resize((32, 32), Image.Resampling.BOX)) for p in pictures])


def through_jpeg(image, quality):
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality)
    return Image.open(buffer)


@pytest.mark.parametrize("k", range(8))
def test_hashes_of_orientations_are_those_of_turned_pictures(k):
    images = thumbnails(map(picture, range(6)))
    turned = np.ascontiguousarray(orient(images, list(ORIENTATIONS)[k]))
    np.testing.assert_array_equal(perceptual_hashes(turned)[0], perceptual_hashes(images)[k])


@pytest.mark.parametrize(
    ("turn", "words"),
    [
        (Image.Transpose.ROTATE_90, "turned by 90 degrees counter-clockwise"),
        (Image.Transpose.ROTATE_270, "turned by 90 degrees clockwise"),
        (Image.Transpose.ROTATE_180, "turned by 180 degrees"),
        (Image.Transpose.FLIP_LEFT_RIGHT, "mirrored"),
    ],
)
def test_the_orientation_is_named(turn, words):
    image = picture(1)
    (pair,) = find_near_duplicates(thumbnails([image, picture(2), image.transpose(turn)]))
    assert (pair.first, pair.second, pair.orientation) == (0, 2, words)
    assert 0.999 < pair.similarity <= 1.000001


@pytest.mark.parametrize(
    "change",
    [
        lambda p: through_jpeg(p, 40),
        lambda p: p.resize((57, 57), Image.Resampling.BICUBIC),
        lambda p: ImageEnhance.Brightness(p).enhance(0.8),
        lambda p: ImageEnhance.Contrast(p).enhance(0.8),
        lambda p: ImageEnhance.Color(p).enhance(0.7),
        lambda p: p.convert("L"),
    ],
    ids=["jpeg", "smaller", "darker", "less contrast", "paler", "grey"],
)
def test_what_programs_do_to_pictures(change):
    originals = [picture(k) for k in range(20)]
    found = find_near_duplicates(thumbnails([*originals, *map(change, originals)]))
    assert [(pair.first, pair.second) for pair in found] == [(k, k + 20) for k in range(20)]


def test_all_pairs_of_a_family_and_across_blocks():
    pictures = [picture(k) for k in range(530)]
    pictures[3] = pictures[515] = pictures[529]
    found = find_near_duplicates(thumbnails(pictures))
    assert [(pair.first, pair.second) for pair in found] == [(3, 515), (3, 529), (515, 529)]


def test_look_alikes_are_none():
    """A dark blot in the middle inside a black circle: what all dermatoscopic pictures have in common."""
    y, x = np.mgrid[-1:1:96j, -1:1:96j]
    radius = np.hypot(x, y)
    pictures = []
    for seed in range(40):
        grain = np.asarray(picture(seed).convert("L"), float) - 128
        pixels = np.where(radius < 0.5, 90, 200) + 0.25 * grain
        pictures.append(Image.fromarray(np.where(radius > 0.95, 0, pixels).clip(0, 255).astype(np.uint8)))
    assert find_near_duplicates(thumbnails(pictures)) == []


def test_pictures_of_one_colour_are_none():
    assert find_near_duplicates(thumbnails([Image.new("RGB", (40, 40), (k, 90, 30)) for k in range(50)])) == []
    assert find_near_duplicates(np.zeros((0, 32, 32, 3), np.uint8)) == []


def test_drawn_lesions_are_all_different(tmp_path):
    make_synthetic_set(tmp_path / "drawn", lesions=40, size=48, seed=0)
    assert find_duplicates(take_fingerprints(read_table(tmp_path / "drawn"))) == []


@pytest.fixture
def folders(tmp_path):
    for k in range(6):
        path = tmp_path / "set" / "AB"[k % 2] / f"{k}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        picture(k).save(path)
    picture(0).transpose(Image.Transpose.ROTATE_90).save(tmp_path / "set" / "B" / "turned.jpg", quality=90)
    return tmp_path / "set"


def test_what_was_found_is_kept_until_a_file_changes(folders, tmp_path, monkeypatch):
    cache = tmp_path / "cache"
    pairs = duplicate_images(read_table(folders), cache_dir=cache)
    assert pairs == [("A/0", "B/turned")]
    with monkeypatch.context() as patch:
        patch.setattr("dspkd.data.fingerprints.take_fingerprints", lambda *_, **__: pytest.fail("decoded again"))
        assert duplicate_images(read_table(folders), cache_dir=cache) == pairs
    picture(7).save(folders / "B" / "turned.jpg")
    assert duplicate_images(read_table(folders), cache_dir=cache) == []


def test_a_spoiled_cache_is_made_again(folders, tmp_path):
    pairs = duplicate_images(read_table(folders), cache_dir=tmp_path / "cache")
    (path,) = (tmp_path / "cache").glob("*.json")
    path.write_text("[[1")
    assert duplicate_images(read_table(folders), cache_dir=tmp_path / "cache") == pairs
