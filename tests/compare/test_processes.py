"""`dspkd compare` as it is used: real commands, real runs of seconds, processes that are killed."""

import json
import os
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import tomli_w
from fake_runs import comparison_values
from tiny_runs import STUDENT
from watching import processes, wait_until

from dspkd.cli import main
from dspkd.compare import execution
from dspkd.errors import DspkdError
from dspkd.models import create_model
from dspkd.student import load_student
from dspkd.train.run import run


def write_file(path, values):
    path.write_text(tomli_w.dumps(values))
    return path


@pytest.fixture
def file(tiny_data, tiny_teacher, tmp_path):
    """Two cells: the student alone and one distilled, one seed."""
    values = comparison_values(tiny_data, seeds=[0], teachers={"big": {"run": str(tiny_teacher)}})
    del values["methods"]["dsp_kd"]
    values["students"]["small"]["model"] = STUDENT
    return write_file(tmp_path / "file.toml", values)


def call(monkeypatch, *words):
    monkeypatch.setattr(sys, "argv", ["dspkd", *map(str, words)])
    with pytest.raises(SystemExit) as ended:
        main()
    return ended.value.code or 0


def test_the_commands_of_a_dry_run_make_the_comparison(file, tmp_path, monkeypatch, capsys):
    out = tmp_path / "a folder"
    assert call(monkeypatch, "compare", file, "--out", out, "--dry-run") == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2
    assert not (out / "runs").exists()
    monkeypatch.chdir(tmp_path.parent)
    for line in lines:
        _, *words = shlex.split(line)
        assert call(monkeypatch, *words) == 0
    capsys.readouterr()
    assert call(monkeypatch, "compare", file, "--out", out, "--tables-only", "--json") == 0
    results = json.loads(capsys.readouterr().out)
    assert results["missing"] == []
    card = load_student(out / "runs" / "norm_kd-big-small-seed0").card
    (pair,) = results["pairs"]
    found = next(row for row in pair["rows"] if row["method"] == "norm_kd")
    stored = card.metrics["test"]
    for metric in ("accuracy", "balanced_accuracy", "macro_f1"):
        assert found["metrics"][metric]["values"] == [pytest.approx(stored[metric])]
    assert found["confusion"] == stored["confusion"]
    assert results["networks"][1]["parameters"] == sum(p.numel() for p in create_model(STUDENT, 3).parameters())
    assert (out / "tables.md").is_file()
    assert "DSP-KD" not in (out / "tables.md").read_text()
    quickly = ["--seconds", "0.01", "--min-rounds", "5", "--no-memory"]
    assert call(monkeypatch, *shlex.split(results["bench_command"])[1:], *quickly) == 0
    capsys.readouterr()
    bench = ["--bench", out / "bench.json"]
    assert call(monkeypatch, "compare", file, "--out", out, "--tables-only", "--json", *bench) == 0
    ((teacher, student),) = (entry["rows"] for entry in json.loads(capsys.readouterr().out)["latency"])
    assert (teacher["role"], teacher["matched_by"]) == ("teacher", "weights")
    assert (student["run"], student["matched_by"]) == ("alone-small-seed0", "weights")
    low, high = student["p50_interval_ms"]
    assert 0 < low <= student["p50_ms"] <= high
    assert "(Table 6)" in (out / "tables.md").read_text()
    (out / "bench.json").write_text("{}")
    assert call(monkeypatch, "compare", file, "--out", out, "--tables-only", *bench) == 1
    assert "bench.json holds no results of a bench" in capsys.readouterr().err


def test_a_dry_run_with_other_settings_changes_nothing_that_a_running_comparison_reads(file, tmp_path, monkeypatch):
    out = tmp_path / "out"
    assert call(monkeypatch, "compare", file, "--out", out, "--dry-run") == 0
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    assert call(monkeypatch, "compare", file, "--out", out, "--dry-run", "--set", "epochs=3") == 0
    assert {path: path.read_bytes() for path in before} == before


