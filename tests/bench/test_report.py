"""The page: complete, escaped, and without a request to anybody."""

import json
import re
from dataclasses import replace
from html.parser import HTMLParser

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dspkd.errors import DataError
from dspkd.figures import confusion_svg, curves_svg
from dspkd.student import load_card
from dspkd_bench.charts import Point, Series, line_chart, log_ticks, nice_ticks, pareto_front, scatter_chart
from dspkd_bench.charts_calibration import reliability_chart
from dspkd_bench.charts_latency import time_chart
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


def measured_everything(results):
    """Adds what a bench measures only where it is asked to, or where there is a sensor."""
    results["device"] = {"url": "ssh://board", "kind": "ssh", "name": "Board", "machine": "aarch64"}
    results["device"]["facts"] = {"JetPack": "6.2", "Power mode": "MAXN"}
    results["environment"]["affinity"] = [2, 3]
    results["states"] = [
        {
            "at_ms": 1000.0 * second,
            "phase": "rounds" if second < 10 else "sustained",
            "clocks_khz": [1_500_000, 1_000_000],
            "temperatures_c": {"tj-thermal": 40.0 + second},
            "power_w": {"VDD_IN": 7.0},
            "load1": 1.0,
        }
        for second in range(20)
    ]
    for subject in results["subjects"]:
        p50 = subject["latency"]["p50_ms"]
        times = {"at_s": [0.1 * i for i in range(100)], "ms": [p50 * (1 + i / 500) for i in range(100)]}
        subject["series"], subject["throughput_per_s"], subject["flags"] = times, 1e3 / p50, ["drifting"]
        subject["batches"] = [
            {"batch": 8, "latency": {**subject["latency"], "p50_ms": 7 * p50}, "throughput_per_s": 8e3 / (7 * p50)}
        ]
        subject["sustained"] = {
            "seconds": 60.0,
            "burst_ms": p50,
            "sustained_ms": 1.3 * p50,
            "ratio": {"ratio": 1.3, "interval": [1.27, 1.33]},
            "series": times,
        }
        subject["energy"] = {
            "mj_per_inference": 4 * p50,
            "interval": [3.9 * p50, 4.1 * p50],
            "idle_w": 3.0,
            "active_w": 7.0,
            "sensor": "VDD_IN, ina3221",
            "rate_hz": 10.0,
            "seconds": 20.0,
        }
    return results


@pytest.fixture
def page(report_data) -> str:
    return render_report(report_data)


def test_every_section_is_there_and_every_link_in_the_page_leads_somewhere(page):
    parsed = Page(page)
    ids = [a["id"] for _, a in parsed.tags if "id" in a]
    assert len(ids) == len(set(ids))
    links = {a["href"] for a in parsed.all("a")}
    sections = {
        "overview",
        "device-1",
        "accuracy",
        "certificates",
        "training",
        "classes",
        "reliability",
        "confusion",
        "mask",
        "environment",
        "commands",
    }
    assert links == {f"#{name}" for name in sections}
    assert sections <= set(ids)


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
    for text in (
        "34.2×",
        "56.1×",
        "fewer parameters",
        "Student distilled",
        "AMD EPYC &lt;virtual&gt;",
        "100.00\u00a0%",
    ):
        assert text in page


def test_every_text_is_escaped(report_data, results):
    measured_everything(results)
    results["command"] = results["environment"]["cpu"] = results["device"]["name"] = EVIL
    results["device"]["facts"] = {EVIL: EVIL}
    results["failed"] = [{"name": EVIL, "message": EVIL}]
    for state in results["states"]:
        state["temperatures_c"] = state["power_w"] = {EVIL: 40.0 + state["at_ms"] / 1e4}
    for number, subject in enumerate(results["subjects"]):
        subject["name"] = subject["architecture"] = subject["precision"] = subject["name"] + EVIL
        subject["path"] = subject["runtime"] = subject["target"] = EVIL
        subject["energy"] = {"not_measured": EVIL} if number else subject["energy"] | {"sensor": EVIL}
        subject["sustained"]["remarks"] = subject["flags"] = [EVIL]
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
    assert "Measured over ssh" in page and "<dd>ssh://board</dd>" in page and "teacher ExecuTorch fp32: out of" in page
    assert page.index("Invalid run") < page.index("p50, ms") and "12.5" in page


def test_results_from_before_verdicts_have_none(results):
    page = render_report(ReportContent(results=[results]))
    assert 'class="verdict' not in page


def test_an_old_result_has_none_of_what_is_measured_today(results):
    page = render_report(ReportContent(results=[results]))
    for heading in ("Batches", "Sustained load", "Energy", "Every call over time", "The device meanwhile"):
        assert f"<h3>{heading}</h3>" not in page
    assert 'id="reliability"' not in page


