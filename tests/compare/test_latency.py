"""Table 6: the times that `dspkd bench` has measured, beside the networks that they are of."""

import csv
import io
import shlex

import pytest
from fake_runs import comparison_values, finish_all, plan_of

from dspkd.compare.latency import parse_bench
from dspkd.compare.output import comparison_markdown, latency_csv, write_tables
from dspkd.compare.results import collect
from dspkd.compare.tables import comparison_tables
from dspkd.errors import DataError
from dspkd.models import Architecture

SKILLS = {"teacher": 0.8, "alone": 0.6, "norm_kd": 0.65, "dsp_kd": 0.7}
TEACHER, STUDENT = Architecture("timm/resnet18").name, Architecture("shufflenet_v2_x0_5").name
DISTILLED = "dsp_kd-big-small-seed1"


@pytest.fixture
def plan(tmp_path):
    plan = plan_of(comparison_values(tmp_path), tmp_path / "out")
    finish_all(plan, SKILLS)
    return plan


def subject(name, architecture, weights, p50, *, size=32, **more):
    latency = {"n": 50, "p50_ms": p50, "p90_ms": p50 + 1, "p50_interval_ms": [p50 - 0.25, p50 + 0.5]}
    return {
        "name": name,
        "role": "student",
        "architecture": architecture,
        "runtime": "PyTorch 2.14.0",
        "precision": "fp32",
        "provider": None,
        "weights_sha256": weights,
        "complexity": {"size": size},
        "latency": latency,
        **more,
    }


def bench(subjects, **more):
    values = {
        "created": "2026-11-24T10:00:00+00:00",
        "command": "dspkd bench a b --out bench.json",
        "environment": {"cpu": "AMD EPYC", "threads": 2},
        "subjects": subjects,
        "ratios": [
            {
                "subject": "student",
                "teacher": "teacher",
                "same_runtime": False,
                "latency": {"ratio": 4.0, "interval": [3.5, 4.5]},
            }
        ],
        **more,
    }
    return parse_bench(values, origin="bench.json")


def both(**of_student):
    return [
        subject("teacher", TEACHER, "sha of big", 12.0, role="teacher"),
        subject("student", STUDENT, f"sha of {DISTILLED}", 3.0, **of_student),
    ]


def test_times_stand_beside_parameters_with_their_interval(plan):
    def counted(architecture, classes, size):
        return {"parameters": 11_200_000 if architecture == TEACHER else 345_000, "macs": 40_000_000}

    results = collect(plan, complexity=counted, benches=[bench(both())]).results
    teacher, student = results["latency"][0]["rows"]
    assert (teacher["matched_by"], teacher["run"]) == ("weights", "big")
    assert (student["matched_by"], student["run"]) == ("weights", DISTILLED)
    text = comparison_markdown(results)
    (line,) = (line for line in text.splitlines() if "3.00 [2.75, 3.50]" in line)
    assert "| 0.345 | 40.000 | PyTorch 2.14.0, fp32 | 3.00 [2.75, 3.50] | 4.00 | 4.0x * [3.5, 4.5] |" in line
    assert DISTILLED in line
    assert "AMD EPYC, 2 threads, batch 1, 2026-11-24" in text
    assert "Measured with: dspkd bench a b --out bench.json" in text
    assert "* on different runtimes" in text
    rows = list(csv.DictReader(io.StringIO(latency_csv(results))))
    assert [row["p50_ms"] for row in rows] == ["12.0", "3.0"]
    assert (rows[1]["p50_low"], rows[1]["ratio_high"], rows[1]["threads"]) == ("2.75", "4.5", "2")
    assert rows[0]["teacher_over_student"] == ""


def test_other_weights_of_the_same_architecture_are_said_to_be_others(plan):
    stranger = subject("stranger", STUDENT, "sha of something else", 3.0)
    (row,) = collect(plan, benches=[bench([stranger])]).results["latency"][0]["rows"]
    assert (row["matched_by"], row["run"], row["role"]) == ("architecture", None, "student")
    results = collect(plan, benches=[bench([*both(), stranger])]).results
    assert [row["subject"] for row in results["latency"][0]["rows"]] == ["teacher", "student"]
    assert "no network of this comparison: stranger" in comparison_markdown(results)


def test_times_at_another_size_are_not_taken(plan):
    big = subject("at 224 px", STUDENT, "sha of something else", 30.0, size=224)
    results = collect(plan, benches=[bench([big])]).results
    assert results["latency"][0]["rows"] == []
    assert "no network of this comparison: at 224 px" in comparison_markdown(results)


def test_a_measurement_in_doubt_says_so(plan):
    doubtful = both(validity={"verdict": "invalid", "reasons": ["the device was throttled"]})
    text = comparison_markdown(collect(plan, benches=[bench(doubtful)]).results)
    assert f"its weights ({DISTILLED}); invalid" in text
    assert "student is invalid: the device was throttled" in text


def test_every_measurement_has_a_table_and_without_one_the_command_stands_there(plan, monkeypatch):
    twice = collect(plan, benches=[bench(both()), bench(both(), environment={"cpu": "Cortex", "threads": 1})])
    tables = [table for table in comparison_tables(twice.results) if "Table 6" in table.title]
    assert len(tables) == 2
    for table in tables:
        assert {len(row) for row in table.rows} == {len(table.columns)}
    write_tables(plan.out, twice)
    assert "Cortex" in (plan.out / "latency.csv").read_text()
    monkeypatch.chdir(plan.out.parent)
    none = collect(plan)
    command = "dspkd bench out/runs/alone-small-seed0 --teacher out/runs/teacher-big --out out/bench.json"
    assert shlex.split(none.results["bench_command"]) == shlex.split(command)
    text = comparison_markdown(none.results)
    assert f"(Table 6): {command}, then this comparison once more with --tables-only and --bench out/bench.json" in text
    write_tables(plan.out, none)
    assert not (plan.out / "latency.csv").exists()


def test_a_file_that_lacks_something_is_refused_by_name():
    broken = both()
    del broken[1]["latency"]["p50_interval_ms"]
    with pytest.raises(DataError, match=r"bench.json: subjects.1.latency.p50_interval_ms: Field required"):
        bench(broken)
