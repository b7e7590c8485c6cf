"""The tables against numbers computed in another way, and what they say where something is missing."""

import csv
import io
import json
import re

import numpy as np
import pytest
from fake_runs import CLASSES, comparison_values, fake_run, finish_all, plan_of
from sklearn.metrics import accuracy_score, balanced_accuracy_score, f1_score

from dspkd.compare.execution import write_recipes
from dspkd.compare.output import comparison_csv, comparison_markdown, runs_csv, write_tables
from dspkd.compare.results import AGAIN, collect
from dspkd.compare.tables import comparison_tables, summary_tables
from dspkd.errors import DataError
from dspkd.train.metrics import lesion_draws

SKILLS = {"teacher": 0.8, "alone": 0.6, "norm_kd": 0.65, "dsp_kd": 0.7, "long": 0.6}


def values_with_controls(root, **more):
    values = comparison_values(root, **more)
    long = {"label": "Longer", "budget": "own", "stages": [{"method": "cross_entropy", "epochs": 5}]}
    values["methods"]["long"] = long
    values["ablation"] = [{"method": "long", "against": "alone"}, {"method": "dsp_kd", "against": "norm_kd"}]
    return values


@pytest.fixture
def plan(tmp_path):
    plan = plan_of(values_with_controls(tmp_path, title="A | title"), tmp_path / "out")
    finish_all(plan, SKILLS)
    return plan


@pytest.fixture
def results(plan):
    return collect(plan).results


def read(plan, method, seed, part="test"):
    path = plan.cell(method, "small", "big", seed).config.out / f"predictions-{part}.csv"
    with path.open(newline="") as f:
        rows = list(csv.DictReader(f))
    return tuple(np.array([row[key] for row in rows]) for key in ("label", "predicted", "lesion"))


def row(results, method):
    return next(r for r in results["pairs"][0]["rows"] if r["method"] == method)


def test_metrics_are_those_of_the_stored_predictions(plan, results):
    for method in ("alone", "dsp_kd"):
        own = row(results, method)
        for seed in (0, 1):
            truth, predicted, _ = read(plan, method, seed)
            assert own["metrics"]["accuracy"]["values"][seed] == pytest.approx(accuracy_score(truth, predicted))
            expected = balanced_accuracy_score(truth, predicted)
            assert own["metrics"]["balanced_accuracy"]["values"][seed] == pytest.approx(expected)
            each = f1_score(truth, predicted, labels=CLASSES, average=None)
            assert [own["metrics"][f"f1/{c}"]["values"][seed] for c in CLASSES] == pytest.approx(list(each))
        both = own["metrics"]["accuracy"]["values"]
        assert own["metrics"]["accuracy"]["mean"] == pytest.approx(np.mean(both))
        assert own["metrics"]["accuracy"]["sd"] == pytest.approx(abs(both[0] - both[1]) / np.sqrt(2))
        assert np.sum(own["confusion"]) == 600


def test_differences_are_paired_by_seed_and_by_lesion(plan, results):
    """The interval of accuracy, from the same draws counted out image by image."""
    right = {
        method: np.array([read(plan, method, seed)[0] == read(plan, method, seed)[1] for seed in (0, 1)])
        for method in ("alone", "norm_kd", "dsp_kd")
    }
    lesions = read(plan, "alone", 0)[2]
    index, draws = lesion_draws(lesions.tolist(), 2000)
    counts = draws[:, index]
    for reference in ("alone", "norm_kd"):
        gain = (right["dsp_kd"].astype(int) - right[reference].astype(int)).mean(0)
        over_draws = (counts * gain).sum(1) / counts.sum(1)
        own = row(results, "dsp_kd")["versus"][reference]["accuracy"]
        assert own["difference"] == pytest.approx(gain.mean())
        assert own["lesions"] == pytest.approx(np.percentile(over_draws, [2.5, 97.5]), abs=1e-6)
        low, high = own["lesions_and_seeds"]
        assert low < own["lesions"][0] < own["lesions"][1] < high
        assert len(own["per_seed"]) == 2


