"""The cache of decoded pixels, and decoding itself."""

import errno
import os
import re
import struct
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dspkd.data import pixels as module
from dspkd.data.pixels import cached_pixels, default_cache_dir, largest_square, pixel_cache
from dspkd.data.sources import Sample, Table, read_table
from dspkd.errors import DataError, OutputError
from dspkd.preprocess import Preprocess, load_pixels, load_rgb

COLOURS = [(250, 10, 10), (10, 250, 10), (10, 10, 250), (90, 90, 90)]


@pytest.fixture
def table(tmp_path):
    samples = []
    for k, colour in enumerate(COLOURS):
        path = tmp_path / f"{k}.bmp"
        Image.new("RGB", (40, 30), colour).save(path)
        samples.append(Sample(str(k), path, k % 2, str(k)))
    return Table(tmp_path, ("A", "B"), tuple(samples))


@pytest.fixture
def cache(tmp_path):
    return tmp_path / "cache"


def test_rows_are_in_the_tables_order(table, cache):
    array = cached_pixels(table, Preprocess(size=16), cache_dir=cache)
    assert array.shape == (4, 16, 16, 3) and array.dtype == np.uint8
    assert [tuple(row[8, 8]) for row in array] == COLOURS
    backwards = Table(table.root, table.classes, table.samples[::-1])
    assert [tuple(row[8, 8]) for row in cached_pixels(backwards, Preprocess(size=16), cache_dir=cache)] == COLOURS[::-1]


def test_same_pixels_as_a_single_picture(table, cache):
    array = cached_pixels(table, Preprocess(size=20, interpolation="bicubic"), cache_dir=cache)
    one = load_pixels(table.samples[2].path, Preprocess(size=20, interpolation="bicubic"))
    np.testing.assert_array_equal(array[2], one)


def test_the_cache_is_made_once_and_cannot_be_written(table, cache, monkeypatch):
    reports = []
    first = cached_pixels(table, Preprocess(size=16), cache_dir=cache, progress=lambda *report: reports.append(report))
    assert reports == [(4, 4, "decoding images at 16 px")]

    def refuse(_path):
        raise AssertionError("decoded again")

    monkeypatch.setattr(module, "load_rgb", refuse)
    second = cached_pixels(table, Preprocess(size=16), cache_dir=cache)
    np.testing.assert_array_equal(first, second)
    assert len(list(cache.glob("*.npy"))) == 1
    with pytest.raises(ValueError, match="read-only"):
        second[0] = 0


def test_settings_have_caches_of_their_own(table, cache):
    for size, interpolation in ((16, "bilinear"), (16, "bicubic"), (24, "bilinear")):
        cached_pixels(table, Preprocess(size=size, interpolation=interpolation), cache_dir=cache)
    assert len(list(cache.glob("*.npy"))) == 3


def test_a_changed_file_gives_a_new_cache(table, cache):
    cached_pixels(table, Preprocess(size=16), cache_dir=cache)
    path = table.samples[0].path
    before = path.stat()
    Image.new("RGB", (40, 30), (1, 2, 3)).save(path)
    # BMP is not compressed: the size stays, so that the time alone has to tell.
    assert path.stat().st_size == before.st_size
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns + 1_000_000))
    array = cached_pixels(table, Preprocess(size=16), cache_dir=cache)
    assert tuple(array[0, 8, 8]) == (1, 2, 3)


