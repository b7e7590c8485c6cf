"""The page: complete, escaped, and without a request to anybody."""

import json
import re
from dataclasses import replace
from html.parser import HTMLParser

import pytest

from dspkd.errors import DataError
from dspkd.figures import confusion_svg, curves_svg
from dspkd.student import load_card
from dspkd_bench.charts import Point, Series, line_chart, log_ticks, nice_ticks, scatter_chart
from dspkd_bench.report import ReportContent, assign_teachers, collect, read_results, render_report, write_report
from dspkd_bench.report_view import view

pytest.importorskip("jinja2")
VOID = {"meta", "link", "br", "img"}
EVIL = '<script>alert("1")</script>'


class Page(HTMLParser):
    """Collects what a test asks about, and complains about tags that do not match."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.feed(text)
        self.close()
        assert not self.open, f"never closed: {self.open}"

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag, f"</{tag}> closes nothing"

    def all(self, name: str) -> list[dict[str, str | None]]:
        return [attributes for tag, attributes in self.tags if tag == name]


@pytest.fixture
def page(report_data) -> str:
    return render_report(report_data)


def test_every_section_is_there_and_every_link_in_the_page_leads_somewhere(page):
    parsed = Page(page)
    ids = {a["id"] for _, a in parsed.tags if "id" in a}
    links = {a["href"] for a in parsed.all("a")}
    sections = {
        "accuracy",
        "speed",
        "certificates",
        "training",
        "classes",
        "confusion",
        "mask",
        "environment",
        "commands",
    }
    assert links == {f"#{name}" for name in sections}
    assert sections <= ids


def test_nothing_is_loaded_from_anywhere(page):
    parsed = Page(page)
    assert not {"script", "iframe", "object", "embed", "form", "base"} & {tag for tag, _ in parsed.tags}
    for _, attributes in parsed.tags:
        for name in ("src", "href", "srcset", "data", "xlink:href", "action", "poster"):
            assert re.match(r"data:|#", attributes.get(name) or "#"), attributes
    assert "http://" not in page
    assert "https://" not in page
    assert "@import" not in page
    assert "url(" not in page
    policy = [a["content"] for a in parsed.all("meta") if a.get("http-equiv") == "Content-Security-Policy"]
    assert policy == ["default-src 'none'; style-src 'unsafe-inline'; img-src data:"]


def test_tables_pictures_and_charts_can_be_read_aloud(page):
    parsed = Page(page)
    assert parsed.all("html")[0]["lang"] == "en"
    assert all(a.get("scope") in ("col", "row") for a in parsed.all("th"))
    assert all(a.get("alt") for a in parsed.all("img"))
    assert all(a.get("aria-label") or a.get("aria-hidden") for a in parsed.all("svg"))
    assert len(parsed.all("h1")) == 1


def test_the_headline_says_what_was_measured(page):
    for text in ("34.2×", "56.1×", "fewer parameters", "Student distilled", "AMD EPYC &lt;virtual&gt;", "100.00 %"):
        assert text in page


def test_every_text_is_escaped(report_data, results):
    results["command"] = results["environment"]["cpu"] = EVIL
    for subject in results["subjects"]:
        subject["name"] = subject["architecture"] = subject["precision"] = subject["name"] + EVIL
    for ratio in results["ratios"]:
        ratio["subject"] += EVIL
        ratio["teacher"] += EVIL
    runs = [replace(run, name=EVIL, card={**run.card, "architecture": EVIL}) for run in report_data.runs]
    text = render_report(
        replace(report_data, title=EVIL, notes=[EVIL], results=[results], runs=runs, commands=EVIL, strip_caption=EVIL)
    )
    assert "<script" not in text
    assert "&lt;script&gt;" in text
    Page(text)


def test_class_names_are_escaped(report_data):
    run = report_data.runs[0]
    metrics = dict(run.metrics)
    metrics["per_class"] = {EVIL: metrics["per_class"]["MEL"]}
    metrics["confusion"] = [[3]]
    card = {**run.card, "classes": [EVIL], "metrics": {"test": metrics}}
    assert "<script" not in render_report(ReportContent(runs=[replace(run, card=card)]))


def test_an_empty_report_and_each_half_alone(report_data):
    for content in (
        ReportContent(),
        ReportContent(results=report_data.results),
        ReportContent(runs=report_data.runs),
        ReportContent(runs=[replace(run, history=[]) for run in report_data.runs]),
    ):
        Page(render_report(content))


def test_subjects_without_memory_accuracy_or_teacher(report_data, results):
    for subject in results["subjects"]:
        subject["memory"] = subject["validation"] = subject["certificate"] = None
    results["ratios"] = []
    text = render_report(ReportContent(results=[results]))
    assert "Memory" not in text
    assert "fewer parameters" not in text


@pytest.mark.parametrize(
    ("alone", "distilled", "words"),
    [
        ([0.50], [0.60], "gains 10.0 points"),
        ([0.60], [0.50], "loses 10.0 points"),
        ([0.50], [0.50], "makes no difference"),
        ([0.50, 0.52], [0.60, 0.58], "do not overlap"),
        ([0.50, 0.59], [0.60, 0.58], "overlap: the seeds alone"),
    ],
)
def test_the_finding_says_which_way_it_went(report_data, alone, distilled, words):
    _, baseline, student = report_data.runs

    def with_score(run, seed, score):
        metrics = {**run.metrics, "balanced_accuracy": score}
        metrics.pop("intervals")
        return replace(run, name=f"{run.role}-{seed}", card={**run.card, "metrics": {"test": metrics}})

    runs = [with_score(baseline, i, s) for i, s in enumerate(alone)]
    runs += [with_score(student, i, s) for i, s in enumerate(distilled)]
    assert words in render_report(ReportContent(runs=runs))


def test_notes_of_the_caller_stand_beside_the_findings_and_never_instead(report_data):
    text = render_report(replace(report_data, notes=["My own words."]))
    assert "My own words." in text
    assert "Distillation gains" in text


def test_the_teacher_is_known_by_its_weights(report_data):
    teacher, alone, student = report_data.runs
    found = assign_teachers([replace(teacher, role="baseline"), alone, student])
    assert [run.role for run in found] == ["teacher", "baseline", "student"]
    measured = assign_teachers([replace(teacher, role="baseline"), alone], {"c" * 64})
    assert [run.role for run in measured] == ["baseline", "teacher"]


def test_results_are_read_or_refused_by_name(tmp_path, results):
    path = tmp_path / "results.json"
    with pytest.raises(DataError, match="does not exist"):
        read_results(path)
    for text, words in (
        ("{", "cannot be read as JSON"),
        ("[]", "holds no results"),
        (json.dumps({**results, "schema_version": 99}), "schema version 99"),
        (json.dumps({k: v for k, v in results.items() if k != "ratios"}), "lacks ratios"),
    ):
        path.write_text(text)
        with pytest.raises(DataError, match=words):
            read_results(path)
    path.write_text(json.dumps(results))
    content = collect([path])
    assert content.results == [results]
    assert content.runs == []
    write_report(tmp_path / "out" / "report.html", content)
    assert (tmp_path / "out" / "report.html").read_text().startswith("<!doctype html>")


def test_ticks_are_round_numbers_inside_the_axis():
    assert nice_ticks(0.0, 100.0) == [0, 20, 40, 60, 80, 100]
    assert nice_ticks(63.1, 74.2) == [65, 67.5, 70, 72.5]
    assert nice_ticks(5.0, 5.0) == [5.0]
    assert log_ticks(3.0, 230.0) == [5, 10, 20, 50, 100, 200]
    assert log_ticks(1e-6, 1e3)[0] == pytest.approx(1e-6)


def test_charts_of_odd_data():
    assert line_chart([], title="t", x_label="x", y_label="y") == ""
    assert scatter_chart([], title="t", x_label="x", y_label="y") == ""
    odd = Series("s", "student", [(1, float("nan")), (2, 0.0), (3, 2.0)])
    chart = line_chart([odd], title="t", x_label="x", y_label="y", log_y=True)
    assert "nan" not in chart
    same = [Point(f"p{i}", "student", 5.0, 50.0, 0.0) for i in range(5)]
    assert scatter_chart(same, title="t", x_label="x", y_label="y").count("<circle") == 5


def test_labels_of_a_scatter_do_not_overlap():
    points = [Point(f"ONNX Runtime {i}", "student", 4.0 + i / 10, 60.0, 1.0) for i in range(6)]
    chart = scatter_chart(points, title="t", x_label="x", y_label="y")
    places = [(float(x), float(y)) for x, y in re.findall(r'class="name student" x="([\d.]+)" y="([\d.]+)"', chart)]
    assert len(places) == 6
    for i, (x, y) in enumerate(places):
        assert all(abs(y - v) >= 14 or abs(x - u) >= 14 * 7 for u, v in places[i + 1 :])


def test_pictures_of_a_run_folder(report_data):
    pytest.importorskip("matplotlib")
    run = report_data.runs[2]
    curves = curves_svg({run.name: run.history})
    matrix = confusion_svg(run.card["classes"], run.metrics["confusion"])
    assert curves.startswith("<svg")
    assert matrix.startswith("<svg")
    assert "MEL" in matrix
    assert curves == curves_svg({run.name: run.history})


def test_the_measured_runs_stay_when_more_are_given(tiny_student, tiny_teacher, tmp_path, results):
    """`--run runs/alone` adds a run; teacher and student that were measured must not vanish from the page."""
    measured = json.loads(json.dumps(results))
    network = next(s for s in measured["subjects"] if s["target"] == "pytorch")
    network["path"] = str(tiny_student)
    path = tmp_path / "results.json"
    path.write_text(json.dumps(measured))
    content = collect([path], [tiny_teacher])
    weights = {load_card(folder).weights_sha256 for folder in (tiny_student, tiny_teacher)}
    assert {run.card["weights_sha256"] for run in content.runs} == weights


def test_no_speed_is_claimed_across_runtimes(report_data, results):
    measured = json.loads(json.dumps(results))
    for ratio in measured["ratios"]:
        ratio["same_runtime"] = False
    tiles = view(replace(report_data, results=[measured]))["tiles"]
    assert [tile["label"] for tile in tiles if tile["label"] == "faster"] == []
    assert any(tile["label"] == "fewer parameters" for tile in tiles)


def test_a_run_that_may_not_be_believed_says_so_first(results):
    reasons = ["broke off: the connection to <ssh://board> is lost", "student: the latencies are bimodal"]
    results |= {
        "device": {"url": "ssh://board", "kind": "ssh", "name": None, "machine": "aarch64"},
        "validity": {"verdict": "invalid", "reasons": reasons},
        "failed": [{"name": "teacher ExecuTorch fp32", "message": "out of <memory>"}],
    }
    results["subjects"][0] |= {"load_ms": 12.5, "first_inference_ms": None}
    page = render_report(ReportContent(results=[results]))
    assert "Invalid run: do not quote these numbers." in page
    assert "&lt;ssh://board&gt;" in page and "<memory>" not in page
    assert "Measured on ssh://board" in page and "teacher ExecuTorch fp32: out of" in page
    assert page.index("Invalid run") < page.index("p50, ms") and "12.5" in page


def test_results_from_before_verdicts_have_none(results):
    page = render_report(ReportContent(results=[results]))
    assert 'class="verdict"' not in page
