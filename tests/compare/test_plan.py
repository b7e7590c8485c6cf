"""The file of a comparison: what it refuses, and the cells that follow from it."""

import re
import tomllib
from pathlib import Path

import pytest
from fake_runs import comparison_values, plan_of

from dspkd.compare.execution import write_recipes
from dspkd.compare.plan import student_epochs
from dspkd.compare.spec import comparison_toml, parse_comparison
from dspkd.config import load_toml, parse_run_config
from dspkd.errors import ConfigError, ModelError, UsageError
from dspkd.presets import PRESETS

ROOT = Path(__file__).resolve().parents[2]


def changed(root, path, value):
    """`comparison_values` with one key set; `path` like methods.alone.tuned."""
    values = comparison_values(root)
    *parents, last = path.split(".")
    node = values
    for part in parents:
        node = node.setdefault(part, {})
    node[last] = value
    return values


def test_cells_are_all_combinations_and_a_method_without_a_teacher_runs_once(tmp_path):
    values = comparison_values(tmp_path)
    values["teachers"]["other"] = {"model": "timm/resnet18", "epochs": 1}
    values["students"]["wide"] = {"model": "shufflenet_v2_x1_0"}
    plan = plan_of(values, tmp_path / "out")
    names = [cell.name for cell in plan.cells]
    assert len(names) == len(set(names)) == 2 + 2 * 2 * (1 + 2 * 2)
    assert names[:2] == ["teacher-big", "teacher-other"]
    assert {name for name in names if name.startswith("alone")} == {
        f"alone-{student}-seed{seed}" for student in ("small", "wide") for seed in (0, 1)
    }
    assert plan.cell("alone", "wide", "other", 1).name == "alone-wide-seed1"
    assert plan.cell("dsp_kd", "wide", "other", 1).name == "dsp_kd-other-wide-seed1"
    assert plan.cell("dsp_kd", "wide", "other", 1).needs == "teacher-other"


