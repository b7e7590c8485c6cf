"""Splits: no lesion in two parts, whatever the table looks like; stratified, repeatable, tied to their data set."""

import json
import random
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dspkd.data.sources import Sample, Table, read_table
from dspkd.data.split import PARTS, indices, load_split, make_split, save_split
from dspkd.errors import DataError


def make_table(lesions, num_classes=3):
    """`lesions` is a list of label lists: one entry per lesion, one label per image of it."""
    samples = [
        Sample(f"{g:04d}-{i}", Path(f"{g}-{i}.png"), label, f"lesion{g}")
        for g, labels in enumerate(lesions)
        for i, label in enumerate(labels)
    ]
    return Table(Path("set"), tuple(f"C{k}" for k in range(num_classes)), tuple(samples))


@pytest.fixture
def table():
    """Three classes of 300, 90 and 30 lesions with one to three images each."""
    rng = np.random.default_rng(3)
    return make_table([[k] * int(rng.integers(1, 4)) for k, n in enumerate((300, 90, 30)) for _ in range(n)])


# Images of one lesion may disagree on the label, as they do in real collections.
random_lesions = st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=6), min_size=3, max_size=60)


@settings(max_examples=150, deadline=None)
@given(lesions=random_lesions, seed=st.integers(0, 99), val=st.floats(0.05, 0.4), test=st.floats(0.05, 0.4))
def test_lesions_never_cross_and_every_image_is_in_one_part(lesions, seed, val, test):
    table = make_table(lesions)
    try:
        split = make_split(table, seed=seed, val=val, test=test)
    except DataError:
        # Three lesions of three classes cannot fill three parts; anything that can be filled must be.
        assert all(sum(k in labels for labels in lesions) < 3 for k in range(3)) or mixed(lesions)
        return
    groups = [{table.samples[i].group for i in indices(split, table, part)} for part in PARTS]
    assert all(groups)
    assert sum(len(g) for g in groups) == len(lesions)
    ids = [image for part in PARTS for image in getattr(split, part)]
    assert sorted(ids) == sorted(s.image_id for s in table.samples)


def mixed(lesions):
    return any(len(set(labels)) > 1 for labels in lesions)


@settings(max_examples=100, deadline=None)
@given(sizes=st.lists(st.tuples(st.integers(0, 2), st.integers(1, 5)), min_size=6, max_size=60), seed=st.integers(0, 9))
def test_three_lesions_of_a_class_are_enough_for_every_part(sizes, seed):
    lesions = [[k] * n for k, n in sizes]
    # Three lesions of class 0 make sure that there is a split at all.
    table = make_table([[0], [0], [0], *lesions])
    split = make_split(table, seed=seed)
    for k in range(3):
        if sum(labels[0] == k for labels in lesions) >= 3:
            assert all(k in table.labels[indices(split, table, part)] for part in PARTS)


@settings(max_examples=50, deadline=None)
@given(lesions=random_lesions, order=st.randoms(use_true_random=False))
def test_the_order_of_the_rows_does_not_matter(lesions, order):
    table = make_table([[0], [0], [0], *lesions])
    samples = list(table.samples)
    order.shuffle(samples)
    shuffled = Table(table.root, table.classes, tuple(samples))
    assert make_split(shuffled).sha256 == make_split(table).sha256
    assert make_split(shuffled) == make_split(table)


def test_every_class_keeps_its_share(table):
    split = make_split(table, val=0.1, test=0.2)
    counts = np.bincount(table.labels)
    for part, share in zip(PARTS, (0.7, 0.1, 0.2), strict=True):
        got = np.bincount(table.labels[indices(split, table, part)], minlength=3)
        # Lesions have at most three images, so a class can miss its target by less than one lesion on either side.
        assert np.abs(got - share * counts).max() <= 3