def test_the_gap_is_the_share_of_the_teachers_lead(plan, results):
    teacher = results["networks"][0]["metrics"]["balanced_accuracy"]["mean"]
    alone, ours = (row(results, m)["metrics"]["balanced_accuracy"]["mean"] for m in ("alone", "dsp_kd"))
    gap = row(results, "dsp_kd")["gap_closed"]
    assert gap["value"] == pytest.approx((ours - alone) / (teacher - alone))
    assert row(results, "alone")["gap_closed"] is None


def test_holm_counts_every_comparison_once_over_all_teachers(tmp_path):
    values = values_with_controls(tmp_path)
    values["teachers"]["other"] = {"model": "timm/resnet18", "epochs": 1}
    plan = plan_of(values, tmp_path / "out")
    finish_all(plan, SKILLS)
    pairs = collect(plan).results["pairs"]
    against_alone = [r["versus"]["alone"] for pair in pairs for r in pair["rows"] if "alone" in r["versus"]]
    # `long` has no teacher and stands in both tables; norm_kd and dsp_kd are other runs with each teacher.
    assert len(against_alone) == 6
    assert {entry["holm"]["comparisons"] for entry in against_alone} == {5}
    for entry in against_alone:
        own = entry["balanced_accuracy"]["p"]
        assert own <= entry["holm"]["p"] <= min(1.0, 5 * own) + 1e-12


def test_the_ablation_compares_what_the_file_says(results):
    ablation = {(r["method"], r["against"]): r["difference"] for r in results["pairs"][0]["ablation"]}
    assert set(ablation) == {("long", "alone"), ("dsp_kd", "norm_kd")}
    assert ablation["dsp_kd", "norm_kd"]["accuracy"] == row(results, "dsp_kd")["versus"]["norm_kd"]["accuracy"]


def test_results_are_json_without_nan(results):
    assert json.loads(json.dumps(results, allow_nan=False)) == results


def test_markdown_has_the_papers_tables(results):
    text = comparison_markdown(results)
    titles = re.findall(r"^## (.*)$", text, flags=re.MULTILINE)
    for wanted in ("Table 1", "Accuracy.*Table 2", "Balanced accuracy.*Table 2", "All metrics", "Table 4", "Table 7"):
        assert any(re.search(wanted, title) for title in titles), wanted
    assert "alpha, on validation" in text
    assert "not said" in text
    assert "Longer †" in text
    assert "another number of epochs" in text
    own = row(results, "dsp_kd")["metrics"]["balanced_accuracy"]
    assert f"{100 * own['mean']:.1f} ± {100 * own['sd']:.1f}" in text
    for line in text.splitlines():
        if line.startswith("|"):
            assert line.endswith("|")


def test_every_row_of_a_table_has_all_columns(results):
    for table in (*comparison_tables(results), *summary_tables(results)):
        assert {len(r) for r in table.rows} == {len(table.columns)}, table.title


def test_csv_repeats_the_numbers(results):
    rows = list(csv.DictReader(io.StringIO(comparison_csv(results))))
    (found,) = (
        r for r in rows if (r["method"], r["metric"], r["reference"]) == ("dsp_kd", "balanced_accuracy", "alone")
    )
    own = row(results, "dsp_kd")["versus"]["alone"]
    assert float(found["difference"]) == own["balanced_accuracy"]["difference"]
    assert float(found["lesions_and_seeds_high"]) == own["balanced_accuracy"]["lesions_and_seeds"][1]
    assert float(found["holm_p"]) == own["holm"]["p"]
    runs = list(csv.DictReader(io.StringIO(runs_csv(results))))
    assert len(runs) == 9
    assert {r["seed"] for r in runs if r["method"] == "alone"} == {"0", "1"}


def test_validation_is_judged_where_the_file_says_so(tmp_path):
    plan = plan_of(comparison_values(tmp_path, judge="val"), tmp_path / "out")
    write_recipes(plan)
    for cell in plan.cells:
        fake_run(cell, SKILLS[cell.method or "teacher"], parts=("val",))
    results = collect(plan).results
    truth, predicted, _ = read(plan, "alone", 0, part="val")
    found = row(results, "alone")["metrics"]["accuracy"]["values"][0]
    assert found == pytest.approx(accuracy_score(truth, predicted))
    assert "chose the epoch" in comparison_markdown(results)