def test_a_method_may_have_views_of_its_own_and_all_share_one_teacher_cache(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    values = changed(tmp_path, "methods.dsp_kd.views", 4)
    values["training"] |= {"augment": {"seed": 0, "color_jitter": 0.1}, "teacher_cache": {"where": "answers"}}
    cells = {cell.method: cell.config for cell in plan_of(values, tmp_path / "out").cells}
    assert cells["dsp_kd"].augment.views == 4
    assert cells["norm_kd"].augment.views is None
    assert {(c.augment.seed, c.augment.color_jitter) for c in cells.values()} == {(0, 0.1)}
    assert {c.teacher_cache.where for c in cells.values()} == {str(tmp_path / "answers")}


def test_the_first_seed_of_all_methods_comes_before_the_second(tmp_path):
    seeds = [cell.seed for cell in plan_of(comparison_values(tmp_path), tmp_path).cells if cell.method]
    assert seeds == sorted(seeds)


def test_all_cells_share_everything_but_method_and_seed(tmp_path):
    plan = plan_of(comparison_values(tmp_path), tmp_path / "out")
    shared = [
        cell.config.model_dump(mode="json", exclude={"stages", "out", "teacher", "seed"})
        for cell in plan.cells
        if cell.method
    ]
    assert all(values == shared[0] for values in shared)
    assert {sum(s.epochs for s in cell.config.stages) for cell in plan.cells if cell.method} == {2}
    assert {s.optimizer.lr for cell in plan.cells for s in cell.config.stages} == {0.05, 0.05 / 4}
    assert shared[0]["data"]["split"] == str(plan.split)


def test_a_written_recipe_is_the_cells_configuration(tmp_path):
    plan = plan_of(comparison_values(tmp_path), tmp_path / "out")
    write_recipes(plan)
    for cell in plan.cells:
        assert parse_run_config(load_toml(cell.recipe), origin="recipe") == cell.config
    assert plan.cells[-1].words[:2] == ["dspkd", "distill"]
    assert plan.cells[1].words[:3] == ["dspkd", "train", "shufflenet_v2_x0_5"]


def test_commands_survive_a_shell(tmp_path):
    import shlex

    out = tmp_path / "a folder; with 'signs'"
    for cell in plan_of(comparison_values(tmp_path), out).cells:
        assert shlex.split(cell.command) == cell.words


@pytest.mark.parametrize(
    ("budget", "stages", "expected"),
    [
        (10, [None], [10]),
        (10, [None, None], [5, 5]),
        (11, [None, None], [5, 6]),
        (10, [7, None], [7, 3]),
        (10, [2, None, None], [2, 4, 4]),
        (10, [4, 6], [4, 6]),
    ],
)
def test_stages_without_epochs_share_what_is_left(tmp_path, budget, stages, expected):
    own = [{"method": "norm_kd", **({} if n is None else {"epochs": n})} for n in stages]
    values = changed(tmp_path, "methods.norm_kd.stages", own) | {"epochs": budget}
    cell = plan_of(values, tmp_path).cell("norm_kd", "small", "big", 0)
    assert [stage.epochs for stage in cell.config.stages] == expected


@pytest.mark.parametrize("epochs", [[3], [1], [2, None], [3, None]])
def test_another_budget_is_refused(tmp_path, epochs):
    own = [{"method": "norm_kd", **({} if n is None else {"epochs": n})} for n in epochs]
    with pytest.raises(ConfigError, match=r"file.toml: methods.norm_kd has \d epochs .* the budget is 2") as caught:
        plan_of(changed(tmp_path, "methods.norm_kd.stages", own), tmp_path)
    assert 'budget = "own"' in str(caught.value)


def test_a_preset_takes_its_own_peak_rate(tmp_path):
    plan = plan_of(changed(tmp_path, "methods.dsp_kd.lr", 0.02), tmp_path)
    assert [s.optimizer.lr for s in plan.cell("dsp_kd", "small", "big", 0).config.stages] == [0.02, 0.005]


def test_settings_hold_for_stages_by_name_and_a_method_may_say_otherwise(tmp_path):
    values = changed(
        tmp_path, "training.settings", {"norm_kd": {"t_norm": 2.0}, "hf_masked_generation": {"alpha": 1.0}}
    )
    values["methods"]["other"] = {"preset": "default", "settings": {"norm_kd": {"t_norm": 1.5}}}
    values["methods"]["norm_kd"]["stages"] = [{"method": "norm_kd", "settings": {"cross_entropy_weight": 0.5}}]
    plan = plan_of(values, tmp_path)

    def settings(method):
        return [stage.settings for stage in plan.cell(method, "small", "big", 0).config.stages]

    assert settings("dsp_kd") == [{"alpha": 1.0}, {"t_norm": 2.0}]
    assert settings("other") == [{"alpha": 1.0}, {"t_norm": 1.5}]
    assert settings("norm_kd") == [{"t_norm": 2.0, "cross_entropy_weight": 0.5}]


def test_a_stage_that_does_not_train_the_student_is_no_part_of_its_budget(tmp_path):
    stages = [{"method": "ssd_head", "epochs": 9}, {"method": "ssd_kd"}]
    plan = plan_of(changed(tmp_path, "methods.norm_kd.stages", stages), tmp_path)
    cell = plan.cell("norm_kd", "small", "big", 0)
    assert [stage.epochs for stage in cell.config.stages] == [9, 2]
    assert student_epochs(cell.config) == 2
    with pytest.raises(ConfigError, match="does not train the student"):
        plan_of(changed(tmp_path, "methods.norm_kd.stages", [{**stages[0], "epochs": None}, stages[1]]), tmp_path)


def test_an_own_budget_is_allowed_where_it_is_said(tmp_path):
    method = {"budget": "own", "stages": [{"method": "cross_entropy", "epochs": 6}]}
    plan = plan_of(changed(tmp_path, "methods.long", method), tmp_path)
    assert plan.cell("long", "small", "big", 0).config.stages[0].epochs == 6


@pytest.mark.parametrize(
    ("path", "value", "named"),
    [
        ("seedz", [1], "seedz"),
        ("training.batchsize", 8, "training.batchsize"),
        ("data.rot", "x", "data.rot"),
        ("teachers.big.modell", "x", "teachers.big.modell"),
        ("students.small.pretraind", True, "students.small.pretraind"),
        ("methods.alone.tunned", "x", "methods.alone.tunned"),
        ("methods.alone.stages", [{"methd": "norm_kd"}], "methods.alone.stages.0.methd"),
        ("methods.norm_kd.stages", [{"method": "norm_kd", "settings": {"tnorm": 1}}], "methods.norm_kd: stages.*tnorm"),
        ("methods.norm_kd.stages", [{"method": "norm_kdd"}], "methods.norm_kd: stages.*norm_kdd"),
        ("methods.norm_kd.stages", [{"method": "norm_kd", "optimizer": {"lrr": 1}}], "methods.norm_kd: stages.*lrr"),
        ("training.optimizer", {"lrr": 1}, "lrr"),
        ("training.size", 8, "size"),
        ("methods.a-b", {"preset": "default"}, "a-b"),
        ("methods.dsp_kd.preset", "nonsense", "nonsense"),
        ("methods.dsp_kd.stages", [{"method": "norm_kd"}], "one of the two"),
        ("teachers.big", {"model": "timm/resnet18"}, "epochs"),
        ("teachers.big", {"run": "r", "epochs": 3}, "leave out epochs"),
        ("references", ["alone", "nobody"], "nobody"),
        ("references", ["norm_kd"], "undistilled"),
        ("ablation", [{"method": "norm_kd", "against": "nobody"}], "nobody"),
        ("seeds", [1, 1], "twice"),
        ("seeds", [], "seeds"),
        ("judge", "train", "judge"),
        ("epochs", 0, "epochs"),
        ("teachers", {}, "needs a teacher"),
        ("methods.alone.lr", 0.1, "go with `preset`"),
        (
            "methods.dsp_kd.settings",
            {"mgd": {"alpha": 1.0}},
            "methods.dsp_kd.settings: preset default has no stage mgd",
        ),
        ("training.settings", {"mgdd": {"alpha": 1.0}}, "training.settings: no method has a stage mgdd"),
    ],
)
def test_a_wrong_file_is_refused_with_the_key(tmp_path, path, value, named):
    with pytest.raises(ConfigError, match=named) as caught:
        plan_of(changed(tmp_path, path, value), tmp_path)
    assert "\n" not in caught.value.message.strip()
    assert "file.toml" in caught.value.message


def test_without_an_undistilled_student_there_is_nothing_to_compare_with(tmp_path):
    values = comparison_values(tmp_path)
    del values["methods"]["alone"]
    with pytest.raises(ConfigError, match="no undistilled student"):
        plan_of(values, tmp_path)


def test_an_unknown_network_is_refused_before_anything_runs(tmp_path):
    with pytest.raises(ModelError, match="shufflenett"):
        plan_of(changed(tmp_path, "students.small.model", "shufflenett"), tmp_path)


def test_no_images_is_a_usage_error(tmp_path):
    values = comparison_values(tmp_path)
    del values["data"]
    with pytest.raises(UsageError, match="names no images"):
        parse_comparison(values, origin="file.toml")


def test_the_stored_file_means_the_same(tmp_path):
    comparison = parse_comparison(comparison_values(tmp_path), origin="file.toml")
    assert parse_comparison(tomllib.loads(comparison_toml(comparison)), origin="stored") == comparison


def documented():
    for path in sorted((ROOT / "benchmarks" / "compare").glob("*.toml")):
        yield pytest.param(path.read_text(encoding="utf-8"), id=path.name)
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    for block in re.findall(r"```toml\n(.*?)```", readme, flags=re.DOTALL):
        if "[methods." in block:
            yield pytest.param(block, id="README")


@pytest.mark.parametrize("text", list(documented()))
def test_files_that_are_shown_are_right(tmp_path, text):
    values = tomllib.loads(text)
    values.setdefault("data", {})["root"] = str(tmp_path)
    comparison = parse_comparison(values, origin="file.toml")
    assert len(plan_of(values, tmp_path).cells) >= len(comparison.methods) * len(comparison.seeds)


@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_trains_the_student_for_the_budget(tmp_path, preset):
    values = changed(tmp_path, "methods.dsp_kd", {"preset": preset}) | {"epochs": 10}
    plan = plan_of(values, tmp_path)
    config = next(cell.config for cell in plan.cells if cell.method == "dsp_kd")
    assert student_epochs(config) == 10
    assert plan.has_teacher("dsp_kd") == (preset != "extra_epochs")