def test_seeds(table):
    assert make_split(table, seed=1).sha256 == make_split(table, seed=1).sha256
    assert make_split(table, seed=1).sha256 != make_split(table, seed=2).sha256
    a, b = (set(make_split(table, seed=seed).test) for seed in (1, 2))
    assert len(a & b) < 0.5 * len(a)  # another draw altogether, not a few swaps


def test_stored_and_loaded_is_equal(table, tmp_path):
    split = make_split(table, seed=4)
    save_split(split, tmp_path / "split.json")
    loaded = load_split(tmp_path / "split.json", table)
    assert loaded == split
    assert loaded.sha256 == split.sha256


def test_an_edit_is_noticed(table, tmp_path):
    path = tmp_path / "split.json"
    save_split(make_split(table), path)
    value = json.loads(path.read_text())
    value["train"].append(value["test"].pop())
    path.write_text(json.dumps(value, indent=2) + "\n")
    with pytest.raises(DataError, match=r"split\.json was edited"):
        load_split(path, table)


def test_a_missing_split_is_named(table, tmp_path):
    with pytest.raises(DataError, match=r"split\.json does not exist"):
        load_split(tmp_path / "split.json", table)


def test_another_data_set_is_refused(table, tmp_path):
    path = tmp_path / "split.json"
    save_split(make_split(table), path)
    relabelled = list(table.samples)
    first = relabelled[0]
    relabelled[0] = Sample(first.image_id, first.path, 1 - first.label, first.group)
    regrouped = list(table.samples)
    regrouped[0] = Sample(first.image_id, first.path, first.label, "another lesion")
    for samples in (table.samples[1:], relabelled, regrouped):
        with pytest.raises(DataError, match="made for another data set"):
            load_split(path, Table(table.root, table.classes, tuple(samples)))


def test_a_class_of_two_lesions_gets_a_warning():
    table = make_table([*[[0]] * 20, *[[1]] * 20, [2], [2]])
    warnings = make_split(table).warnings
    assert len(warnings) == 1
    assert warnings[0].startswith("class C2 has no image in the ")
    assert make_split(make_table([*[[0]] * 20, *[[1]] * 20, *[[2]] * 3])).warnings == ()


def test_a_class_without_images_gets_none():
    assert make_split(make_table([[0]] * 10, num_classes=2)).warnings == ()


def test_too_few_lesions():
    with pytest.raises(DataError, match=r"too few lesions \(2\)"):
        make_split(make_table([[0] * 50, [0] * 50]))


def test_an_unknown_part(table):
    with pytest.raises(DataError, match="unknown part 'dev'"):
        indices(make_split(table), table, "dev")


def part_of(split):
    return {image: part for part in PARTS for image in getattr(split, part)}


def groups_of_parts(split, table):
    return [{table.samples[i].group for i in indices(split, table, part)} for part in PARTS]


@settings(max_examples=40, deadline=None)
@given(lesions=random_lesions, folds=st.integers(2, 6), seed=st.integers(0, 9))
def test_folds_cover_everything_once_and_no_lesion_crosses(lesions, folds, seed):
    table = make_table([*[[k] for k in range(3)] * folds * 2, *lesions])
    splits = [make_split(table, seed=seed, folds=folds, fold=k) for k in range(folds)]
    tested = [image for split in splits for image in split.test]
    assert sorted(tested) == sorted(s.image_id for s in table.samples)
    for split in splits:
        groups = groups_of_parts(split, table)
        assert sum(map(len, groups)) == len(set.union(*groups))
        assert sum(len(getattr(split, part)) for part in PARTS) == len(table)


def test_every_class_keeps_its_share_in_every_fold(table):
    counts = np.bincount(table.labels)
    for fold in range(5):
        split = make_split(table, folds=5, fold=fold, val=0.1)
        for part, share in zip(PARTS, (0.7, 0.1, 0.2), strict=True):
            got = np.bincount(table.labels[indices(split, table, part)], minlength=3)
            assert np.abs(got - share * counts).max() <= 3
        assert split.method == f"fold {fold} of 5"


