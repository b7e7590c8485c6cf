"""`dspkd bench` from the command line: what was measured is never lost, how long it measures, and the gate."""

import json
import tempfile
import time
from pathlib import Path

import numpy as np
import pytest
from results_schema import check_schema
from typer.testing import CliRunner

from dspkd import fileio
from dspkd.cli import measuring
from dspkd.cli.app import app
from dspkd.devices import Completed, Device
from dspkd.errors import DeviceError, GateError, InconclusiveError, OutputError, UsageError
from dspkd_bench import agent, bench
from dspkd_bench.bench import BenchConfig, run_bench
from dspkd_bench.interruptible import Interruptible
from dspkd_bench.latency import StopRule
from dspkd_bench.recording import INTERRUPTED
from dspkd_bench.subjects import Subject

SOMEWHERE = {
    "cpu": "ARMv8",
    "cores": 4,
    "affinity": [0, 1, 2, 3],
    "os": "Linux 6",
    "machine": "aarch64",
    "python": "3.8",
}


@pytest.fixture
def made_up(monkeypatch):
    """Any folder is an artifact; what its calls do is for the test to say: `made_up["b"] = function`."""
    calls = {}

    def opened(folder, **_):
        return Subject(
            name=folder.name,
            path=folder,
            role="student",
            architecture="torchvision/shufflenet_v2_x0_5",
            num_classes=3,
            size=32,
            target="onnx",
            precision="fp32",
            runtime="made up",
            file_bytes=1000,
            weights_sha256="a" * 64,
            validation=None,
            certificate=None,
            model_file=folder / "model.onnx",
            run=lambda _: calls.get(folder.name, lambda: time.sleep(1e-4))(),
        )

    monkeypatch.setattr(bench, "open_subject", opened)
    # What is measured is recorded after every round.
    monkeypatch.setattr(agent, "STATE_SECONDS", 0.0)
    return calls


def interrupted_at(number):
    """A call that somebody ends with Ctrl-C when it is made the `number`-th time."""
    seen = []

    def call():
        seen.append(None)
        if len(seen) == number:
            raise KeyboardInterrupt
        time.sleep(1e-4)

    return call


def measure(*words):
    return CliRunner().invoke(app, ["bench", "--no-memory", *map(str, words)])


def test_finished_rounds_outlive_an_interrupt(made_up, tmp_path):
    # The warm-up takes at most 100 calls.
    made_up["b"] = interrupted_at(150)
    out = tmp_path / "results.json"
    done = measure("a", "b", "--seconds", 600, "--out", out)
    assert done.exit_code == 130
    assert done.stderr == f"dspkd: interrupted; what was measured before is in {out}\n"
    results = json.loads(out.read_text())
    check_schema(results)
    assert results["interrupted"] == INTERRUPTED and results["validity"]["verdict"] == "invalid"
    numbers = [subject["latency"]["n"] for subject in results["subjects"]]
    assert len(numbers) == 2 and numbers[0] == numbers[1] >= 49
    assert "one interleaved run" in done.stdout


def test_results_outlive_a_reader_that_is_gone(made_up, tmp_path, monkeypatch):
    def gone(_):
        raise BrokenPipeError

    monkeypatch.setattr(measuring, "_show", gone)
    out = tmp_path / "results.json"
    measure("a", "b", "--seconds", 0.1, "--out", out)
    check_schema(json.loads(out.read_text()))


def test_without_being_asked_to_keep_them_an_interrupt_is_an_interrupt(made_up):
    made_up["b"] = interrupted_at(150)
    config = BenchConfig([Path("a"), Path("b")], memory=False, stop=StopRule(seconds=600))
    with pytest.raises(KeyboardInterrupt):
        run_bench(config)


def test_an_interrupt_while_memory_is_measured_keeps_all_latencies(made_up, monkeypatch, tmp_path):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(bench, "measure_memory", interrupted)
    out = tmp_path / "results.json"
    done = CliRunner().invoke(app, ["bench", "a", "--seconds", "0", "--min-rounds", "70", "--out", str(out)])
    assert done.exit_code == 130
    [subject] = json.loads(out.read_text())["subjects"]
    assert subject["latency"]["n"] == 70 and subject["memory"] is None


def test_an_interrupt_before_the_first_round_leaves_no_file(made_up, tmp_path):
    made_up["b"] = interrupted_at(2)
    done = measure("a", "b", "--out", tmp_path / "results.json")
    assert (done.exit_code, done.stderr) == (130, "dspkd: interrupted; nothing is kept\n")
    assert list(tmp_path.iterdir()) == []


class Board(Device):
    """Says `events` when the agent is started, and then somebody presses Ctrl-C here."""

    python = "python3"

    def __init__(self, events):
        super().__init__("ssh://board")
        self.events, self.closed = events, False

    def open(self):
        pass

    def close(self):
        self.closed = True

    def push(self, local, remote_name):
        pass

    def pull(self, remote_name, local):
        raise AssertionError

    def run(self, argv, *, timeout=None, stdout=None):
        if "agent.py" not in argv:
            return Completed(0, "", "")
        stdout.write("".join(json.dumps(event) + "\n" for event in self.events).encode())
        stdout.flush()
        raise KeyboardInterrupt


