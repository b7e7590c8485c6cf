import numpy as np
import pytest

from dspkd.data.sources import read_table
from dspkd.data.split import make_split
from dspkd.data.synthetic import SYNTHETIC_CLASSES, draw_lesion, make_synthetic_set


def test_a_picture_is_a_function_of_its_seeds():
    seeds = {"seed": 3, "lesion": 5, "picture": 1}
    first = draw_lesion("VEIL", **seeds, size=48)
    assert first.shape == (48, 48, 3)
    assert first.dtype == np.uint8
    assert np.array_equal(first, draw_lesion("VEIL", **seeds, size=48))
    for other in ({"seed": 4}, {"lesion": 6}, {"picture": 2}):
        assert not np.array_equal(first, draw_lesion("VEIL", **(seeds | other), size=48))


@pytest.mark.parametrize("name", [n for n in SYNTHETIC_CLASSES if n != "PLAIN"])
def test_every_structure_changes_the_picture(name):
    """All else being equal: the same lesion and camera, with and without the structure."""
    with_it = draw_lesion(name, seed=0, lesion=1, size=64).astype(float)
    without = draw_lesion("PLAIN", seed=0, lesion=1, size=64).astype(float)
    assert np.abs(with_it - without).mean() > 1


def test_the_set_is_read_back_with_its_lesions(tmp_path):
    make_synthetic_set(tmp_path / "set", lesions=60, size=32, seed=1)
    table = read_table(tmp_path / "set")
    assert table.classes == SYNTHETIC_CLASSES
    assert all(count > 0 for count in table.counts().values())
    assert len({sample.group for sample in table.samples}) == 60 < len(table)
    split = make_split(table, val=0.2, test=0.3)
    assert len(split.train) + len(split.val) + len(split.test) == len(table)
    make_synthetic_set(tmp_path / "again", lesions=60, size=32, seed=1)
    assert read_table(tmp_path / "again").sha256 == table.sha256
    for sample in table.samples:
        assert (tmp_path / "again" / "images" / sample.path.name).read_bytes() == sample.path.read_bytes()
