"""The program that measures on a device, by itself: what it starts, what it says and when, when it stops."""

import itertools
import json
import os
import shutil
import signal
import subprocess

import pytest
from other_pythons import other_python
from watching import running, wait_until

from dspkd_bench import agent
from dspkd_bench.recording import Recording

COLD_START = "agent.py spec.json 0"
SPEC = {
    "models": [
        {"file": "m.onnx", "batch_file": None, "target": "onnx", "provider": "cpu", "picture": "p.bin", "size": 1}
    ],
    "rule": {},
    "sustained_s": 0.0,
    "batches": [],
    "threads": 1,
    "cores": None,
    "cold": True,
}


@pytest.fixture
def hanging(tmp_path):
    """A device's folder with a runtime that never returns; what it is called with besides it does not need."""
    folder = tmp_path / "there" / "dspkd.1"
    folder.mkdir(parents=True)
    shutil.copy(agent.__file__, folder / "agent.py")
    (folder / "spec.json").write_text(json.dumps(SPEC))
    (folder / "numpy.py").write_text("")
    (folder / "onnxruntime.py").write_text("import time\nopen('hangs', 'w').close()\ntime.sleep(4324)\n")
    return folder


@pytest.mark.parametrize("version", ["3.8", "3.12"])
@pytest.mark.parametrize(
    ("how", "with_ctypes"), [(signal.SIGTERM, True), (signal.SIGTERM, False), (signal.SIGKILL, True)]
)
def test_the_cold_start_ends_with_an_agent_that_is_killed(hanging, version, how, with_ctypes):
    """Also where a Python was built without ctypes, if the signal can be caught."""
    if not with_ctypes:
        (hanging / "ctypes.py").write_text("raise ImportError\n")
    python = other_python(version)
    with subprocess.Popen([python, "agent.py", "spec.json"], cwd=hanging, stdout=subprocess.PIPE) as process:
        wait_until((hanging / "hangs").exists, seconds=60)
        assert running(COLD_START, hanging)
        os.kill(process.pid, how)
        assert process.wait(30) == -how
        wait_until(lambda: not running(COLD_START, hanging))


class Clock:
    """Time passes only while something is measured."""

    def __init__(self):
        self.now_ns = 0

    def __call__(self):
        return self.now_ns

    def call(self, seconds):
        def run():
            self.now_ns += int(seconds * 1e9)

        return run


@pytest.mark.parametrize("seconds", [0.01, 4.0, 60.0])
def test_a_slow_device_is_heard_of_after_every_few_calls(seconds):
    """Whoever waits ends what says nothing for long, however long the whole takes."""
    clock, heard = Clock(), []
    calls = {str(index): clock.call(seconds) for index in range(8)}
    plan = agent.Plan(agent.Rule(warmup_rounds=10, min_rounds=20, max_rounds=20, seconds=0.0), batches=(2,))
    agent.measure_calls(calls, plan, lambda event, **_: heard.append((clock(), event)), [(2, calls)], clock)
    times_ns = [0, *(at_ns for at_ns, _ in heard)]
    longest_s = max(after - before for before, after in itertools.pairwise(times_ns)) / 1e9
    assert longest_s < agent.ALIVE_SECONDS + 1.1 * seconds
    assert any(event == "alive" for _, event in heard) == (seconds > 1)


def test_the_least_number_of_rounds_wins_over_the_most():
    rule = agent.Rule(min_rounds=30, max_rounds=4, seconds=0.0)
    clock = Clock()
    assert len(list(agent.measure_rounds({"a": clock.call(0.001)}, rule, clock))) == 30


def test_as_many_rounds_as_are_allowed():
    rule = agent.Rule(min_rounds=5, max_rounds=5000, seconds=1e9)
    clock = Clock()
    assert len(list(agent.measure_rounds({"a": clock.call(0.001)}, rule, clock))) == 5000


OTHER_PROGRAM = """
import json, sys, time
def say(event, **values):
    print(json.dumps({"event": event, **values}, separators=(",", ":")), flush=True)
say("start", protocol=1, machine="of the other", board=None)
began = time.monotonic_ns()
say("began", monotonic_ns=began)
for phase in ("after", "idle", "idle", "idle", "idle"):
    say("state", at_ms=(time.monotonic_ns() - began) / 1e6, phase=phase)
    time.sleep(0.3)
say("end")
sys.exit(int(sys.argv[1]))
"""


@pytest.fixture
def beside(tmp_path, monkeypatch):
    """A device with a power sensor and a program that knows nothing of it; starts the agent beside it."""
    monitor = tmp_path / "sys/class/hwmon/hwmon0"
    monitor.mkdir(parents=True)
    for name, text in {"name": "ina3221", "in1_label": "VDD_IN", "in1_input": "5000", "curr1_input": "1000"}.items():
        (monitor / name).write_text(text + "\n")
    there = tmp_path / "there"
    there.mkdir()
    shutil.copy(agent.__file__, there / "agent.py")
    (there / "other.py").write_text(OTHER_PROGRAM)
    environment = {**os.environ, "DSPKD_SYS": str(tmp_path / "sys")}

    def start(version, *words):
        python = other_python(version)
        command = [python, "agent.py", "--beside", python, *words]
        return subprocess.Popen(command, cwd=there, env=environment, stdout=subprocess.PIPE, text=True)

    return start


@pytest.mark.parametrize("version", ["3.8", "3.12"])
def test_power_is_read_beside_a_program_that_does_not(beside, version):
    process = beside(version, "other.py", "4")
    said = [json.loads(line) for line in process.communicate()[0].splitlines()]
    assert process.returncode == 4
    kinds = [event["event"] for event in said if event["event"] != "power"]
    assert kinds == ["start", "began", "state", "sensors", *["state"] * 4, "end"]
    # What it says of itself counts, and the agent knows more.
    assert said[0]["machine"] == "of the other" and said[0]["python"].startswith(version)
    run = Recording()
    for event in said:
        run.take(event)
    assert len(run.power) >= 5 and run.sensors["fixed"]["hwmon0/in1_label"] == "VDD_IN"
    # Its clock is theirs.
    first, last = (state["at_ms"] / 1e3 for state in (run.states[0], run.states[-1]))
    assert all(first <= at_s <= last + 30 for at_s, _ in run.power)


def test_a_program_beside_ends_with_an_agent_that_is_told_to_end(beside, tmp_path):
    code = "import time; print('{}', flush=True); time.sleep(4326)"
    with beside("3.12", "-c", code) as process:
        assert process.stdout.readline() == "{}\n"
        os.kill(process.pid, signal.SIGTERM)
        process.wait(30)
        wait_until(lambda: not running("4326", tmp_path))
