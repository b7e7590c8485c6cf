"""Hairs drawn over synthetic lesions are found and removed, and what has none stays as it is."""

import numpy as np
import pytest
from PIL import Image, ImageDraw

from dspkd.cleaning import HAIR_THRESHOLD, Cleaning
from dspkd.data.hair import hair_cover, hair_mask, remove_hair
from dspkd.data.pixels import cached_pixels, pixel_cache
from dspkd.data.synthetic import draw_lesion
from dspkd.data.table import Sample, Table
from dspkd.preprocess import Preprocess, clean_square, load_pixels, load_rgb

SIDE = 256


def lesion(number):
    return draw_lesion("PLAIN", seed=3, lesion=number, size=SIDE)


def with_hairs(clean, *, seed=0, count=9, width=2, colour=(40, 30, 25)):
    """The picture with curves over it, and where they are."""
    rng, side = np.random.default_rng(seed), len(clean)
    sheet = Image.new("L", (4 * side, 4 * side))
    pen = ImageDraw.Draw(sheet)
    for _ in range(count):
        start, end, bend = rng.uniform(0, 4 * side, 2), rng.uniform(0, 4 * side, 2), rng.normal(0, side / 4, 2)
        t = np.linspace(0, 1, 40)[:, None]
        curve = (1 - t) * start + t * end + 4 * t * (1 - t) * bend
        pen.line([tuple(point) for point in curve], fill=255, width=round(4 * width * side / SIDE), joint="curve")
    cover = np.asarray(sheet.resize((side, side), Image.Resampling.BOX)) / 255
    hairy = clean * (1 - 0.85 * cover[..., None]) + np.array(colour) * 0.85 * cover[..., None]
    return np.rint(hairy).astype(np.uint8), cover >= 0.5


def mean_error(picture, clean, where):
    return np.abs(picture.astype(int) - clean)[where].mean()


@pytest.fixture(scope="module")
def clean():
    """Four lesions that the seed has drawn no hairs over."""
    found = [picture for picture in map(lesion, range(10)) if not hair_mask(picture).any()]
    assert len(found) >= 4
    return found[:4]


@pytest.mark.parametrize("width", [1.5, 2, 3, 4])
def test_drawn_hairs_are_found_and_removed(clean, width):
    for k, picture in enumerate(clean):
        hairy, true = with_hairs(picture, seed=k, width=width)
        found = hair_mask(hairy)
        assert (found & true).sum() / (found | true).sum() > 0.6
        assert hair_cover(found) == found.mean() > HAIR_THRESHOLD
        after = remove_hair(hairy, HAIR_THRESHOLD)
        assert mean_error(after, picture, true) < 0.35 * mean_error(hairy, picture, true)
        # What is no hair and not beside one is not touched.
        spread = np.pad(found, 1)
        near = np.any([spread[i : i + SIDE, j : j + SIDE] for i in range(3) for j in range(3)], axis=0)
        assert np.array_equal(after[~near], hairy[~near])


def test_below_the_threshold_nothing_changes(clean):
    for picture in clean:
        assert remove_hair(picture, 0.0) is picture
    hairy, _ = with_hairs(clean[0])
    cover = hair_cover(hair_mask(hairy))
    assert remove_hair(hairy, cover) is hairy
    assert not np.array_equal(remove_hair(hairy, cover - 1e-6), hairy)


@pytest.mark.parametrize(
    ("name", "colour", "width"), [("light hairs", (240, 235, 225), 2), ("a broad stripe", (40, 30, 25), 16)]
)
def test_what_is_no_dark_hair_is_left_alone(clean, name, colour, width):
    picture, true = with_hairs(clean[0], colour=colour, width=width, count=3)
    found = hair_mask(picture)
    assert found[true].mean() < 0.1


def test_dots_are_no_hairs():
    rng = np.random.default_rng(0)
    sheet = Image.new("RGB", (SIDE, SIDE), (210, 170, 150))
    pen = ImageDraw.Draw(sheet)
    for x, y in rng.uniform(0, SIDE, (60, 2)):
        pen.ellipse((x - 3, y - 3, x + 3, y + 3), fill=(60, 40, 30))
    assert hair_mask(np.asarray(sheet)).mean() < 0.002


