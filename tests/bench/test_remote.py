"""The bench over a real ssh connection, and what happens when the device or the link fails."""

import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pytest
from loopback_ssh import free_port, loopback, serve
from other_pythons import other_python
from results_schema import check_schema
from typer.testing import CliRunner
from watching import processes, running, wait_until

from dspkd.cli.app import app
from dspkd.devices import LocalDevice, SshDevice, open_device
from dspkd.errors import DeviceError, UsageError
from dspkd.fileio import ensure_dir
from dspkd_bench import bench, runner_build
from dspkd_bench.bench import BenchConfig, run_bench
from dspkd_bench.latency import StopRule
from dspkd_bench.recording import INTERRUPTED
from dspkd_bench.remote import Model, measure_remote, read_events

__all__ = ["loopback"]
QUICK = StopRule(warmup_rounds=2, min_rounds=70, max_rounds=70, seconds=0.0)
COMPILER = pytest.mark.skipif(shutil.which("g++") is None, reason="no C++ compiler (g++)")
ENDLESS = StopRule(warmup_rounds=1, min_rounds=10, max_rounds=10**9, seconds=120.0)


@pytest.fixture
def artifact(tiny_artifacts):
    return tiny_artifacts["onnx"]


@pytest.fixture
def model(artifact):
    with np.load(artifact / "golden.npz") as stored:
        return Model(artifact / "model_static.onnx", "onnx", stored["pixels"][0])


@pytest.fixture
def program(tiny_artifacts):
    folder = tiny_artifacts["executorch"]
    with np.load(folder / "golden.npz") as stored:
        return Model(folder / "model.pte", "executorch", stored["pixels"][0])


@pytest.fixture
def board(loopback, monkeypatch):
    """The loopback server as a device with this environment's Python."""
    monkeypatch.setenv("DSPKD_DEVICE_PYTHON", sys.executable)
    return loopback


def script(loopback, monkeypatch, text, name="python-there"):
    """A stand-in for the device's Python."""
    file = loopback.folder / name
    file.write_text(f"#!/bin/sh\n{text}\n")
    file.chmod(0o755)
    monkeypatch.setenv("DSPKD_DEVICE_PYTHON", str(file))


def left(loopback):
    return [path.name for path in loopback.work.iterdir()]


def test_an_artifact_is_measured_over_ssh(board, artifact):
    results = run_bench(BenchConfig(folders=[artifact], stop=QUICK, device=board.url))
    check_schema(results)
    [subject] = results["subjects"]
    assert subject["latency"]["n"] == 70 and len(subject["series"]["ms"]) == 70
    assert subject["load_ms"] > 0 and subject["first_inference_ms"] > 0
    assert subject["runtime"].startswith("onnxruntime ")
    assert subject["device_check"]["same_class"] and subject["device_check"]["max_abs_difference"] < 1e-4
    assert results["device"]["kind"] == "ssh" and results["device"]["url"] == board.url
    assert len(results["states"]) >= 2
    assert left(board) == []


def test_what_the_device_cannot_run_is_said_and_the_rest_is_measured(loopback, monkeypatch, artifact, tmp_path):
    monkeypatch.setenv("DSPKD_DEVICE_PYTHON", sys.executable)
    damaged = tmp_path / "model_static.onnx"
    damaged.write_bytes(b"not a model")
    with np.load(artifact / "golden.npz") as stored:
        picture = stored["pixels"][0]
    models = [Model(damaged, "onnx", picture), Model(artifact / "model_static.onnx", "onnx", picture)]
    with open_device(loopback.url) as device:
        run = measure_remote(device, models, QUICK, threads=1)
    assert list(run.series) == [1] and len(run.series[1].ms) == 70
    assert "protobuf" in run.failed[0].lower() and run.interrupted is None


@COMPILER
def test_onnx_and_executorch_programs_in_one_bench(board, tiny_artifacts):
    results = run_bench(BenchConfig(folders=list(tiny_artifacts.values()), stop=QUICK, device=board.url))
    check_schema(results)
    assert {s["target"] for s in results["subjects"]} == {"onnx", "executorch"}
    assert all(s["device_check"]["max_abs_difference"] < 1e-4 for s in results["subjects"])
    assert all(0 < s["memory"]["increase_mib"] < s["memory"]["peak_rss_mib"] for s in results["subjects"])
    times = [state["at_ms"] for state in results["states"]]
    assert len(times) >= 4 and times == sorted(times)
    assert left(board) == []


