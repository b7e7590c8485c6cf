"""Cells carried out: one after the other, shared, retried, taken over. Here no cell takes time; see test_processes."""

import json
import os
import signal
import subprocess
import threading
from collections import Counter
from types import SimpleNamespace

import pytest
from fake_runs import comparison_values, fake_run, plan_of

from dspkd.cli.comparing import _terminated_like_interrupted
from dspkd.compare import execution
from dspkd.compare.execution import carry_out, is_finished, prepare, read_failures, run_process, write_recipes
from dspkd.errors import ConfigError, DataError, ModelError, OutputError
from dspkd.train.reporter import Reporter


@pytest.fixture
def plan(tmp_path):
    plan = plan_of(comparison_values(tmp_path), tmp_path / "out")
    write_recipes(plan)
    return plan


class Started:
    """Stands for the processes: finishes every cell at once, but `failing` ones."""

    def __init__(self, *, failing=(), code=1, says="dspkd: error: the loss became nan"):
        self.cells, self.failing, self.code, self.says = [], failing, code, says

    def __call__(self, cell, lock, log):
        self.cells.append(cell.name)
        os.fstat(lock)
        if cell.name in self.failing:
            log.write_text(f"epoch 1\n{self.says}\n")
            return self.code
        fake_run(cell, 0.6)
        return 0


def names(plan):
    return [cell.name for cell in plan.cells]


def test_every_cell_is_carried_out_in_order_and_none_again(plan):
    started = Started()
    assert carry_out(plan, Reporter(), start=started) == {}
    assert started.cells == names(plan)
    again = Started()
    assert carry_out(plan, Reporter(), start=again) == {}
    assert again.cells == []


def test_a_failing_cell_is_recorded_and_stops_nothing(plan):
    bad = "norm_kd-big-small-seed0"
    started = Started(failing=[bad])
    failed = carry_out(plan, Reporter(), start=started)
    assert failed == {bad: "exit code 1: the loss became nan"}
    assert read_failures(plan) == failed
    assert started.cells == names(plan)


def test_the_next_start_tries_what_failed_again_and_forgets_the_failure(plan):
    bad = "norm_kd-big-small-seed0"
    carry_out(plan, Reporter(), start=Started(failing=[bad]))
    again = Started()
    assert carry_out(plan, Reporter(), start=again) == {}
    assert again.cells == [bad]
    assert read_failures(plan) == {}


def test_without_its_teacher_a_cell_is_not_tried(plan):
    started = Started(failing=["teacher-big"])
    failed = carry_out(plan, Reporter(), start=started)
    assert set(started.cells) == {"teacher-big", "alone-small-seed0", "alone-small-seed1"}
    assert len(failed) == 5
    assert "teacher-big" in failed["dsp_kd-big-small-seed1"]


@pytest.mark.parametrize(("code", "expected"), [(-9, "SIGKILL, as it happens when memory runs out"), (-11, "SIGSEGV")])
def test_a_crash_is_named(plan, code, expected):
    failed = carry_out(plan, Reporter(), start=Started(failing=["alone-small-seed0"], code=code))
    assert expected in failed["alone-small-seed0"]


def test_a_cell_that_ends_well_but_leaves_no_run_has_failed(plan):
    def start(cell, lock, log):
        log.write_text("")
        return 0

    assert len(carry_out(plan, Reporter(), start=start)) == len(plan.cells)


