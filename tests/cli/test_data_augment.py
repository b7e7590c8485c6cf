"""`dspkd data augment` and training on what it wrote."""

import json

import pytest


def test_the_papers_order_is_trained_on_and_marked(dspkd, tiny_data, tmp_path):
    code, out, err = dspkd("data", "augment", tiny_data, "--before-split", "--out", tmp_path / "set")
    assert code == 0, err
    assert "60 pictures; copies: none" in out and "data.protocol" in out
    words = ("--epochs", "1", "--size", "32", "--batch-size", "8", "--out", tmp_path / "run")
    code, out, err = dspkd(
        "train", "shufflenet_v2_x0_5", "--data", tmp_path / "set", *words, "--set", 'data.protocol="paper"'
    )
    assert code == 0, err
    assert 'protocol "paper"' in out and "inflated" in err
    code, out, _ = dspkd("eval", tmp_path / "run", "--data", tmp_path / "set", "--json")
    assert code == 0 and "inflated" in json.loads(out)["caution"]


@pytest.mark.parametrize(
    ("words", "said"),
    [(("--to", "median"), "mean or max"), (("--before-split", "--split", "x.json"), "--before-split")],
)
def test_what_does_not_go_is_an_error(dspkd, tiny_data, tmp_path, words, said):
    code, _, err = dspkd("data", "augment", tiny_data, "--out", tmp_path / "set", *words)
    assert code == 2 and said in err and not (tmp_path / "set").exists()
