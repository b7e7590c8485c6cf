"""What a configuration makes of a data set: joined copies, folds, the data set's own parts."""

import csv

import numpy as np
import pytest
from PIL import Image

from dspkd.config import DataConfig, parse_run_config
from dspkd.data.sources import read_table
from dspkd.errors import ConfigError, DataError
from dspkd.evaluate import Classifier, evaluate
from dspkd.preprocess import Preprocess
from dspkd.train.prepare import new_split


@pytest.fixture
def root(tmp_path):
    """24 pictures of two classes; number 23 is number 0 turned, of another lesion by its id."""
    rng = np.random.default_rng(0)
    rows = [["image", "label", "split"]]
    for k in range(24):
        pixels = Image.fromarray(rng.integers(0, 256, (12, 12, 3), dtype=np.uint8)).resize((64, 64))
        if k == 0:
            first = pixels
        if k == 23:
            pixels = first.transpose(Image.Transpose.ROTATE_90)
        pixels.save(tmp_path / f"{k:02d}.png")
        rows.append([f"{k:02d}.png", "AB"[k % 2] if k < 23 else "A", ("train", "train", "val", "test")[k % 4]])
    with (tmp_path / "labels.csv").open("w", newline="") as f:
        csv.writer(f).writerows(rows)
    return tmp_path


def part_of(split, image):
    return next(part for part in ("train", "val", "test") if image in getattr(split, part))


def test_copies_are_joined_unless_that_is_not_wanted(root):
    table = read_table(root)
    apart = 0
    for seed in range(12):
        config = DataConfig(root=root, own_split=False, split_seed=seed)
        split = new_split(table, config)
        assert part_of(split, "00") == part_of(split, "23")
        loose = new_split(table, config.model_copy(update={"join_duplicates": False}))
        apart += part_of(loose, "00") != part_of(loose, "23")
    assert apart > 0


def test_own_parts_that_a_copy_crosses_are_refused(root):
    with pytest.raises(DataError, match=r"show the same picture.*own_split=false.*join_duplicates=false"):
        new_split(read_table(root), DataConfig(root=root))
    assert new_split(read_table(root), DataConfig(root=root, join_duplicates=False)).method == "column"


def test_folds(root):
    table = read_table(root)
    tested = [new_split(table, DataConfig(root=root, folds=4, fold=k)).test for k in range(4)]
    assert sorted(sum(tested, ())) == sorted(s.image_id for s in table.samples)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ({"folds": 5, "fold": 5}, "fold 5 of 5 does not exist"),
        ({"fold": 1}, "fold 1 of 1 does not exist"),
        ({"folds": 1}, "data.folds"),
        ({"folds": 5, "own_split": True}, "either folds or own_split"),
    ],
)
def test_folds_that_do_not_exist(data, words):
    values = {"model": "x", "out": "o", "stages": [{"method": "cross_entropy", "epochs": 1}]}
    with pytest.raises(ConfigError, match=words):
        parse_run_config({**values, "data": {"root": "d", **data}}, origin="test")


def test_a_model_is_judged_on_the_data_sets_own_test_part(root, tmp_path):
    def always_a(pixels):
        return np.tile([0.9, 0.1], (len(pixels), 1))

    classifier = Classifier("always A", ("A", "B"), Preprocess(size=32), always_a)
    table = read_table(root)
    own = [s for s in table.samples if s.part == "test"]
    result = evaluate(classifier, root, part="test", cache_dir=tmp_path / "cache")
    assert [s.image_id for s in result.samples] == [s.image_id for s in own]
    assert result.metrics["accuracy"] == np.mean([s.label == 0 for s in own])
    with pytest.raises(DataError, match="needs a stored split"):
        evaluate(classifier, root, part="dev", cache_dir=tmp_path / "cache")