@pytest.mark.parametrize("rounds", [80, 0])
def test_an_interrupt_keeps_what_a_device_has_measured(made_up, monkeypatch, tmp_path, rounds):
    times = np.random.default_rng(0).normal(5, 0.1, rounds).tolist()
    events = [
        {"event": "start", "protocol": agent.PROTOCOL, **SOMEWHERE},
        {"event": "loaded", "index": 0, "runtime": "onnxruntime 1", "load_ms": 9.0, "first_ms": 7.0},
        {"event": "times", "index": 0, "at_ms": [6.0 * i for i in range(rounds)], "ms": times},
    ]
    board = Board(events if rounds else events[:2])
    monkeypatch.setattr(bench, "open_device", lambda url: board)
    out = tmp_path / "results.json"
    done = measure("a", "--device", board.url, "--out", out)
    assert done.exit_code == 130 and board.closed
    if not rounds:
        assert done.stderr == "dspkd: interrupted; nothing is kept\n" and not out.exists()
        return
    results = json.loads(out.read_text())
    check_schema(results)
    assert results["interrupted"] == INTERRUPTED
    assert [subject["latency"]["n"] for subject in results["subjects"]] == [rounds]


def test_after_an_interrupt_nothing_more_is_run_on_the_device():
    device = Interruptible(Board([]))
    assert device.run(["uname"]).returncode == 0 and device.python == "python3"
    with pytest.raises(DeviceError, match=INTERRUPTED), tempfile.TemporaryFile() as stdout:
        device.run(["python3", "agent.py"], stdout=stdout)
    assert device.interrupted
    with pytest.raises(DeviceError, match=INTERRUPTED):
        device.run(["uname"])


@pytest.mark.parametrize("name", [".", "file/results.json"])
def test_a_place_that_cannot_be_written_to_is_told_before_anything_is_measured(made_up, tmp_path, name):
    (tmp_path / "file").write_text("")
    made_up["a"] = lambda: pytest.fail("it was measured")
    done = measure("a", "--out", tmp_path / name)
    assert isinstance(done.exception, OutputError) and "--out" in done.exception.hint


def test_a_disk_that_is_full_at_the_end_takes_the_table_not_away(made_up, monkeypatch, tmp_path):
    def full(path, value):
        raise OutputError(f"cannot write {path}: No space left on device")

    monkeypatch.setattr(fileio, "write_json", full)
    done = measure("a", "--seconds", 0, "--min-rounds", 5, "--out", tmp_path / "results.json")
    assert isinstance(done.exception, OutputError)
    assert "one interleaved run" in done.stdout and "next:" not in done.stdout


# How many rounds ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "rounds"),
    [(("--seconds", 600, "--max-rounds", 60), 60), (("--seconds", 0, "--min-rounds", 2100), 2100)],
)
def test_rounds_are_as_many_as_asked_for(made_up, tmp_path, words, rounds):
    made_up["a"] = lambda: None
    out = tmp_path / "results.json"
    done = measure("a", *words, "--out", out)
    assert done.exit_code == 0, done.output
    [subject] = json.loads(out.read_text())["subjects"]
    assert subject["latency"]["n"] == rounds


def test_fewer_rounds_at_most_than_at_least_are_refused(made_up):
    done = measure("a", "--max-rounds", 20)
    assert isinstance(done.exception, UsageError) and "--max-rounds 20 is below --min-rounds 50" in str(done.exception)


# The gate -------------------------------------------------------------------------------------------


def gate(monkeypatch, tmp_path, before, now):
    baseline = tmp_path / "baseline.json"
    baseline.write_text(json.dumps(before))
    monkeypatch.setattr(bench, "run_bench", lambda config, progress: {"interrupted": None, **now})
    return measure("a", "--against", baseline)


def test_the_gate_names_what_the_baseline_has_and_this_run_has_not(monkeypatch, tmp_path, results):
    fewer = results | {"subjects": results["subjects"][1:]}
    done = gate(monkeypatch, tmp_path, results, fewer)
    assert isinstance(done.exception, InconclusiveError) and done.exception.exit_code == 6
    gone = results["subjects"][0]["name"]
    assert f"inconclusive: {gone} was not measured in this run, and the baseline has it" in done.stdout
    assert gone in done.exception.message and "names" in done.exception.hint


def test_what_is_surely_slower_fails_even_if_something_else_is_missing(monkeypatch, tmp_path, results):
    slower = json.loads(json.dumps(results))
    latency = slower["subjects"][1]["latency"]
    latency["p50_interval_ms"] = [2 * end for end in latency["p50_interval_ms"]]
    slower["subjects"] = slower["subjects"][1:]
    done = gate(monkeypatch, tmp_path, results, slower)
    assert isinstance(done.exception, GateError) and slower["subjects"][0]["name"] in done.exception.message


def test_an_invalid_run_passes_no_gate(monkeypatch, tmp_path, results):
    throttled = results | {"validity": {"verdict": "invalid", "reasons": ["throttled: the clock fell"]}}
    done = gate(monkeypatch, tmp_path, results, throttled)
    assert isinstance(done.exception, InconclusiveError) and "this run is invalid: throttled" in done.exception.message
