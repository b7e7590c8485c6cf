"""`dspkd data augment`: balanced copies as files, that leak nothing unless they are asked to."""

import csv
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from dspkd.data.copies import copies_wanted, write_balanced
from dspkd.data.sources import read_table
from dspkd.data.split import make_split
from dspkd.errors import OutputError


@pytest.fixture
def unequal(tmp_path):
    """Class folders: 12 pictures of A, 4 of B, 2 of C, of 40 x 30 pixels."""
    rng = np.random.default_rng(0)
    for name, number in (("A", 12), ("B", 4), ("C", 4)):
        (tmp_path / "set" / name).mkdir(parents=True)
        for i in range(number):
            pixels = rng.integers(0, 256, (30, 40, 3)).astype(np.uint8)
            Image.fromarray(pixels).save(tmp_path / "set" / name / f"{i}.png")
    return tmp_path / "set"


def rows_of(out):
    with (out / "images.csv").open(newline="") as f:
        return list(csv.DictReader(f))


@given(st.lists(st.integers(0, 500), min_size=1, max_size=8).filter(any))
def test_classes_reach_the_average_or_the_largest(counts):
    mean, largest = copies_wanted(counts, "mean"), copies_wanted(counts, "max")
    goal = round(float(np.mean([n for n in counts if n])))
    for n, some, many in zip(counts, mean, largest, strict=True):
        assert n + some == (max(n, goal) if n else 0)
        assert n + many == (max(counts) if n else 0)


def test_only_what_is_learned_from_is_copied(unequal, tmp_path):
    table = read_table(unequal)
    split = make_split(table)
    written = write_balanced(table, tmp_path / "out", split=split, target="max")
    rows = rows_of(tmp_path / "out")
    copies = [row for row in rows if row["copy_of"]]
    assert len(copies) == sum(written.copies.values()) > 0
    assert {row["split"] for row in copies} == {"train"}
    assert {row["copy_of"] for row in copies} <= set(split.train)
    again = read_table(tmp_path / "out")
    assert again.remarks == (
        f"{len(copies)} of {len(rows)} pictures are augmented copies (column copy_of of images.csv)",
    )
    # Read again, the set keeps its parts and its lesions: a copy never leaves its original's.
    divided = make_split(again)
    assert divided.method == "column" and not divided.leaks
    originals = {sample.image_id: sample for sample in table.samples}
    assert {len(getattr(divided, part)) - len(getattr(split, part)) for part in ("val", "test")} == {0}
    labels = [row["label"] for row in rows if row["split"] == "train"]
    assert labels.count("B") == labels.count("C") == labels.count("A")
    for row in copies:
        assert row["lesion_id"] == originals[row["copy_of"]].group


def test_originals_stay_as_they_are_and_copies_are_square(unequal, tmp_path):
    write_balanced(read_table(unequal), tmp_path / "out", split=None)
    for row in rows_of(tmp_path / "out"):
        path = tmp_path / "out" / row["image"]
        if row["copy_of"]:
            with Image.open(path) as picture:
                assert picture.size == (30, 30)
        else:
            assert path.read_bytes() == (unequal / Path(row["image"]).relative_to("images")).read_bytes()


def test_the_same_seed_gives_the_same_files(unequal, tmp_path):
    for name, seed in (("one", 1), ("same", 1), ("other", 2)):
        write_balanced(read_table(unequal), tmp_path / name, split=None, seed=seed)
    content = {
        name: {p.relative_to(tmp_path / name): p.read_bytes() for p in (tmp_path / name).rglob("*") if p.is_file()}
        for name in ("one", "same", "other")
    }
    assert content["one"] == content["same"] != content["other"]


def test_a_folder_in_use_is_left_alone(unequal, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("keep")
    with pytest.raises(OutputError, match="not empty"):
        write_balanced(read_table(unequal), tmp_path / "out", split=None)
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["mine.txt"]


def test_nothing_is_left_of_what_failed(unequal, tmp_path):
    table = read_table(unequal)
    (unequal / "C" / "1.png").unlink()
    with pytest.raises(Exception, match=r"1\.png"):
        write_balanced(table, tmp_path / "new" / "out", split=None)
    assert not list((tmp_path / "new").iterdir())