def test_what_was_measured_more_stands_in_the_devices_section(results):
    page = render_report(ReportContent(results=[measured_everything(results)]))
    for text in ("Batch 8", "1.30×", "1.27× – 1.33×", "VDD_IN, ina3221", "tj-thermal", "JetPack", "drifting", "2, 3"):
        assert text in page
    # Teacher 202, student 3.9 ms in ExecuTorch, and the energy is made proportional.
    teacher, student = (s for s in results["subjects"] if s["target"] == "executorch")
    ratio = teacher["latency"]["p50_ms"] / student["latency"]["p50_ms"]
    assert page.count(f"<strong>{ratio:.1f}×</strong>") >= 2


def test_the_reason_why_there_is_no_energy_stands_there_once(results):
    measured_everything(results)
    for subject in results["subjects"]:
        subject["energy"] = {"not_measured": "no power sensor can be read"}
    page = render_report(ReportContent(results=[results]))
    assert page.count("Not measured: no power sensor can be read.") == 1
    assert "mJ per" not in page


def test_every_row_can_be_measured_again(results):
    page = render_report(ReportContent(results=[results]))
    environment = page[page.index('id="environment"') :]
    assert "--teacher runs/teacher --threads 1</pre>" in environment
    for subject in results["subjects"]:
        assert subject["name"] in environment
        assert f"{subject['path']}<br>{subject['weights_sha256']}" in environment


def test_several_devices_have_a_section_each_and_a_matrix(results):
    board = measured_everything(json.loads(json.dumps(results)))
    board["subjects"] = [s for s in board["subjects"] if s["target"] != "pytorch"]
    board["ratios"] = [r for r in board["ratios"] if "pytorch" not in r["subject"]]
    shown = view(ReportContent(results=[results, board]))
    assert [device["title"] for device in shown["devices"]] == ["AMD EPYC <virtual>", "Board"]
    lines = {line["row"]["name"]: line["cells"] for line in shown["matrix"]["lines"]}
    assert len(lines) == 6
    assert lines["shufflenet_v2_x1_0 pytorch"][1] is None
    here, there = lines["shufflenet_v2_x1_0 onnx"]
    assert here["p50_ms"] == there["p50_ms"] and here["ratio"]["teacher"] == "res2net101_26w_4s onnx"
    page = render_report(ReportContent(results=[results, board]))
    assert {"device-1", "device-2"} <= {a["id"] for _, a in Page(page).tags if "id" in a}
    # A file's certificate is the same wherever it is timed.
    assert len(shown["certificates"]) == 4


def test_two_runs_on_one_device_keep_their_names_apart(results):
    titles = [device["title"] for device in view(ReportContent(results=[results] * 3))["devices"]]
    assert titles == ["AMD EPYC <virtual>", "AMD EPYC <virtual>, run 2", "AMD EPYC <virtual>, run 3"]


def test_the_ratios_stand_beside_those_of_the_paper(results):
    pairs = {pair["title"]: pair for pair in view(ReportContent(results=[results]))["pairs"]}
    assert pairs["Parameters"]["paper"] == 34.2 and pairs["Parameters"]["ratio"] == pytest.approx(34.2, abs=0.1)
    assert pairs["Median latency"]["paper"] == 12.9 and pairs["Median latency"]["interval"] is not None


def test_tails_have_small_print_where_there_were_calls_enough(results):
    many, few = (subject["latency"] for subject in results["subjects"][:2])
    many |= {"p90_interval_ms": [81.1, 82.2], "p99_interval_ms": [91.1, 92.2], "p90_early_stopping_ms": 83.3}
    few |= {"p90_interval_ms": None, "p99_interval_ms": None, "p90_early_stopping_ms": None}
    for old in results["subjects"][2:]:
        for key in ("p90_interval_ms", "p99_interval_ms", "p90_early_stopping_ms"):
            old["latency"].pop(key)
    page = render_report(ReportContent(results=[results]))
    Page(page)
    for text in ("81.1 – 82.2", "under 83.3", "91.1 – 92.2"):
        assert page.count(f'<span class="interval">{text}</span>') == 1
    assert page.count('<span class="interval">under ') == 1


def test_a_stock_export_is_compared_and_never_the_headline(results):
    student = next(s for s in results["subjects"] if s["role"] == "student" and s["target"] == "onnx")
    faster = {key: value / 10 if key.endswith("_ms") and value else value for key, value in student["latency"].items()
              if key not in ("p50_interval_ms", "p90_interval_ms", "p99_interval_ms")}  # fmt: skip
    peer = {
        **student,
        "name": "shufflenet OpenVINO",
        "role": "peer",
        "target": "openvino",
        "validation": None,
        "certificate": None,
        "latency": {**student["latency"], **faster},
    }
    results["subjects"].append(peer)
    results["ratios"].append({**results["ratios"][0], "subject": peer["name"], "same_runtime": False})
    shown = view(ReportContent(results=[results]))
    (device,) = shown["devices"]
    assert "shufflenet OpenVINO" in device["strips"] and "OpenVINO" not in device["scatter"]
    assert [pair["peer"]["name"] for pair in device["peers"]] == ["shufflenet OpenVINO"]
    assert all("OpenVINO" not in tile["note"] for tile in shown["tiles"])
    assert [net["role"] for net in device["networks"]] == ["teacher", "student"]