def test_what_the_agent_measured_is_kept_when_the_runner_cannot_be_made(board, model, program, monkeypatch):
    which = shutil.which
    monkeypatch.setattr(runner_build.shutil, "which", lambda name: None if "g++" in name else which(name))
    with open_device(board.url) as device:
        run = measure_remote(device, [program, model], QUICK, threads=1)
    assert len(run.series[1].ms) == 70 and "no C++ compiler" in run.interrupted
    assert left(board) == []


def test_ctrl_c_while_the_runner_is_made_keeps_what_the_agent_measured(board, model, program, monkeypatch):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(runner_build, "build_runner", interrupted)
    with open_device(board.url) as device:
        run = measure_remote(device, [program, model], QUICK, threads=1)
    assert len(run.series[1].ms) == 70 and run.interrupted == INTERRUPTED


def test_only_artifacts_go_to_a_device(board, tiny_student):
    with pytest.raises(UsageError, match="no artifact"):
        run_bench(BenchConfig(folders=[tiny_student], stop=QUICK, device=board.url))


def test_a_wrong_answer_makes_the_run_invalid(board, artifact, monkeypatch):
    golden = bench._golden
    monkeypatch.setattr(bench, "_golden", lambda subject: (golden(subject)[0], np.roll(golden(subject)[1], 1)))
    results = run_bench(BenchConfig(folders=[artifact], stop=QUICK, device=board.url))
    assert results["validity"]["verdict"] == "invalid"
    assert "wrong answer" in results["validity"]["reasons"][0]


@COMPILER
def test_every_program_gets_its_own_picture(board, tiny_artifacts):
    program = tiny_artifacts["executorch"] / "model.pte"
    with np.load(tiny_artifacts["executorch"] / "golden.npz") as stored:
        pictures, answers = stored["pixels"][:2], stored["deployed"][:2]
    assert not np.array_equal(answers[0], answers[1])
    with open_device(board.url) as device:
        run = measure_remote(device, [Model(program, "executorch", picture) for picture in pictures], QUICK, threads=1)
    for index, answer in enumerate(answers):
        assert np.abs(np.array(run.outputs[index]) - answer).max() < 1e-4


# Faults: each with a message of its own, exit code 5, and nothing left there ------------------------


def fails(loopback, artifact, message, *, url=None):
    config = BenchConfig(folders=[artifact], stop=QUICK, device=url or loopback.url)
    with pytest.raises(DeviceError, match=message) as caught:
        run_bench(config)
    assert caught.value.exit_code == 5 and caught.value.hint
    assert left(loopback) == []


def test_no_python(loopback, monkeypatch, artifact):
    monkeypatch.setenv("DSPKD_DEVICE_PYTHON", "python-nowhere")
    fails(loopback, artifact, "has no python-nowhere")


def test_no_runtime(loopback, monkeypatch, artifact):
    script(loopback, monkeypatch, f'exec {sys.executable} -S -c "{BLOCKED}" "$@"')
    fails(loopback, artifact, "can run none of them.*the device has no onnxruntime")


BLOCKED = (
    "import sys, runpy, site; site.main(); sys.modules['onnxruntime'] = None; "
    "sys.argv = sys.argv[1:]; runpy.run_path(sys.argv[0], run_name='__main__')"
)


def test_wrong_architecture(loopback, monkeypatch, artifact):
    file = loopback.folder / "foreign"
    # An ELF header of a machine that nobody has.
    file.write_bytes(b"\x7fELF\x02\x01\x01" + bytes(9) + b"\x02\x00\xfe\xca" + bytes(44))
    file.chmod(0o755)
    monkeypatch.setenv("DSPKD_DEVICE_PYTHON", str(file))
    fails(loopback, artifact, "(?i)exec format error|cannot execute|not found|syntax error")


def test_garbage_output(loopback, monkeypatch, artifact):
    script(loopback, monkeypatch, "echo Welcome to the board; exit 0")
    fails(loopback, artifact, "not of the agent: 'Welcome to the board'")


