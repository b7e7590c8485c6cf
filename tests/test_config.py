"""Configuration: presets, overrides, what a fault says, and that a stored configuration is the one that was used."""

import tomllib
from pathlib import Path

import pytest
from typer.testing import CliRunner

from dspkd.cli import app
from dspkd.config import apply_overrides, load_toml, parse_run_config, to_toml
from dspkd.distill import METHODS
from dspkd.errors import ConfigError, UsageError
from dspkd.presets import PRESETS, preset_stages


@pytest.fixture
def values():
    return {"model": "shufflenet_v2_x1_0", "data": {"root": "set"}, "out": "run", "stages": preset_stages()}


def parsed(values):
    return parse_run_config(values, origin="test")


@pytest.mark.parametrize(
    ("preset", "epochs", "rates", "weights"),
    [
        ("default", (120, 120), (0.01, 0.0025), {}),
        ("matched", (60, 60), (0.01, 0.0025), {}),
        ("paper_literal", (120, 120), (0.001, 0.001), (0, 1)),
    ],
)
def test_presets(values, preset, epochs, rates, weights):
    first, second = parsed({**values, "stages": preset_stages(preset)}).stages
    assert (first.method, second.method) == ("hf_masked_generation", "norm_kd")
    assert (first.epochs, second.epochs) == epochs
    assert (first.optimizer.lr, second.optimizer.lr) == rates
    if weights:
        assert (second.settings["cross_entropy_weight"], second.settings["distillation_weight"]) == weights
    else:
        assert second.settings == {}


def test_epochs_of_a_preset_are_the_total():
    for preset in ("default", "matched", "paper_literal"):
        assert [s["epochs"] for s in preset_stages(preset, epochs=7)] == [3, 4]
    assert [s["optimizer"]["lr"] for s in preset_stages("paper_literal", lr=0.5)] == [0.5, 0.5]


def test_faulty_presets():
    with pytest.raises(ConfigError, match=r"unknown preset 'fast'.*default, matched, paper_literal"):
        preset_stages("fast")
    with pytest.raises(ConfigError, match="1 epochs cannot be divided over the stages of default"):
        preset_stages(epochs=1)


@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_is_valid_and_trains_the_student_as_long_as_dsp_kd_does(values, preset):
    stages = parsed({**values, "stages": preset_stages(preset)}).stages
    expected = 120 if preset == "matched" else 240
    assert sum(stage.epochs for stage in stages if METHODS[stage.method].trains_student) == expected


def test_phases_that_leave_the_student_alone_come_on_top():
    assert [(s["method"], s["epochs"]) for s in preset_stages("ssd_kd", epochs=10)] == [("ssd_head", 4), ("ssd_kd", 10)]
    assert [s["epochs"] for s in preset_stages("fitted_hf", epochs=4)] == [1, 2, 2]


def test_the_readme_names_every_preset():
    readme = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
    assert [name for name in PRESETS if f"`{name}`" not in readme] == []


def test_the_reversed_preset_has_the_same_stages():
    assert preset_stages("reversed") == preset_stages()[::-1]


@pytest.mark.parametrize(
    ("stages", "words"),
    [
        ([{"method": "ssd_kd", "epochs": 1}], "0: ssd_kd goes on from a stage ssd_head"),
        (
            [
                {"method": "hf_fit", "epochs": 1},
                {"method": "norm_kd", "epochs": 1},
                {"method": "hf_masked_generation", "epochs": 1, "settings": {"hf": "fitted"}},
            ],
            "2: hf_masked_generation goes on from a stage hf_fit",
        ),
        (
            [{"method": "dsp_kd_joint", "epochs": 1, "settings": {"hf_masked_generation": {"hf": "fitted"}}}],
            "0: dsp_kd_joint goes on from a stage hf_fit",
        ),
    ],
)
def test_a_stage_without_its_predecessor_is_refused(values, stages, words):
    with pytest.raises(ConfigError, match=words):
        parsed({**values, "stages": stages})
    parsed({**values, "stages": [{"method": "ssd_kd", "epochs": 1, "settings": {"similarity_weight": 0}}]})


@pytest.mark.parametrize("method", METHODS)
def test_every_method_refuses_what_it_does_not_know(values, method):
    with pytest.raises(ConfigError, match=r"settings\.temprature.*got 4"):
        parsed({**values, "stages": [{"method": method, "epochs": 1, "settings": {"temprature": 4}}]})


@pytest.mark.parametrize(
    ("override", "path", "expected"),
    [
        ("size=96", ("size",), 96),
        ("data.balance=0.5", ("data", "balance"), 0.5),
        ("augment.flips=false", ("augment", "flips"), False),  # a table that did not exist yet
        ("stages.1.epochs=5", ("stages", 1, "epochs"), 5),
        ("stages.0.settings.hide=unimportant", ("stages", 0, "settings", "hide"), "unimportant"),
        ('device="cpu"', ("device",), "cpu"),
        ("data.root=/a=b/c", ("data", "root"), "/a=b/c"),
        ('stages=[{method="cross_entropy", epochs=2}]', ("stages",), [{"method": "cross_entropy", "epochs": 2}]),
        ('stages.0={method="norm_kd", epochs=2}', ("stages", 0), {"method": "norm_kd", "epochs": 2}),
    ],
)
def test_overrides(values, override, path, expected):
    node = apply_overrides(values, [override])
    parsed(node)
    for part in path:
        node = node[part]
    assert node == expected


def test_an_override_of_one_stage_leaves_the_other(values):
    apply_overrides(values, ["stages.0.optimizer.lr=0.5"])
    first, second = parsed(values).stages
    assert (first.optimizer.lr, second.optimizer.lr) == (0.5, 0.0025)