@pytest.mark.parametrize("rows", [slice(0, 1), slice(-3, None)])
def test_a_frame_is_no_hair(clean, rows):
    framed = clean[0].copy()
    framed[rows] = 0
    assert not hair_mask(framed).any()
    assert not hair_mask(np.ascontiguousarray(framed.swapaxes(0, 1))).any()


def test_a_turned_picture_has_the_turned_mask(clean):
    hairy, _ = with_hairs(clean[1])
    found, turned = hair_mask(hairy), hair_mask(np.ascontiguousarray(np.rot90(hairy)))
    assert (np.rot90(found) & turned).sum() / (np.rot90(found) | turned).sum() > 0.95


@pytest.mark.parametrize("side", [16, 40, 128, 700])
def test_any_side(side):
    picture = np.asarray(Image.fromarray(with_hairs(lesion(1))[0]).resize((side, side)))
    after = remove_hair(picture, 0.0)
    assert after.shape == picture.shape and after.dtype == np.uint8
    assert np.array_equal(after, remove_hair(picture, 0.0))


def test_a_large_picture_loses_its_hairs_at_its_own_size(clean):
    large = np.asarray(Image.fromarray(clean[2]).resize((900, 900), Image.Resampling.BICUBIC))
    hairy, true = with_hairs(large, width=3)
    after = remove_hair(hairy, HAIR_THRESHOLD)
    assert after.shape == (900, 900, 3)
    assert mean_error(after, large, true) < 0.2 * mean_error(hairy, large, true)
    assert (after == hairy).all(-1).mean() > 0.7


# As part of preprocessing --------------------------------------------------------------------------

ON = Cleaning(hair_removal=True)


@pytest.fixture
def files(clean, tmp_path):
    """A picture with hairs and one without, both wider than high, as JPEG."""
    large = np.asarray(Image.fromarray(clean[1]).resize((512, 512), Image.Resampling.BICUBIC))
    for name, picture in (("hairy", with_hairs(large, width=3)[0]), ("clean", large)):
        wide = np.concatenate([picture[:, ::-1], picture], axis=1)[:, 256 - 80 : 768 + 80]
        Image.fromarray(wide).save(tmp_path / f"{name}.jpg", quality=95)
    samples = tuple(Sample(name, tmp_path / f"{name}.jpg", 0, name) for name in ("hairy", "clean"))
    return Table(tmp_path, ("A",), samples)


def test_off_is_as_before(files):
    for sample in files.samples:
        image = load_rgb(sample.path)
        assert clean_square(image, Cleaning()) is image


def test_only_the_hairy_picture_changes(files):
    for sample, changes in zip(files.samples, (True, False), strict=True):
        off, on = (load_pixels(sample.path, Preprocess(size=64, cleaning=cleaning)) for cleaning in (Cleaning(), ON))
        assert np.array_equal(off, on) is not changes


def test_training_pixels_are_cleaned_like_those_that_judge(files, tmp_path):
    """A JPEG of 512 px would come at half its size for 40 px, and a hair of it would be another one."""
    form = Preprocess(size=40, cleaning=ON)
    judged = cached_pixels(files, form, cache_dir=tmp_path / "cache")
    learnt = cached_pixels(files, form, for_training=True, cache_dir=tmp_path / "cache")
    np.testing.assert_array_equal(judged[0], load_pixels(files.samples[0].path, form))
    assert np.abs(judged.astype(int) - learnt).max() <= 1
    hairy = cached_pixels(files, Preprocess(size=40), cache_dir=tmp_path / "cache")
    assert np.abs(hairy[0].astype(int) - learnt[0]).max() > 20


def test_the_cache_of_before_is_still_that_of_off(files, tmp_path):
    def name(**cleaning):
        form = Preprocess(size=64, cleaning=Cleaning(**cleaning))
        return pixel_cache(files, form, cache_dir=tmp_path).path.name

    off = name()
    assert off == pixel_cache(files, Preprocess(size=64, mean=(0, 0, 0)), cache_dir=tmp_path).path.name
    on = [
        name(hair_removal=True),
        name(hair_removal=True, hair_threshold=0.02),
        name(illumination=True),
        name(hair_removal=True, illumination=True),
    ]
    assert len({off, *on}) == 5