def test_what_is_missing_is_named_and_left_out(tmp_path):
    plan = plan_of(values_with_controls(tmp_path), tmp_path / "out")
    finish_all(plan, SKILLS)
    (plan.cell("norm_kd", "small", "big", 1).config.out / "predictions-test.csv").unlink()
    (plan.cell("dsp_kd", "small", "big", 0).config.out / "student.json").unlink()
    record = plan.cell("dsp_kd", "small", "big", 0).failure_record
    record.write_text(json.dumps({"error": "exit code 1: out of luck", "at": 0}))
    for name in (0, 1):
        (plan.cell("long", "small", "big", name).config.out / "student.json").unlink()
    results = collect(plan).results
    reasons = {entry["run"]: entry["reason"] for entry in results["missing"]}
    assert reasons == {
        "norm_kd-big-small-seed1": f"its predictions are missing (predictions-test.csv); {AGAIN}",
        "dsp_kd-big-small-seed0": "exit code 1: out of luck",
        "long-small-seed0": "not finished",
        "long-small-seed1": "not finished",
    }
    # norm_kd has seed 0, dsp_kd seed 1: no pair is left.
    assert row(results, "dsp_kd")["versus"]["norm_kd"] is None
    assert row(results, "dsp_kd")["versus"]["alone"]["seeds"] == [1]
    assert row(results, "dsp_kd")["versus"]["alone"]["accuracy"]["lesions_and_seeds"] is None
    assert row(results, "long")["metrics"] == {}
    text = comparison_markdown(results)
    assert "out of luck" in text


def test_without_a_teacher_there_is_no_gap(tmp_path):
    plan = plan_of(comparison_values(tmp_path), tmp_path / "out")
    finish_all(plan, SKILLS)
    (plan.cells[0].config.out / "predictions-test.csv").unlink()
    results = collect(plan).results
    assert all(r["gap_closed"] is None for r in results["pairs"][0]["rows"])
    comparison_markdown(results)


def test_students_alone_make_table_1(tmp_path):
    methods = {"alone": {"stages": [{"method": "cross_entropy"}]}}
    plan = plan_of(comparison_values(tmp_path, methods=methods, teachers={}), tmp_path / "out")
    finish_all(plan, SKILLS)
    text = comparison_markdown(collect(plan).results)
    assert "Table 1" in text
    assert "Table 2" not in text


def left_out(plan):
    """Why runs are not in the tables, which are whole without them."""
    results = collect(plan).results
    comparison_markdown(results)
    reasons = {entry["run"]: entry["reason"] for entry in results["missing"]}
    assert {run["run"] for run in results["runs"]} == {cell.name for cell in plan.cells} - {*reasons}
    return reasons


def cut_predictions(folder):
    path = folder / "predictions-test.csv"
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:-2]))


def cut_last_row(folder):
    path = folder / "predictions-test.csv"
    path.write_text(path.read_text()[:-8])


def write(name, text):
    return lambda folder: (folder / name).write_text(text)


def cut_history(folder):
    path = folder / "metrics.jsonl"
    path.write_text(path.read_text()[:-20])


DAMAGES = {
    "no config": (lambda folder: (folder / "config.toml").unlink(), "config.toml does not exist"),
    "broken config": (write("config.toml", "stages = ["), "config.toml cannot be read"),
    "config of an older dspkd": (write("config.toml", "network = 'small'"), "config.toml: model: Field required"),
    "cut history": (cut_history, r"metrics.jsonl: line \d is no JSON, so the file was cut"),
    "no bytes": (write("predictions-test.csv", ""), "predictions-test.csv holds no predictions"),
    "no rows": (write("predictions-test.csv", "image,lesion,label,predicted\n"), "holds no predictions"),
    "cut row": (cut_last_row, "predictions-test.csv: row 300 is no image with a label"),
    "fewer rows": (cut_predictions, "other images than the other runs"),
    "broken card": (write("student.json", "{"), "student.json cannot be read as JSON"),
}