def test_usage_errors(tiny_data, tmp_path, monkeypatch, capsys):
    values = comparison_values(tiny_data)
    values["methods"]["alone"]["stages"][0]["epochs"] = 7
    file = write_file(tmp_path / "file.toml", values)
    assert call(monkeypatch, "compare", file) == 2
    assert "file.toml: methods.alone has 7 epochs" in capsys.readouterr().err
    assert call(monkeypatch, "compare", file, "--set", "epochs=7", "--set", "seedz=3") == 2
    assert "file.toml: seedz is no key" in capsys.readouterr().err
    assert call(monkeypatch, "compare", tmp_path / "missing.toml") == 2
    assert not Path("runs/file").exists()


def start(file, out):
    command = [sys.executable, "-m", "dspkd", "compare", str(file), "--out", str(out)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True, text=True
    )


def cells_at_work(out):
    return [pid for pid, _, _, words in processes() if f"--out {out}/runs/" in words]


@pytest.mark.slow
def test_killed_then_finished_by_two_at_once_without_doing_a_cell_twice(file, tmp_path):
    out = tmp_path / "out"
    with start(file, out) as killed:
        wait_until(lambda: cells_at_work(out), seconds=300)
        killed.send_signal(signal.SIGKILL)
    assert len(cells_at_work(out)) == 1, "the cell goes on by itself, and holds its lock"
    both = [start(file, out) for _ in range(2)]
    said = [process.communicate(timeout=600)[0] for process in both]
    assert [process.returncode for process in both] == [0, 0], said
    for name in ("alone-small-seed0", "norm_kd-big-small-seed0"):
        log = (out / "logs" / f"{name}.log").read_text()
        assert log.count("written to") == 1, log
        load_student(out / "runs" / name)
    assert json.loads((out / "results.json").read_text())["missing"] == []
    assert not cells_at_work(out)


def test_a_failing_cell_is_named_in_the_end(tiny_data, tiny_teacher, tmp_path, monkeypatch, capsys):
    """Here the cells run in this process, which is quicker."""

    def in_this_process(cell, lock, log):
        try:
            run(cell.config, resume=True)
        except DspkdError as error:
            log.write_text(f"dspkd: error: {error}\n")
            return error.exit_code
        return 0

    monkeypatch.setattr(execution, "run_process", in_this_process)
    values = comparison_values(tiny_data, seeds=[0], teachers={"big": {"run": str(tiny_teacher)}})
    del values["methods"]["dsp_kd"]
    values["methods"]["norm_kd"]["stages"][0]["optimizer"] = {"lr": 1e30, "warmup_epochs": 0}
    out = tmp_path / "out"
    assert call(monkeypatch, "compare", write_file(tmp_path / "file.toml", values), "--out", out) == 1
    printed = capsys.readouterr()
    assert "1 of 2 cells failed: norm_kd-big-small-seed0: exit code 1: the loss of stage norm_kd became" in printed.err
    assert "the loss of stage norm_kd became" in (out / "tables.md").read_text()
    assert "alone" in (out / "tables.md").read_text()


def test_where_every_student_fails_the_reason_is_told(tiny_data, tmp_path, monkeypatch, capsys):
    def failing(cell, lock, log):
        log.write_text(f"dspkd: error: {cell.name} is out of luck\n")
        return 1

    monkeypatch.setattr(execution, "run_process", failing)
    values = comparison_values(tiny_data, seeds=[0])
    out = tmp_path / "out"
    assert call(monkeypatch, "compare", write_file(tmp_path / "file.toml", values), "--out", out, "--json") == 1
    printed = capsys.readouterr()
    assert "4 of 4 cells failed: teacher-big: exit code 1: teacher-big is out of luck" in printed.err
    assert f"logs lie in {out / 'logs'}" in printed.err
    assert printed.out == ""
