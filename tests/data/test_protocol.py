"""The paper's protocol: it leaks, and whatever was made with it says so."""

import csv
import json
from pathlib import Path

import pytest
from fake_runs import comparison_values, finish_all, plan_of
from tiny_runs import tiny_config

from dspkd.compare.output import write_tables
from dspkd.compare.results import collect
from dspkd.config import parse_run_config
from dspkd.data.sources import Sample, Table, read_table
from dspkd.data.split import PARTS, known_images, load_split, make_split, save_split
from dspkd.errors import ConfigError
from dspkd.presets import preset_stages
from dspkd.protocol import caution
from dspkd.student import load_card
from dspkd.train.run import run

WARNS = 'protocol "paper"'


def table_of(lesions, images):
    samples = [
        Sample(f"{g}-{i}", Path(f"{g}-{i}.png"), g % 2, f"lesion{g}", part="train")
        for g in range(lesions)
        for i in range(images)
    ]
    return Table(Path("set"), ("A", "B"), tuple(samples))


def test_pictures_are_divided_and_not_lesions():
    table = table_of(100, 3)
    split = make_split(table, protocol="paper")
    assert split.leaks
    assert sorted(image for part in PARTS for image in getattr(split, part)) == sorted(
        s.image_id for s in table.samples
    )
    assert len(split.test) == 60
    known = set(known_images(table, split.train, split.test))
    learned = {image.split("-")[0] for image in split.train}
    assert known == {image for image in split.test if image.split("-")[0] in learned}
    # A test image is alone of its lesion with probability 0.3 x 0.3.
    assert 40 <= len(known) < 60


def test_a_split_by_lesion_knows_nothing(tmp_path):
    table = table_of(100, 3)
    split = make_split(table, by_column=False)
    assert not split.leaks and not known_images(table, split.train, split.test)


def test_the_order_of_rows_does_not_matter():
    table = table_of(40, 2)
    turned = Table(table.root, table.classes, tuple(reversed(table.samples)))
    assert make_split(table, protocol="paper").sha256 == make_split(turned, protocol="paper").sha256


def test_a_stored_split_still_says_so(tmp_path):
    table = table_of(40, 2)
    save_split(make_split(table, protocol="paper"), tmp_path / "split.json")
    assert load_split(tmp_path / "split.json", table).leaks


@pytest.mark.parametrize("other", [{"folds": 5}, {"own_split": True}])
def test_it_goes_with_no_other_way_to_divide(other):
    with pytest.raises(ConfigError, match="divides at random"):
        parse_run_config(
            {"model": "m", "out": "o", "data": {"root": "r", "protocol": "paper", **other},
             "stages": [{"method": "cross_entropy", "epochs": 1}]}, origin="file.toml",
        )  # fmt: skip


@pytest.fixture(scope="module")
def leaky(tiny_data, tmp_path_factory):
    """A teacher and its student under the paper's protocol."""
    root = tmp_path_factory.mktemp("leaky")
    data = {"root": str(tiny_data), "protocol": "paper"}
    teacher = root / "teacher"
    run(tiny_config(tiny_data, teacher, data=data))
    run(tiny_config(tiny_data, root / "student", teacher=teacher, stages=preset_stages("norm_kd", epochs=1), data=data))
    return root


def test_a_run_and_its_pictures_and_predictions_say_so(leaky, tiny_data):
    card = load_card(leaky / "student")
    with (leaky / "student" / "predictions-test.csv").open(newline="") as f:
        rows = list(csv.DictReader(f))
    known = sum(int(row["lesion_was_learned_from"]) for row in rows)
    assert known == card.data["leak"]["test"] > 0
    assert WARNS in card.caution and f"{known} of {len(rows)} test images" in card.caution
    split = load_split(leaky / "student" / "split.json", read_table(tiny_data))
    assert split.leaks and split.sha256 == load_card(leaky / "teacher").data["split_sha256"]
    pytest.importorskip("matplotlib")
    for picture in ("curves.svg", "confusion.svg"):
        # The sentence lies in several lines of the picture.
        assert "inflated" in (leaky / "student" / picture).read_text()


def test_a_clean_run_says_nothing(tiny_student):
    assert load_card(tiny_student).caution is None and caution({}) is None
    assert "lesion_was_learned_from" not in (tiny_student / "predictions-test.csv").read_text()


def test_artifacts_evaluations_and_reports_say_so(leaky, tmp_path):
    pytest.importorskip("onnxruntime")
    from dspkd.artifact import load_artifact
    from dspkd.cli.common import open_classifier
    from dspkd.cli.sharing import validation_images
    from dspkd.student import load_student
    from dspkd.train.reporter import Reporter
    from dspkd_bench.report import ReportContent, render_report, summarise_run
    from dspkd_bench.subjects import open_subject
    from dspkd_bench.table import cautions
    from dspkd_export import export_student

    images = validation_images(load_student(leaky / "student"), None, Reporter())
    (made,) = export_student(leaky / "student", targets=["onnx"], precisions=["fp32"], out=tmp_path, images=images)
    assert WARNS in load_artifact(made.path).card.certificate["caution"]
    for folder in (leaky / "student", made.path):
        assert WARNS in open_classifier(folder).caution
        validation = open_subject(folder, threads=1).validation
        assert WARNS in cautions({"subjects": [{"validation": validation}, {"validation": None}]})[0]
    pytest.importorskip("jinja2")
    assert "by picture, not by lesion" in render_report(ReportContent(runs=[summarise_run(leaky / "student")]))


def test_a_comparison_says_so(tmp_path):
    plan = plan_of(comparison_values(tmp_path), tmp_path / "out")
    finish_all(plan, {"teacher": 0.9, "alone": 0.6, "norm_kd": 0.7, "dsp_kd": 0.7})
    results = collect(plan).results
    assert results["caution"] is None
    marked = collect(plan)
    marked.results["caution"] = caution({"protocol": "paper", "leak": {"test": 5}, "images": {"test": 9}})
    write_tables(plan.out, marked)
    assert "5 of 9 test images" in (plan.out / "tables.md").read_text()
    assert "5 of 9 test images" in json.loads((plan.out / "results.json").read_text())["caution"]
