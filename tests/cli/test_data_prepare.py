"""`dspkd data prepare` decodes what a run then reads."""

import json

import numpy as np
import pytest

from dspkd.data import pixels as module


@pytest.fixture
def cache(monkeypatch, tmp_path):
    monkeypatch.setenv("DSPKD_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_a_run_finds_everything_decoded(dspkd, tiny_data, cache, tmp_path, monkeypatch):
    code, out, _ = dspkd("data", "prepare", tiny_data, "--size", "32", "--json")
    assert code == 0
    said = json.loads(out)
    assert said["size"] == {"training": 40, "judging": 32}
    assert [np.load(file["path"]).shape[1:] for file in said["files"]] == [(40, 40, 3), (32, 32, 3)]
    assert sum(said["images"].values()) == len(np.load(said["files"][0]["path"]))

    def refuse(path, **_):
        raise AssertionError(f"{path} is decoded again")

    monkeypatch.setattr(module, "load_rgb", refuse)
    words = ("--epochs", "1", "--size", "32", "--batch-size", "8", "--out", tmp_path / "run")
    code, _, err = dspkd("train", "shufflenet_v2_x0_5", "--data", tiny_data, *words)
    assert code == 0, err


def test_small_pictures_are_not_enlarged_and_are_learned_from(dspkd, tiny_data, cache, tmp_path):
    code, out, _ = dspkd("data", "prepare", tiny_data, "--size", "64", "--json")
    assert code == 0
    assert json.loads(out)["size"] == {"training": 48, "judging": 64}
    words = ("--epochs", "1", "--size", "64", "--batch-size", "8", "--out", tmp_path / "run")
    code, _, err = dspkd("train", "shufflenet_v2_x0_5", "--data", tiny_data, *words)
    assert code == 0, err
    assert sorted(path.name.split("-")[1] for path in cache.glob("*.npy")) == ["48", "64"]


def test_what_decides_the_split_decides_what_is_decoded(dspkd, tiny_data, cache, tmp_path, monkeypatch):
    split = ("--set", "data.folds=3", "--set", "data.fold=1")
    code, out, _ = dspkd("data", "prepare", tiny_data, "--size", "32", *split, "--json")
    assert code == 0
    images = json.loads(out)["images"]
    assert images["judging"] >= 24  # a third to test on, and the validation part; without folds it is 18

    def refuse(path, **_):
        raise AssertionError(f"{path} is decoded again")

    monkeypatch.setattr(module, "load_rgb", refuse)
    words = ("--epochs", "1", "--size", "32", "--batch-size", "8", "--out", tmp_path / "run", *split)
    code, _, err = dspkd("train", "shufflenet_v2_x0_5", "--data", tiny_data, *words)
    assert code == 0, err


def test_a_cache_of_its_own(dspkd, tiny_data, cache, tmp_path):
    place = tmp_path / "elsewhere"
    code, out, err = dspkd("data", "prepare", tiny_data, "--size", "32", "--set", f"data.cache_dir={place}")
    assert code == 0, err
    assert str(place) in out.replace("\n", "") and len(list(place.glob("*.npy"))) == 2 and not cache.exists()


@pytest.mark.parametrize("key", ["data.workers=2", "data.root=other", "data.balance=0.5", "augment.flips=false"])
def test_what_has_no_say_in_decoding(dspkd, tiny_data, cache, key):
    code, out, err = dspkd("data", "prepare", tiny_data, "--size", "32", "--set", key)
    assert (code, out) == (2, "")
    assert key.partition("=")[0].removesuffix(".flips") in err and "--split" in err


@pytest.mark.parametrize(
    ("key", "named"), [("data.fold=7", "fold 7 of 1"), ("data.foldz=5", "data.foldz"), ("data=5", "got 5")]
)
def test_a_wrong_key_of_the_split(dspkd, tiny_data, cache, key, named):
    code, out, err = dspkd("data", "prepare", tiny_data, "--size", "32", "--set", key)
    assert (code, out) == (2, "")
    assert named in err and "Traceback" not in err


def test_it_says_what_it_did(dspkd, tiny_data, cache):
    code, out, _ = dspkd("data", "prepare", tiny_data, "--size", "32", "--model", "shufflenet_v2_x1_0")
    assert code == 0
    assert "to learn from at 40 px" in out and "to judge on at 32 px" in out and str(cache) in out


def test_an_unknown_model_is_an_error(dspkd, tiny_data, cache):
    code, _, err = dspkd("data", "prepare", tiny_data, "--model", "shufflenet_v9")
    assert code == 1 and "shufflenet_v9" in err and "Traceback" not in err