def test_events_with_a_wrong_shape(loopback, monkeypatch, artifact):
    script(loopback, monkeypatch, """echo '{"event": "times", "index": 0, "at_ms": [1], "ms": []}'""")
    fails(loopback, artifact, "not of the agent")


def test_silence(loopback, monkeypatch, artifact):
    script(loopback, monkeypatch, "echo 'Segmentation fault' >&2; exit 139")
    fails(loopback, artifact, "ended early: Segmentation fault")


def test_a_hanging_command(loopback, monkeypatch, model):
    script(loopback, monkeypatch, "exec sleep 4321")
    with open_device(loopback.url) as device, pytest.raises(DeviceError, match="said nothing for 1 s"):
        measure_remote(device, [model], QUICK, threads=1, patience_s=1.0)
    wait_until(lambda: not running("sleep 4321"))
    assert left(loopback) == []


def test_a_slow_device_is_waited_for_as_long_as_it_says_something(loopback, monkeypatch, model):
    """Slower than the plan and all patience together."""
    said = [{"event": "start", "protocol": 1, "machine": "m"}]
    said += [{"event": "times", "index": 0, "at_ms": [400 * i], "ms": [399]} for i in range(10)] + [{"event": "end"}]
    lines = "".join(f"echo '{json.dumps(event)}'; sleep 0.4\n" for event in said)
    script(loopback, monkeypatch, lines)
    with open_device(loopback.url) as device:
        run = measure_remote(device, [model], QUICK, threads=1, patience_s=3.0)
    assert run.interrupted is None and len(run.series[0].ms) == 10


def test_disk_full(tmp_path, monkeypatch, artifact):
    """The device's `cat`, with which files arrive there, says what it says on a full disk."""
    bin = tmp_path / "bin"
    bin.mkdir()
    (bin / "cat").write_text("#!/bin/sh\necho 'cat: write error: No space left on device' >&2\nexit 1\n")
    (bin / "cat").chmod(0o755)
    with serve(tmp_path / "ssh", PATH=f"{bin}:{os.environ['PATH']}") as server:
        monkeypatch.setenv("DSPKD_SSH_CONFIG", str(server.ssh_config))
        fails(server, artifact, "cannot be copied there: cat: write error: No space left on device")


def test_permission_denied(loopback, artifact):
    if os.geteuid() == 0:
        (loopback.folder / "authorized_keys").write_text("")
    else:
        loopback.work.chmod(0o500)
    fails(loopback, artifact, "(?i)permission denied")


def test_nobody_listens(loopback, artifact):
    fails(loopback, artifact, "Connection refused", url=f"ssh://127.0.0.1:{free_port()}")


def test_a_changed_host_key(loopback, artifact):
    other = (loopback.folder / "other.pub").read_text().split()[:2]
    (loopback.folder / "known_hosts").write_text(f"[127.0.0.1]:{loopback.port} {' '.join(other)}\n")
    fails(loopback, artifact, "Host key verification failed|REMOTE HOST IDENTIFICATION")


AGENT, RUNNER = "agent.py spec.json", "dspkd_runner --seconds"
both = pytest.mark.parametrize(
    ("kind", "command"), [("model", AGENT), pytest.param("program", RUNNER, marks=COMPILER)], ids=["agent", "runner"]
)


@pytest.mark.parametrize("second", ["onnx", pytest.param("executorch", marks=COMPILER)])
@both
def test_a_second_bench_on_the_same_device(board, tiny_artifacts, request, kind, command, second):
    """The lock is one for both programs."""
    config = BenchConfig(folders=[tiny_artifacts[second]], stop=QUICK, device=board.url)

    def refused():
        with pytest.raises(DeviceError, match="another dspkd bench is running there"):
            run_bench(config)
        kill(running(command, board.work))

    kept = interrupt(board, request.getfixturevalue(kind), refused)
    assert kept.series
    assert left(board) == []


@both
def test_it_is_killed_and_what_was_measured_is_kept(board, request, kind, command):
    kept = interrupt(board, request.getfixturevalue(kind), lambda: kill(running(command, board.work)))
    assert "ended early" in kept.interrupted
    assert left(board) == []


@both
def test_the_connection_is_cut_while_it_measures(board, request, kind, command):
    kept = interrupt(board, request.getfixturevalue(kind), lambda: kill(sessions(board)))
    assert "connection" in kept.interrupted
    wait_until(lambda: not running(command, board.work))
    wait_until(lambda: left(board) == [])