def test_the_last_override_wins(values):
    assert apply_overrides(values, ["size=64", "size=96"])["size"] == 96


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("size", "no '='"),
        ("=5", "no '='"),
        ("stages.2.epochs=1", "'2' is no index of a list of 2"),
        ("stages.2=1", "'2' is no index of a list of 2"),
        ("stages.-1.epochs=1", "'-1' is no index"),
        ("stages.first.epochs=1", "'first' is no index"),
        ("stages.²=1", "'²' is no index"),
        ("model.name=x", "'name' lies inside a value that is no table"),
        ("model.name.first=x", "'name' lies inside a value that is no table"),
    ],
)
def test_faulty_overrides(values, override, words):
    with pytest.raises(ConfigError) as caught:
        apply_overrides(values, [override])
    assert repr(override) in str(caught.value)
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("sise=64", ["sise", "(got 64)"]),
        ("data.ballance=1", ["data.ballance", "(got 1)"]),
        ("stages.1.epoch=3", ["stages.1.epoch", "(got 3)"]),
        ("stages.0.optimizer.learning_rate=1", ["stages.0.optimizer.learning_rate"]),
        ("stages.1.settings.t=4", ["1.settings.t:", "(got 4)"]),
        ("stages.1.settings.t_norm=-2", ["1.settings.t_norm:", "greater than 0", "(got -2)"]),
        ("stages.1.method=magic", ["unknown method 'magic'", "norm_kd"]),
        ("stages=[]", ["stages", "at least 1"]),
        ("size=many", ["size", "'many'"]),
        ("batch_size=1", ["batch_size", "(got 1)"]),
        ("data.val_fraction=0.5", ["data.val_fraction"]),
        ("select=first", ["select", "'first'"]),
        # Both pass a lower bound, and neither can be written into a manifest.
        ("stages.0.optimizer.gradient_clip=inf", ["stages.0.optimizer.gradient_clip", "finite"]),
        ("stages.0.settings.threshold=nan", ["0.settings.threshold", "finite"]),
        ("stages.0.optimizer.lr=1e-6", ["stages.0.optimizer", "min_lr 1e-05 lies above lr 1e-06"]),
    ],
)
def test_a_fault_names_key_and_value(values, override, words):
    with pytest.raises(ConfigError) as caught:
        parsed(apply_overrides(values, [override]))
    message = str(caught.value)
    assert message.startswith("test: ")
    for word in words:
        assert word in message
    assert "pydantic" not in message and "\n" not in message


def test_weights_and_pretrained_exclude_each_other(values):
    with pytest.raises(ConfigError, match="either weights or pretrained"):
        parsed({**values, "weights": "w.pth", "pretrained": True})


def test_toml_round_trip(values):
    values |= {
        "teacher": "a teacher",
        "augment": {"crop_scale": 0.25},
        "seed": 3,
        "data": {"root": 'a "quoted" folder', "cache_dir": "cache"},
    }
    values["stages"][0]["settings"] = {"generator_width": 256, "hide": "unimportant"}
    values["stages"][1]["optimizer"] |= {"warmup_epochs": 0.5, "min_lr": 1e-7}
    config = parsed(values)
    text = to_toml(config)
    assert parse_run_config(tomllib.loads(text), origin="again") == config
    # Defaults are spelt out, so that a stored run does not change with a later dspkd.
    assert tomllib.loads(text)["stages"][1]["optimizer"]["momentum"] == 0.9


def test_a_setting_that_is_none_survives_the_round_trip(values):
    values["stages"][0]["settings"] = {"alpha": None, "threshold": 1.5}
    stage = parse_run_config(tomllib.loads(to_toml(parsed(values))), origin="again").stages[0]
    assert stage.settings == {"threshold": 1.5}


def test_a_configuration_cannot_be_changed(values):
    from pydantic import ValidationError

    with pytest.raises(ValidationError, match="frozen"):
        parsed(values).size = 3


def test_files_that_cannot_be_read(tmp_path):
    with pytest.raises(ConfigError, match=r"nothing\.toml does not exist"):
        load_toml(tmp_path / "nothing.toml")
    path = tmp_path / "bad.toml"
    for content in (b"size = ", b"model = '\xff'"):
        path.write_bytes(content)
        with pytest.raises(ConfigError, match=r"bad\.toml cannot be read"):
            load_toml(path)
    with pytest.raises(ConfigError, match="cannot be read"):
        load_toml(tmp_path)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["train", "shufflenet_v2_x0_5", "--out", "x"], "no data"),
        (["train", "shufflenet_v2_x0_5", "--data", "x"], "no --out"),
        (["train", "shufflenet_v2_x0_5", "--data", "x", "--resume"], "--resume needs --out"),
        (["train", "shufflenet_v2_x0_5", "--data", "x", "--out", "y", "--set", "size"], "no '='"),
        (["train", "shufflenet_v2_x0_5", "--data", "x", "--out", "y", "--lr", "0"], "lr"),
        (["train", "shufflenet_v2_x0_5", "--config", "nothing.toml"], "nothing.toml does not exist"),
        (["distill", "--data", "x", "--out", "y"], "no teacher"),
        (["distill", "--data", "x", "--out", "y", "--teacher", "t", "--preset", "fast"], "unknown preset 'fast'"),
    ],
)
def test_flags_that_do_not_go_together(arguments, words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(app, arguments)
    assert isinstance(result.exception, UsageError), result.exception
    assert result.exception.exit_code == 2
    assert words in str(result.exception)
    assert list(Path().iterdir()) == []