def test_a_fold_that_does_not_exist(table):
    with pytest.raises(DataError, match="fold 5 of 5 does not exist"):
        make_split(table, folds=5, fold=5)


def test_folds_are_stored(table, tmp_path):
    split = make_split(table, folds=3, fold=1)
    save_split(split, tmp_path / "split.json")
    assert load_split(tmp_path / "split.json", table) == split


def with_parts(table, parts):
    samples = [replace(sample, part=part) for sample, part in zip(table.samples, parts, strict=True)]
    return Table(table.root, table.classes, tuple(samples))


def test_the_parts_that_a_data_set_brings_are_kept():
    table = with_parts(make_table([[0], [1], [2], [0], [1], [2]]), ["test", "train", "val", "test", "train", "val"])
    split = make_split(table)
    assert split.method == "column"
    assert [part_of(split)[s.image_id] for s in table.samples] == [s.part for s in table.samples]


def test_the_parts_that_a_data_set_brings_may_be_passed_over(table):
    table = with_parts(table, ["train"] * len(table))
    assert make_split(table, by_column=False).method == "lesions"
    assert make_split(table, folds=5).method == "fold 0 of 5"


@settings(max_examples=40, deadline=None)
@given(lesions=random_lesions, seed=st.integers(0, 9))
def test_without_a_validation_part_lesions_of_the_training_part_are_taken(lesions, seed):
    bare = make_table([*[[k] for k in range(3)] * 12, *lesions])
    parts = ["test" if int(s.group[6:]) % 5 == 0 else "train" for s in bare.samples]
    table = with_parts(bare, parts)
    split = make_split(table, seed=seed)
    assert set(split.test) == {s.image_id for s in table.samples if s.part == "test"}
    assert split.val
    groups = groups_of_parts(split, table)
    assert sum(map(len, groups)) == len(set.union(*groups))


def test_a_lesion_that_crosses_the_data_sets_own_parts_is_refused():
    table = with_parts(make_table([[0, 0], [1], [2]]), ["train", "test", "val", "train"])
    with pytest.raises(DataError, match=r"1 lesions cross .*lesion0 \(train and test\)"):
        make_split(table)
    assert make_split(with_parts(make_table([[0], [1], [2]]), ["train", "test", "val"])).method == "column"


def test_a_duplicate_that_crosses_the_data_sets_own_parts_is_refused():
    table = with_parts(make_table([[0], [1], [2]]), ["train", "test", "val"])
    with pytest.raises(DataError) as caught:
        make_split(table, duplicates=iter([("0000-0", "0001-0")]))
    message = str(caught.value)
    assert "images that show the same picture" in message and "lesions" not in message
    assert "0000-0 (train) and 0001-0 (test)" in message
    assert "--set data.join_duplicates=false" in message


def test_a_duplicate_inside_a_part_of_the_data_set_is_no_fault():
    table = with_parts(make_table([[0], [1], [2], [0]]), ["train", "test", "val", "train"])
    split = make_split(table, duplicates=[("0000-0", "0003-0"), ("0000-0", "elsewhere")])
    assert (split.method, split.train) == ("column", ("0000-0", "0003-0"))


def test_an_image_without_a_part():
    table = with_parts(make_table([[0], [1], [2]]), ["train", None, "val"])
    with pytest.raises(DataError, match=r"image 0001-0 is in no part of the split"):
        make_split(table)