@pytest.mark.parametrize("fault", ["truncated", "missing", "no picture"])
def test_a_bad_picture_is_named(table, cache, fault):
    path = table.root / "bad.jpg"
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 255, (64, 64, 3), dtype=np.uint8)).save(path)
    data = path.read_bytes()
    if fault == "missing":
        path.unlink()
    else:
        path.write_bytes(data[: len(data) // 2] if fault == "truncated" else b"GIF? no.")
    broken = Table(table.root, table.classes, (*table.samples, Sample("bad", path, 0, "bad")))
    with pytest.raises(DataError, match=r"bad\.jpg"):
        cached_pixels(broken, Preprocess(size=16), cache_dir=cache)
    # The others are there, and who does not need the bad one can go on.
    good = cached_pixels(broken, Preprocess(size=16), positions=[0, 1, 2, 3], cache_dir=cache)
    assert [tuple(row[8, 8]) for row in good[:4]] == COLOURS
    with pytest.raises(DataError, match=r"bad\.jpg"):
        cached_pixels(broken, Preprocess(size=16), cache_dir=cache)


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_of_several_bad_pictures_the_first_is_named(folders, cache, monkeypatch, threads):
    monkeypatch.setattr(module.os, "cpu_count", lambda: threads)
    table = read_table(folders)
    for bad in (3, 4, 20):
        table.samples[bad].path.write_bytes(b"no picture")
    with pytest.raises(DataError, match=re.escape(str(table.samples[3].path))):
        cached_pixels(table, Preprocess(size=16), cache_dir=cache)


def test_only_what_is_asked_for_is_decoded(table, cache, monkeypatch):
    decoded = []
    monkeypatch.setattr(module, "load_rgb", lambda path, **_: decoded.append(path.name) or load_rgb(path))
    array = cached_pixels(table, Preprocess(size=16), positions=[2, 0], cache_dir=cache)
    assert sorted(decoded) == ["0.bmp", "2.bmp"]
    assert [tuple(row[8, 8]) for row in array] == [COLOURS[0], (0, 0, 0), COLOURS[2], (0, 0, 0)]
    assert [tuple(row[8, 8]) for row in cached_pixels(table, Preprocess(size=16), cache_dir=cache)] == COLOURS
    assert sorted(decoded) == ["0.bmp", "1.bmp", "2.bmp", "3.bmp"]


KILLED = """
import os, sys
from pathlib import Path
from dspkd.data import pixels
from dspkd.data.sources import read_table
from dspkd.preprocess import Preprocess

pixels.BLOCK = 4
real, count = pixels.load_rgb, 0

def load(path, **how):
    global count
    count += 1
    if count == int(sys.argv[3]):
        os.kill(os.getpid(), 9)
    return real(path, **how)

pixels.load_rgb = load
pixels.cached_pixels(read_table(Path(sys.argv[1])), Preprocess(size=16), cache_dir=Path(sys.argv[2]))
"""


@pytest.fixture
def folders(tmp_path):
    """24 pictures in class folders, none like another."""
    for k in range(24):
        path = tmp_path / "data" / "AB"[k % 2] / f"{k}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (20, 20), (10 * k, 255 - 10 * k, 7)).save(path)
    return tmp_path / "data"


@pytest.mark.parametrize("at", [1, 14])
def test_a_killed_process_is_gone_on_from(folders, cache, monkeypatch, at):
    command = [sys.executable, "-c", KILLED, str(folders), str(cache), str(at)]
    assert subprocess.run(command, check=False).returncode == -9
    table = read_table(folders)
    cache_of_table = pixel_cache(table, Preprocess(size=16), cache_dir=cache)
    there = 24 - len(cache_of_table.missing(np.arange(24)))
    # Whole blocks; the last finished one may not have reached the disk.
    assert there in ({0} if at == 1 else {8, 12})
    decoded = []
    monkeypatch.setattr(module, "load_rgb", lambda path, **_: decoded.append(path) or load_rgb(path))
    array = cached_pixels(table, Preprocess(size=16), cache_dir=cache)
    assert len(decoded) == 24 - there
    for row, sample in zip(array, table.samples, strict=True):
        assert tuple(row[8, 8]) == Image.open(sample.path).getpixel((0, 0))


def test_a_kill_between_the_two_files_costs_a_decoding(table, cache):
    cached_pixels(table, Preprocess(size=16), cache_dir=cache)
    (marks,) = cache.glob("*.done")
    marks.unlink()
    assert [tuple(row[8, 8]) for row in cached_pixels(table, Preprocess(size=16), cache_dir=cache)] == COLOURS


def test_nothing_asked_for_is_nothing_decoded(table, cache):
    assert not cached_pixels(table, Preprocess(size=16), positions=[], cache_dir=cache).any()


def test_two_processes_share_the_work(folders, cache):
    command = [sys.executable, "-c", KILLED, str(folders), str(cache), "-1"]
    first, second = (subprocess.Popen(command) for _ in range(2))
    assert first.wait(60) == second.wait(60) == 0
    table = read_table(folders)
    array = pixel_cache(table, Preprocess(size=16), cache_dir=cache).open()
    for row, sample in zip(array, table.samples, strict=True):
        assert tuple(row[8, 8]) == Image.open(sample.path).getpixel((0, 0))


@pytest.mark.parametrize("damage", ["shorter pixels", "shorter marks", "no pixels", "shorter pixels, no marks"])
def test_a_damaged_cache_is_refused(table, cache, damage):
    cached_pixels(table, Preprocess(size=16), cache_dir=cache)
    (path,) = cache.glob("*.npy")
    if damage == "no pixels":
        path.unlink()
    else:
        victim = path.with_suffix(".done") if damage == "shorter marks" else path
        victim.write_bytes(victim.read_bytes()[:-1])
    if damage.endswith("no marks"):
        path.with_suffix(".done").unlink()
    with pytest.raises(DataError, match=r"pixel cache .* is damaged"):
        cached_pixels(table, Preprocess(size=16), cache_dir=cache)


def test_the_same_files_under_a_relative_path_are_the_same(table, cache, tmp_path, monkeypatch):
    cached_pixels(table, Preprocess(size=16), cache_dir=cache)
    monkeypatch.chdir(tmp_path)
    here = tuple(replace(sample, path=Path(sample.path.name)) for sample in table.samples)
    cached_pixels(replace(table, root=Path(), samples=here), Preprocess(size=16), cache_dir=cache)
    assert len(list(cache.glob("*.npy"))) == 1


def disk_is_full(*_):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_full_disk_is_one_sentence(table, cache, monkeypatch):
    monkeypatch.setattr(module.os, "posix_fallocate", disk_is_full)
    with pytest.raises(OutputError, match="No space left"):
        cached_pixels(table, Preprocess(size=16), cache_dir=cache)
    assert not list(cache.glob("*.npy"))


def test_a_disk_that_fills_up_while_decoding_is_one_sentence(table, cache, monkeypatch):
    monkeypatch.setattr(module.os, "pwrite", disk_is_full)
    with pytest.raises(OutputError, match="No space left"):
        cached_pixels(table, Preprocess(size=16), cache_dir=cache)
    monkeypatch.undo()
    assert cached_pixels(table, Preprocess(size=16), cache_dir=cache).any(axis=(1, 2, 3)).all()


def test_pixels_that_did_not_reach_the_disk_are_an_error_and_made_again(table, cache, monkeypatch):
    """The system may say so only when it is asked to write for good, here in the first of several blocks."""
    calls, real = [], os.fsync

    def fails_once(file):
        calls.append(file)
        if len(calls) == 1:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        real(file)

    cache_of_two = pixel_cache(table, Preprocess(size=16), cache_dir=cache)
    cached_pixels(table, Preprocess(size=16), positions=[0], cache_dir=cache)
    monkeypatch.setattr(module, "BLOCK", 1)
    monkeypatch.setattr(module.os, "fsync", fails_once)
    with pytest.raises(OutputError, match="Input/output error"):
        cached_pixels(table, Preprocess(size=16), cache_dir=cache)
    monkeypatch.undo()
    assert 1 in cache_of_two.missing(np.arange(len(table)))
    cached_pixels(table, Preprocess(size=16), cache_dir=cache)
    assert not len(cache_of_two.missing(np.arange(len(table))))


def test_large_jpegs_for_training_are_decoded_smaller(tmp_path, cache):
    """Within a few levels of the whole picture, and in a cache of their own."""
    ramp = np.linspace(20, 230, 640)[None, :, None] * np.array([1.0, 0.8, 0.5])
    Image.fromarray(np.broadcast_to(ramp, (480, 640, 3)).astype(np.uint8)).save(tmp_path / "x.jpg", quality=92)
    table = Table(tmp_path, ("A",), (Sample("x", tmp_path / "x.jpg", 0, "x"),))
    exact = cached_pixels(table, Preprocess(size=48), cache_dir=cache)
    fast = cached_pixels(table, Preprocess(size=48), for_training=True, cache_dir=cache)
    assert load_rgb(tmp_path / "x.jpg", at_least=96).size == (160, 120)
    assert np.abs(exact.astype(int) - fast).max() <= 4 and not np.array_equal(exact, fast)


def test_nothing_is_enlarged_for_training(table, tmp_path):
    """All pictures are 40 x 30, so 30 pixels are all that there is."""
    everything = np.arange(4)
    assert largest_square(table, everything, 100) == 30
    assert largest_square(table, everything, 20) == 20
    Image.new("RGB", (70, 80)).save(tmp_path / "3.bmp")
    assert largest_square(table, everything, 100) == 70
    assert largest_square(table, everything[:3], 100) == 30
    (tmp_path / "0.bmp").write_bytes(b"no picture")
    assert largest_square(table, everything[:3], 100) == 30
    assert largest_square(table, everything[:1], 100) == 100


def test_pictures_in_an_archive_are_measured_by_its_header(tmp_path):
    np.savez(tmp_path / "set.npz", train_images=np.zeros((5, 28, 36, 3), np.uint8))
    samples = tuple(Sample(str(i), tmp_path / "set.npz" / "train_images" / str(i), 0, str(i)) for i in range(5))
    assert largest_square(Table(tmp_path, ("A",), samples), np.arange(5), 80) == 28


def test_where_the_cache_lies(monkeypatch, tmp_path):
    monkeypatch.setenv("DSPKD_CACHE", str(tmp_path / "own"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert default_cache_dir() == tmp_path / "own"
    monkeypatch.delenv("DSPKD_CACHE")
    assert default_cache_dir() == tmp_path / "xdg" / "dspkd"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert default_cache_dir() == Path.home() / ".cache" / "dspkd"


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation(tmp_path, orientation):
    """The four corners tell where up is; the expected picture is turned here by hand."""
    picture = np.zeros((16, 32, 3), np.uint8)
    picture[:8, :16], picture[:8, 16:], picture[8:, :16] = (255, 0, 0), (0, 255, 0), (0, 0, 255)
    undo = {  # stored array for an upright `picture`, after the EXIF standard's row/column table
        1: picture,
        2: picture[:, ::-1],
        3: picture[::-1, ::-1],
        4: picture[::-1],
        5: picture.transpose(1, 0, 2),
        6: np.rot90(picture, 1),
        7: picture[::-1, ::-1].transpose(1, 0, 2),
        8: np.rot90(picture, -1),
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / "x.png"
    Image.fromarray(np.ascontiguousarray(undo)).save(path, exif=exif)
    np.testing.assert_array_equal(np.asarray(load_rgb(path)), picture)


def test_alpha_lies_over_white(tmp_path):
    rgba = np.zeros((4, 4, 4), np.uint8)
    rgba[..., 0] = 200
    rgba[..., 3] = (0, 0, 255, 128)
    Image.fromarray(rgba).save(tmp_path / "x.png")
    row = np.asarray(load_rgb(tmp_path / "x.png"))[0]
    assert row[0].tolist() == row[1].tolist() == [255, 255, 255]
    assert row[2].tolist() == [200, 0, 0]
    np.testing.assert_allclose(row[3], [227, 127, 127], atol=1)


def test_a_transparent_palette_colour_is_white(tmp_path):
    image = Image.new("P", (4, 4), 1)
    image.putpalette([255, 0, 0, 0, 0, 255])
    image.putpixel((0, 0), 0)
    image.save(tmp_path / "x.png", transparency=0)
    pixels = np.asarray(load_rgb(tmp_path / "x.png"))
    assert pixels[0, 0].tolist() == [255, 255, 255] and pixels[1, 1].tolist() == [0, 0, 255]


def test_grey_and_grey_with_alpha(tmp_path):
    Image.new("L", (4, 4), 77).save(tmp_path / "l.png")
    Image.new("LA", (4, 4), (77, 0)).save(tmp_path / "la.png")
    assert np.unique(np.asarray(load_rgb(tmp_path / "l.png"))).tolist() == [77]
    assert np.unique(np.asarray(load_rgb(tmp_path / "la.png"))).tolist() == [255]


def test_sixteen_bit_grey_is_scaled_and_not_clipped(tmp_path):
    values = np.array([[0, 256, 0x7F00, 0xFFFF]], np.uint16)
    Image.fromarray(values).save(tmp_path / "x.png")
    assert np.asarray(load_rgb(tmp_path / "x.png"))[0, :, 0].tolist() == [0, 1, 127, 255]


def test_pixels_of_unknown_range_are_refused(tmp_path):
    Image.fromarray(np.ones((4, 4), np.float32)).save(tmp_path / "x.tif")
    with pytest.raises(DataError, match=r"x\.tif has 32 bits a pixel"):
        load_rgb(tmp_path / "x.tif")


def test_cmyk(tmp_path):
    Image.new("CMYK", (16, 16), (0, 255, 255, 0)).save(tmp_path / "x.jpg", quality=95)
    image = load_rgb(tmp_path / "x.jpg")
    assert image.mode == "RGB"
    np.testing.assert_allclose(np.asarray(image)[8, 8], [255, 0, 0], atol=6)


def test_whatever_a_decoder_raises_becomes_a_data_error(tmp_path, monkeypatch):
    """A byte flipped in EXIF ends in struct.error deep inside Pillow."""
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (4, 4)).save(tmp_path / "x.png", exif=exif)

    def broken(_image):
        raise struct.error("required argument is not an integer")

    monkeypatch.setattr("dspkd.preprocess.ImageOps.exif_transpose", broken)
    with pytest.raises(DataError, match=r"x\.png cannot be decoded"):
        load_rgb(tmp_path / "x.png")