def test_two_at_once_carry_out_each_cell_once(plan):
    """Locks are of the open file, so two threads stand for two processes."""
    both = threading.Barrier(2)
    counts, results = Counter(), {}

    def work(name):
        first = True

        def start(cell, lock, log):
            nonlocal first
            if first and not cell.name.startswith("teacher"):
                # Neither goes on before the other holds a cell too.
                first = False
                both.wait(30)
            counts[cell.name] += 1
            fake_run(cell, 0.6)
            return 0

        results[name] = carry_out(plan, Reporter(), start=start, pause=lambda seconds: None)

    threads = [threading.Thread(target=work, args=(k,)) for k in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert results == {0: {}, 1: {}}
    assert counts == Counter(names(plan))


def test_a_cell_that_another_holds_is_waited_for_and_taken_over_when_it_lets_go(plan):
    held = plan.cells[1]
    holder = execution._lock(held.lock)
    assert holder.__enter__() is not None
    said, started = [], Started()

    class Listening(Reporter):
        def message(self, text):
            said.append(text)

    def pause(seconds):
        assert held.name not in started.cells
        assert len(started.cells) == len(plan.cells) - 1
        holder.__exit__(None, None, None)

    assert carry_out(plan, Listening(), start=started, pause=pause) == {}
    assert started.cells[-1] == held.name
    assert any("waiting for other processes" in text and held.name in text for text in said)


def test_what_another_process_has_just_failed_at_is_not_tried_again(plan):
    bad = plan.cells[1].name
    attempts = []

    def start(cell, lock, log):
        if cell.name == "teacher-big":
            # While this process is busy, the other one tries and fails.
            inner = carry_out(only(plan, bad), Reporter(), start=Started(failing=[bad]))
            assert bad in inner
        attempts.append(cell.name)
        fake_run(cell, 0.6)
        return 0

    failed = carry_out(plan, Reporter(), start=start)
    assert set(failed) == {bad}
    assert bad not in attempts


def only(plan, name):
    cells = tuple(cell for cell in plan.cells if cell.name == name)
    return type(plan)(plan.comparison, plan.out, cells, plan.teacher_folders)


def test_a_run_of_another_recipe_is_not_taken_for_the_cell(plan, tmp_path):
    carry_out(plan, Reporter(), start=Started())
    longer = plan_of({**comparison_values(tmp_path), "epochs": 4}, tmp_path / "out")
    cell = longer.cell("alone", "small", None, 0)
    with pytest.raises(OutputError, match=r"runs/alone-small-seed0 was made with other settings .*\(stages\)"):
        is_finished(cell)
    started = Started()
    failed = carry_out(longer, Reporter(), start=started)
    assert set(failed) == {cell.name for cell in longer.cells if cell.method}
    assert started.cells == []


def test_recipes_of_other_settings_leave_those_of_a_running_comparison_alone(plan, tmp_path):
    before = {cell.recipe: cell.recipe.read_bytes() for cell in plan.cells}
    longer = plan_of({**comparison_values(tmp_path), "epochs": 4}, tmp_path / "out")
    write_recipes(longer)
    assert {path: path.read_bytes() for path in before} == before
    for cell, other in zip(plan.cells, longer.cells, strict=True):
        assert (cell.name, cell.lock, cell.config.out) == (other.name, other.lock, other.config.out)
        assert (cell.recipe == other.recipe) == (cell.config == other.config)


def test_a_run_that_came_out_with_other_settings_has_failed(plan, tmp_path):
    """As when its recipe was changed before its process read it."""
    longer = plan_of({**comparison_values(tmp_path), "epochs": 4}, tmp_path / "out")
    wrong = "alone-small-seed0"

    def start(cell, lock, log):
        log.write_text("")
        fake_run(next(other for other in longer.cells if other.name == wrong) if cell.name == wrong else cell, 0.6)
        return 0

    failed = carry_out(plan, Reporter(), start=start)
    assert [*failed] == [wrong]
    assert "made with other settings than the file has now (stages)" in failed[wrong]
    assert read_failures(plan) == failed


def test_a_folder_may_be_moved(plan, tmp_path):
    carry_out(plan, Reporter(), start=Started())
    (tmp_path / "out").rename(tmp_path / "elsewhere")
    again = Started()
    moved = plan_of(comparison_values(tmp_path / "other images"), tmp_path / "elsewhere")
    assert carry_out(moved, Reporter(), start=again) == {}
    assert again.cells == []


# Preparing ----------------------------------------------------------------------------------------


def test_one_split_for_all(tiny_data, tmp_path):
    plan = plan_of(comparison_values(tiny_data), tmp_path / "out")
    prepare(plan, Reporter(), pixels=False)
    split = json.loads(plan.split.read_text())
    assert split["kind"] == "split"
    assert (plan.out / "comparison.toml").is_file()
    prepare(plan, Reporter(), pixels=False)
    assert json.loads(plan.split.read_text()) == split
    values = comparison_values(tiny_data)
    values["data"]["split_seed"] = 5
    with pytest.raises(ConfigError, match="another split"):
        prepare(plan_of(values, tmp_path / "out"), Reporter(), pixels=False)


def test_a_given_teacher_brings_its_split(tiny_data, tiny_teacher, tmp_path):
    values = comparison_values(tiny_data, teachers={"big": {"run": str(tiny_teacher)}})
    values["data"]["split_seed"] = 5
    plan = plan_of(values, tmp_path / "out")
    prepare(plan, Reporter(), pixels=False)
    assert json.loads(plan.split.read_text()) == json.loads((tiny_teacher / "split.json").read_text())
    assert not [cell for cell in plan.cells if cell.method is None]


def test_what_is_missing_is_said_before_anything_runs(tiny_data, tmp_path):
    values = comparison_values(tiny_data, teachers={"big": {"run": str(tmp_path / "nowhere")}})
    with pytest.raises(ModelError, match="nowhere holds no finished run"):
        prepare(plan_of(values, tmp_path / "out"), Reporter(), pixels=False)
    with pytest.raises(DataError):
        prepare(plan_of(comparison_values(tmp_path / "no images"), tmp_path / "b"), Reporter(), pixels=False)


# Ending -------------------------------------------------------------------------------------------


def test_an_interrupted_start_ends_the_cells_process(tmp_path, monkeypatch):
    processes = []

    class InterruptedWhileWaiting(subprocess.Popen):
        def wait(self, timeout=None):
            if self not in processes:
                processes.append(self)
                raise KeyboardInterrupt
            return super().wait(timeout)

    monkeypatch.setattr(subprocess, "Popen", InterruptedWhileWaiting)
    cell = SimpleNamespace(words=["http.server", "--bind", "127.0.0.1", "0"])
    with execution._lock(tmp_path / "lock") as lock, pytest.raises(KeyboardInterrupt):
        run_process(cell, lock, tmp_path / "log")
    (process,) = processes
    assert process.returncode is not None
    with execution._lock(tmp_path / "lock") as lock:
        assert lock is not None


def test_what_a_process_said_last_is_its_error(tmp_path):
    log = tmp_path / "log"
    with execution._lock(tmp_path / "lock") as lock:
        code = run_process(SimpleNamespace(words=["json.tool", str(tmp_path / "missing")]), lock, log)
    assert code != 0
    assert "No such file" in execution._describe_failure(code, log)


def test_a_scheduler_that_terminates_it_is_heard():
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(SystemExit) as ended, _terminated_like_interrupted():
        os.kill(os.getpid(), signal.SIGTERM)
    assert ended.value.code == 143
    assert signal.getsignal(signal.SIGTERM) is before