@settings(max_examples=60, deadline=None)
@given(
    lesions=random_lesions,
    picks=st.lists(st.tuples(st.integers(0, 500), st.integers(0, 500)), max_size=12),
    order=st.randoms(use_true_random=False),
)
def test_joined_lesions_stay_together_whatever_the_order(lesions, picks, order):
    table = make_table([*[[k] for k in range(3)] * 12, *lesions])
    ids = [s.image_id for s in table.samples]
    pairs = [(ids[a % len(ids)], ids[b % len(ids)]) for a, b in picks]
    split = make_split(table, duplicates=pairs)
    part = part_of(split)
    assert all(part[a] == part[b] for a, b in pairs)
    groups = groups_of_parts(split, table)
    assert sum(map(len, groups)) == len(set.union(*groups))
    samples, shuffled = list(table.samples), [pair[::-1] for pair in pairs]
    order.shuffle(samples)
    order.shuffle(shuffled)
    assert make_split(Table(table.root, table.classes, tuple(samples)), duplicates=shuffled) == split


def test_without_joins_nothing_changes(table):
    """The splits that were made before duplicates were joined are made again."""
    assert make_split(table, duplicates=[("0000-0", "0000-0"), ("no such image", "0001-0")]) == make_split(table)


@pytest.mark.shared
def test_official_tables_that_lie_beside_each_other(shared_data):
    """Labels of the ISIC 2019 training part, metadata of both parts, and HAM10000's table."""
    table = read_table(shared_data / "csv", need_files=False)
    assert (table.layout, len(table), len(table.classes)) == ("ISIC 2019", 25331, 8)
    assert len({sample.group for sample in table.samples}) < 25331


@pytest.mark.shared
def test_the_real_collection(shared_data):
    table = read_table(shared_data / "derm")
    split = make_split(table)
    of = {s.image_id: s for s in table.samples}
    groups = [{of[image].group for image in getattr(split, part)} for part in PARTS]
    assert not (groups[0] & groups[1] or groups[0] & groups[2] or groups[1] & groups[2])
    assert sum(map(len, groups)) == len({s.group for s in table.samples}) < len(table)
    shares = np.bincount(table.labels) / len(table)
    for part in PARTS:
        labels = table.labels[indices(split, table, part)]
        assert set(labels) == set(range(len(table.classes)))
        np.testing.assert_allclose(np.bincount(labels) / len(labels), shares, atol=0.005)
    assert split.warnings == ()


# Full-scale tables without images: 25 331 rows and 10 015.
@pytest.fixture(params=["ISIC 2019", "HAM10000"])
def full_table(request, shared_data, tmp_path):
    names = {
        "ISIC 2019": ["ISIC_2019_Training_GroundTruth.csv", "ISIC_2019_Training_Metadata.csv"],
        "HAM10000": ["HAM10000_metadata.csv"],
    }[request.param]
    for name in names:
        shutil.copy(shared_data / "csv" / name, tmp_path)
    return tmp_path, request.param


@pytest.mark.shared
@pytest.mark.parametrize("how", [{}, {"folds": 5, "fold": 2}], ids=["lesions", "fold"])
def test_full_metadata(full_table, how):
    root, layout = full_table
    table = read_table(root, need_files=False)
    assert table.layout == layout
    assert len(table) == {"ISIC 2019": 25331, "HAM10000": 10015}[layout]
    split = make_split(table, **how)
    groups = groups_of_parts(split, table)
    assert sum(map(len, groups)) == len(set.union(*groups)) == len({s.group for s in table.samples})
    shares = np.bincount(table.labels) / len(table)
    for part, size in zip(PARTS, (0.7, 0.1, 0.2), strict=True):
        labels = table.labels[indices(split, table, part)]
        assert abs(len(labels) / len(table) - size) < 0.01
        np.testing.assert_allclose(np.bincount(labels, minlength=len(shares)) / len(labels), shares, atol=0.01)
    for path in root.glob("*.csv"):
        header, *rows = path.read_text(encoding="utf-8").splitlines()
        random.Random(1).shuffle(rows)
        path.write_text("\n".join([header, *rows]) + "\n", encoding="utf-8")
    again = read_table(root, need_files=False)
    assert again.samples != table.samples
    assert make_split(again, **how) == split
