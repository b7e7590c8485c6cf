"""Tables of results: read back what was written, and nothing a spreadsheet would run."""

import csv
import io
import json

import pytest
from typer.testing import CliRunner

from dspkd.cli.app import app
from dspkd.errors import DataError, UsageError
from dspkd_bench.report import read_results
from dspkd_bench.report_tables import results_csv, results_markdown, table_writer


def read(text):
    return list(csv.DictReader(io.StringIO(text)))


def test_csv_holds_what_was_measured(results):
    rows = read(results_csv([results]))
    assert len(rows) == len(results["subjects"])
    for row, subject in zip(rows, results["subjects"], strict=True):
        assert row["subject"] == subject["name"]
        assert float(row["p50_ms"]) == subject["latency"]["p50_ms"]
        assert int(row["macs"]) == subject["complexity"]["macs"]
        assert float(row["p50_low_ms"]) <= float(row["p50_ms"]) <= float(row["p50_high_ms"])
    students = [row for row in rows if row["role"] == "student"]
    assert students and all(float(row["teacher_over_student_latency"]) > 1 for row in students)
    assert rows[0]["device"] == "local" and rows[0]["load_ms"] == ""


def test_a_name_is_never_a_formula(results):
    results["subjects"][0]["name"] = '=cmd|"/C calc"!A0'
    assert read(results_csv([results]))[0]["subject"] == '\'=cmd|"/C calc"!A0'


def test_several_devices_stand_in_one_table(results):
    other = json.loads(json.dumps(results)) | {"device": {"url": "ssh://board"}}
    devices = {row["device"] for row in read(results_csv([results, other]))}
    assert devices == {"local", "ssh://board"}
    lines = results_markdown([results, other]).splitlines()
    assert sum(line.startswith("| ssh://board") for line in lines) == len(results["subjects"])
    assert len({line.count("|") for line in lines if line.startswith("|")}) == 1


def test_markdown_escapes_its_own_sign(results):
    results["subjects"][0]["name"] = "a|b"
    assert "a\\|b" in results_markdown([results])


@pytest.mark.parametrize("name", ["table.csv", "table.md"])
def test_the_suffix_decides(results, tmp_path, name):
    source, out = tmp_path / "results.json", tmp_path / name
    source.write_text(json.dumps(results))
    done = CliRunner().invoke(app, ["report", str(source), "--out", str(out)])
    assert done.exit_code == 0, done.output
    assert results["subjects"][0]["name"] in out.read_text()
    with pytest.raises(UsageError, match="no such kind"):
        table_writer(tmp_path / "table.xlsx")
    assert table_writer(tmp_path / "page.html") is None


def test_batches_sustained_load_and_energy_have_columns(results):
    first = results["subjects"][0]
    first |= {
        "batches": [{"batch": 8, "latency": {"p50_ms": 70.0}, "throughput_per_s": 114.3}],
        "sustained": {"seconds": 60.0, "burst_ms": 10.0, "sustained_ms": 13.0, "ratio": {"ratio": 1.3}},
        "energy": {"mj_per_inference": 42.0, "interval": [41.0, 43.0], "idle_w": 3.0, "sensor": "VDD_IN"},
    }
    results["subjects"][1]["energy"] = {"not_measured": "no sensor"}
    row, other = read(results_csv([results]))[:2]
    assert (row["batch_8_throughput_per_s"], row["sustained_over_burst"]) == ("114.3", "1.3")
    assert (row["energy_mj_per_inference"], row["energy_low_mj"], row["energy_sensor"]) == ("42.0", "41.0", "VDD_IN")
    assert other["batch_8_p50_ms"] == other["energy_mj_per_inference"] == ""
    lines = results_markdown([results]).splitlines()
    assert "batch 8, images/s" in lines[0] and "13.00 (1.30)" in lines[2] and "42.00 [41.00, 43.00]" in lines[2]
    assert len({line.count("|") for line in lines if line.startswith("|")}) == 1


def test_markdown_has_no_column_of_what_nothing_has(results):
    header = results_markdown([results]).splitlines()[0]
    assert "energy" not in header and "sustained" not in header and "batch" not in header


def test_tails_have_their_intervals_where_there_were_calls_enough(results):
    few = results["subjects"][1]["latency"]
    few |= {"p90_interval_ms": None, "p99_interval_ms": None, "p90_early_stopping_ms": None}
    latency = results["subjects"][0]["latency"]
    latency["p99_interval_ms"] = [latency["p99_ms"] - 1.0, latency["p99_ms"] + 2.0]
    row, other = read(results_csv([results]))[:2]
    for tail in ("p90", "p99"):
        assert [float(row[f"{tail}_{end}_ms"]) for end in ("low", "high")] == latency[f"{tail}_interval_ms"]
        assert other[f"{tail}_low_ms"] == other[f"{tail}_high_ms"] == ""
    assert float(row["p90_early_stopping_ms"]) == latency["p90_early_stopping_ms"] > latency["p90_ms"]
    lines = results_markdown([results]).splitlines()
    low, high = latency["p99_interval_ms"]
    assert f"{latency['p99_ms']:.2f} [{low:.2f}, {high:.2f}]" in lines[2]
    assert f"| {few['p90_ms']:.2f} | {few['p99_ms']:.2f} |" in lines[3]


def test_results_of_a_comparison_are_told_by_their_page(tmp_path):
    file = tmp_path / "results.json"
    file.write_text(json.dumps({"kind": "comparison", "schema_version": 1}))
    with pytest.raises(DataError, match="is of `dspkd compare`") as caught:
        read_results(file)
    assert "--tables-only" in caught.value.hint
    (tmp_path / "compare.html").write_text("")
    done = CliRunner().invoke(app, ["report", str(file), "--out", str(tmp_path / "page.html")])
    assert isinstance(done.exception, DataError) and str(tmp_path / "compare.html") in done.exception.hint
    assert not (tmp_path / "page.html").exists()