def test_an_artifact_that_ran_nowhere_here_says_so(results):
    subject = next(s for s in results["subjects"] if s["target"] == "onnx")
    subject["certificate"] = {"passed": None, "not_run": "no <device> at hand", "n": 0, "stand_in": None}
    subject["validation"] = None
    page = render_report(ReportContent(results=[results]))
    assert "no &lt;device&gt; at hand" in page and "not run" in page


def test_reliability_of_runs_and_of_files_against_pytorch(report_data, results):
    run = report_data.runs[2].metrics["calibration"]
    student = next(s for s in results["subjects"] if s["role"] == "student" and s["target"] == "onnx")
    worse = {**run, "ece": 0.25}
    student["validation"] = student["validation"] | {"calibration": worse}
    student["certificate"]["pytorch"] = student["certificate"]["pytorch"] | {"calibration": run}
    shown = view(replace(report_data, results=[results]))["reliability"]
    assert len(shown["runs"]) == 3
    (diagram,) = shown["files"]
    assert (diagram["ece"], diagram["pytorch_ece"]) == (0.25, run["ece"])
    assert diagram["chart"].count('class="hollow"') == sum(row["n"] > 0 for row in run["bins"])
    old = [
        replace(r, card={**r.card, "metrics": {"test": r.metrics | {"calibration": None}}}) for r in report_data.runs
    ]
    assert view(ReportContent(runs=old))["reliability"] is None


def test_a_reliability_diagram_shows_the_images_of_every_bin():
    bins = [{"low": k / 15, "high": (k + 1) / 15, "n": 0, "confidence": None, "accuracy": None} for k in range(15)]
    assert reliability_chart(bins, role="student", title="t") == ""
    bins[9] |= {"n": 40, "confidence": 0.63, "accuracy": 0.5}
    bins[14] |= {"n": 10, "confidence": 0.98, "accuracy": 0.9}
    chart = reliability_chart(bins, role="student", title="t")
    heights = [float(h) for h in re.findall(r'class="count student"[^>]* height="([\d.]+)"', chart)]
    assert heights[1] == pytest.approx(heights[0] / 4, abs=0.1)
    assert "60 to 67 % sure: 40 images, 50.0 % right" in chart


@given(st.lists(st.tuples(st.integers(1, 9), st.integers(1, 9)), min_size=1, max_size=12))
def test_the_front_is_what_nothing_beats(places):
    points = [Point("p", "student", float(x), float(y), 1.0) for x, y in places]
    front = pareto_front(points)

    def beats(p, q):
        return p.x <= q.x and p.y >= q.y and (p.x, p.y) != (q.x, q.y)

    for i, q in enumerate(points):
        assert (i in front) is not any(beats(p, q) for p in points)
    assert [points[i].x for i in front] == sorted(points[i].x for i in front)


def test_what_is_beaten_is_paler_and_far_times_are_logarithmic():
    points = [Point("fast", "student", 1.0, 60.0, 1.0), Point("slow", "student", 2.0, 59.0, 1.0)]
    titles = {"title": "t", "x_label": "ms", "y_label": "y"}
    near = scatter_chart(points, **titles)
    assert near.count('class="bubble behind student"') == 1 and "slow, not on the Pareto front" in near
    assert "logarithmic" not in near
    far = scatter_chart([*points, Point("teacher", "teacher", 50.0, 80.0, 9.0)], **titles)
    assert "logarithmic" in far
    narrow = scatter_chart(points, **titles, narrow=True)
    assert ">1</text>" in narrow and ">fast</text>" not in narrow


def test_a_slow_call_is_a_mark_and_does_not_flatten_the_rest():
    values = [1.0 + 0.001 * (i % 7) for i in range(99)] + [50.0]
    chart = time_chart(list(range(100)), values, role="student", title="t", guides=[("p50", 1.0), ("p99", 25.0)])
    assert chart.count("h0") == 99 and chart.count("v-5") == 1
    assert ">p50<" in chart and ">p99<" not in chart
    assert time_chart([], [], role="student", title="t", guides=[("p50", 1.0)]) == ""
    one = time_chart([0.0], [2.0], role="student", title="t", guides=[("p50", 2.0)])
    assert "nan" not in one and one.count("h0") == 1