@pytest.mark.parametrize("step", range(6))
def test_the_connection_is_cut_at_each_step(board, artifact, monkeypatch, step):
    """Before each of the steps: three files that are sent, the agent, its start, and the cleaning up."""
    steps = 0

    def cut_first(name):
        method = getattr(SshDevice, name)

        def call(*arguments, **options):
            nonlocal steps
            if steps == step:
                kill(sessions(board))
            steps += 1
            return method(*arguments, **options)

        monkeypatch.setattr(SshDevice, name, call)

    for name in ("push", "run", "_remove_folder"):
        cut_first(name)
    config = BenchConfig(folders=[artifact], stop=QUICK, device=board.url)
    if step < 5:
        with pytest.raises(DeviceError, match=r"lost|cannot be copied") as caught:
            run_bench(config)
        assert caught.value.exit_code == 5 and caught.value.hint
    else:
        assert run_bench(config)["subjects"][0]["latency"]["n"] == 70
    assert steps == step + 1 if step == 5 else steps > step
    wait_until(lambda: left(board) == [])
    assert not running(AGENT, board.work)


def test_dspkd_itself_is_killed(board, artifact):
    """Nobody is left to clean up, and the device does it all the same."""
    words = ["bench", str(artifact), "--device", board.url, "--seconds", "120"]
    process = subprocess.Popen([sys.executable, "-m", "dspkd", *words], stderr=subprocess.DEVNULL)
    wait_until(lambda: running(AGENT, board.work), seconds=60)
    process.kill()
    process.wait()
    wait_until(lambda: not running(AGENT, board.work))
    wait_until(lambda: left(board) == [])


def kill(pids):
    for pid in pids:
        os.kill(pid, 9)


def measure_with(board, model, rule):
    with open_device(board.url) as device:
        return measure_remote(device, [model], rule, threads=1)


def sessions(board):
    """The server's own processes for its connections, not what they started."""
    found, look = [], running(f"{board.folder}/sshd_config")
    while look:
        look = [pid for pid, parent, name, _ in processes() if parent in look and name.startswith("sshd")]
        found += look
    assert found
    return found


def measured_lines(events):
    """Whole lines alone: what ends in the middle of its first one has measured nothing."""
    return [line for line in events.read_bytes().split(b"\n")[:-1] if b'"times"' in line]


def interrupt(board, model, how):
    """What is kept when `how` happens after something was measured."""
    kept, scratch = {}, ensure_dir(board.folder / "scratch")
    thread = threading.Thread(target=lambda: kept.update(run=measure_with(board, model, ENDLESS)))
    with patch.object(tempfile, "tempdir", str(scratch)):
        thread.start()
        wait_until(lambda: any(measured_lines(events) for events in scratch.glob("dspkd-*/events")), 60)
        how()
        thread.join(60)
    assert len(kept["run"].series[0].ms) > 10
    return kept["run"]


@pytest.mark.parametrize("url", ["ssh://Board;id", "ssh://$(id)", "ssh://-oProxyCommand=id", "ssh://a b", "telnet://x"])
def test_metacharacters_in_the_url(url, artifact):
    with pytest.raises(UsageError, match="malformed"):
        run_bench(BenchConfig(folders=[artifact], stop=QUICK, device=url))


def test_metacharacters_in_a_path(board, artifact, tmp_path):
    odd = tmp_path / "it's $(touch HERE); `id` & *"
    shutil.copytree(artifact, odd)
    results = run_bench(BenchConfig(folders=[odd], stop=QUICK, device=board.url))
    assert results["subjects"][0]["path"] == str(odd)
    assert not Path("HERE").exists() and left(board) == []


# The agent under the Pythons of boards -------------------------------------------------------------


@pytest.mark.parametrize("version", ["3.8", "3.10", "3.12"])
def test_the_agent_under_other_pythons(version, loopback, monkeypatch, artifact):
    python = python_with_runtime(version)
    monkeypatch.setenv("DSPKD_DEVICE_PYTHON", python)
    results = run_bench(BenchConfig(folders=[artifact], stop=QUICK, device=loopback.url))
    assert results["environment"]["python"].startswith(version + ".")
    assert results["subjects"][0]["device_check"]["max_abs_difference"] < 1e-4
    assert left(loopback) == []