@pytest.mark.parametrize("position", [0, -1])
@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_run_is_left_out_and_named(plan, damage, position):
    """Also the first one, by which the others must not be judged."""
    cell = plan.cells[position]
    break_it, said = DAMAGES[damage]
    break_it(cell.config.out)
    reasons = left_out(plan)
    assert [*reasons] == [cell.name]
    assert re.search(said, reasons[cell.name])
    assert "make it again" in reasons[cell.name]
    assert str(plan.out) not in reasons[cell.name]


def test_a_damaged_given_teacher_costs_the_gap_alone(plan, tmp_path):
    folder = plan.cells[0].config.out
    values = values_with_controls(tmp_path, teachers={"big": {"run": str(folder)}})
    (folder / "metrics.jsonl").write_text('{"stage": ')
    given = plan_of(values, tmp_path / "out")
    results = collect(given).results
    (entry,) = results["missing"]
    assert entry["run"] == "teacher big"
    assert "metrics.jsonl: line 1" in entry["reason"]
    assert all(r["gap_closed"] is None for r in results["pairs"][0]["rows"])


@pytest.mark.parametrize("position", [0, -1])
def test_a_run_on_another_split_is_left_out(plan, position):
    fake_run(plan.cells[position], 0.6, split_sha256="another")
    ((name, reason),) = left_out(plan).items()
    assert name == plan.cells[position].name
    assert "another split than the other runs" in reason


def test_students_of_another_teacher_are_left_out(plan):
    from dspkd.fileio import read_sealed_json, write_sealed_json

    card = plan.cells[0].config.out / "student.json"
    value = read_sealed_json(card, kind="student", schema_version=2)
    write_sealed_json(card, {**value, "weights_sha256": "fitted again"})
    reasons = left_out(plan)
    assert set(reasons) == {cell.name for cell in plan.cells if cell.method in ("norm_kd", "dsp_kd")}
    assert all("other weights than teacher big" in reason for reason in reasons.values())


def test_nothing_finished_is_said(tmp_path):
    plan = plan_of(comparison_values(tmp_path), tmp_path / "out")
    with pytest.raises(DataError, match="no student is finished"):
        collect(plan)
    write_recipes(plan)
    record = plan.cells[0].failure_record
    record.write_text(json.dumps({"error": "exit code 1: out of luck", "at": 0}))
    with pytest.raises(DataError, match=r"no student is finished.*\(teacher-big: exit code 1: out of luck\)"):
        collect(plan)


def test_files_and_pictures(plan):
    pytest.importorskip("matplotlib")
    write_tables(plan.out, collect(plan))
    for name in ("tables.md", "tables.csv", "runs.csv", "results.json"):
        assert (plan.out / name).stat().st_size > 500
    for name in ("curves-big-small.svg", "confusion-big-small.svg"):
        picture = (plan.out / name).read_text()
        assert picture.startswith("<svg")
        assert "DSP-KD" in picture


def test_the_page_is_whole_escaped_and_asks_for_nothing(tmp_path):
    pytest.importorskip("jinja2")
    from dspkd_bench.compare_page import render_comparison

    values = values_with_controls(tmp_path, title="<script>alert(1)</script>")
    plan = plan_of(values, tmp_path / "out")
    finish_all(plan, SKILLS)
    collected = collect(plan)
    page = render_comparison(collected.results, collected.histories)
    assert "<script" not in page
    assert "&lt;script&gt;" in page
    assert not re.findall(r"(?:src|href)=\"(?!#|data:)", page)
    assert page.count('class="heat') == 4
    # Two references, each drawn wide and narrow; the curves of three methods beside the undistilled student.
    assert page.count("<svg") == 2 * 2 + 3
    for table in comparison_tables(collected.results):
        assert table.title in page


def test_the_page_names_what_is_above_its_reference(tmp_path):
    pytest.importorskip("jinja2")
    from dspkd_bench.compare_page import render_comparison

    plan = plan_of(comparison_values(tmp_path, seeds=[0, 1, 2, 3, 4]), tmp_path / "out")
    finish_all(plan, {**SKILLS, "dsp_kd": 0.95, "norm_kd": 0.6})
    collected = collect(plan)
    page = render_comparison(collected.results, collected.histories)
    assert "compared with alone, DSP-KD above it" in page
