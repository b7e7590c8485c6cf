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


def test_it_says_what_it_did(dspkd, tiny_data, cache):
    code, out, _ = dspkd("data", "prepare", tiny_data, "--size", "32", "--model", "shufflenet_v2_x1_0")
    assert code == 0
    assert "to learn from at 40 px" in out and "to judge on at 32 px" in out and str(cache) in out


def test_an_unknown_model_is_an_error(dspkd, tiny_data, cache):
    code, _, err = dspkd("data", "prepare", tiny_data, "--model", "shufflenet_v9")
    assert code == 1 and "shufflenet_v9" in err and "Traceback" not in err