def python_with_runtime(version):
    """A Python of that version with onnxruntime: DSPKD_TEST_PYTHONS lists folders of environments to look in."""
    for folder in filter(None, os.environ.get("DSPKD_TEST_PYTHONS", "").split(os.pathsep)):
        python = Path(folder) / "bin" / "python"
        code = "import onnxruntime, sys; print('%d.%d' % sys.version_info[:2])"
        done = subprocess.run([str(python), "-c", code], capture_output=True, text=True, check=False)
        if done.stdout.strip() == version:
            return str(python)
    pytest.skip(f"no Python {version} with onnxruntime (DSPKD_TEST_PYTHONS)")


@pytest.mark.skipif("DSPKD_TEST_AARCH64_PYTHON" not in os.environ, reason="needs DSPKD_TEST_AARCH64_PYTHON")
def test_the_agent_on_aarch64(loopback, monkeypatch, artifact):
    """The variable names a command that starts an emulated Python with onnxruntime; only the answer counts."""
    monkeypatch.setenv("DSPKD_DEVICE_PYTHON", os.environ["DSPKD_TEST_AARCH64_PYTHON"])
    results = run_bench(BenchConfig(folders=[artifact], stop=QUICK, device=loopback.url))
    assert results["environment"]["machine"] == results["device"]["machine"] == "aarch64"
    check = results["subjects"][0]["device_check"]
    assert check["same_class"] and check["max_abs_difference"] < 1e-4
    assert left(loopback) == []


@pytest.mark.parametrize("version", ["3.8", "3.10", "3.12"])
def test_the_agent_needs_nothing_but_python(version, loopback, monkeypatch, artifact):
    monkeypatch.setenv("DSPKD_DEVICE_PYTHON", other_python(version))
    fails(loopback, artifact, "the device has no (numpy|onnxruntime)")


# Events --------------------------------------------------------------------------------------------


def test_a_last_line_that_was_cut_is_left_out():
    start = '{"event": "start", "protocol": 1, "machine": "m"}\n'
    run = read_events(start + '{"event": "times", "index": 0, "at_ms": [0], "ms": [1.5]}\n{"event": "tim', "there")
    assert run.series[0].ms == [1.5] and run.interrupted
    assert read_events("", "there") is None
    assert read_events(start + '{"event": "new"}\n{"event": "end"}\n', "there").interrupted is None
    with pytest.raises(DeviceError, match="not of the agent"):
        read_events('{"event": "start", "protocol": 2}\n', "there")


# The command line ----------------------------------------------------------------------------------


def test_bench_on_a_device_and_against_a_baseline(board, artifact, tmp_path):
    out = tmp_path / "results.json"
    words = ["bench", str(artifact), "--device", board.url, "--seconds", "1", "--min-rounds", "70"]
    done = CliRunner().invoke(app, [*words, "--out", str(out)])
    assert done.exit_code == 0, done.output
    baseline = json.loads(out.read_text())
    loose = ["--against", str(out), "--max-latency-regression", "900%"]
    done = CliRunner().invoke(app, [*words, *loose])
    assert done.exit_code == 0 and "pass: " in done.output
    for subject in baseline["subjects"]:
        for key in ("p50_ms", "p90_ms"):
            subject["latency"][key] /= 100
        subject["latency"]["p50_interval_ms"] = [v / 100 for v in subject["latency"]["p50_interval_ms"]]
    out.write_text(json.dumps(baseline))
    done = CliRunner().invoke(app, [*words, "--against", str(out)])
    assert done.exception.exit_code == 3
    subject["latency"]["p50_interval_ms"] = [0.0001, 1e6]
    out.write_text(json.dumps(baseline))
    done = CliRunner().invoke(app, [*words, "--against", str(out)])
    assert done.exception.exit_code == 6
    done = CliRunner().invoke(app, [*words, "--against", str(out), "--max-latency-regression", "much"])
    assert done.exception.exit_code == 2


def test_the_agent_on_this_machine_is_a_device_too(model):
    with LocalDevice() as device:
        run = measure_remote(device, [model], QUICK, threads=1)
    assert len(run.series[0].ms) == 70 and run.interrupted is None
