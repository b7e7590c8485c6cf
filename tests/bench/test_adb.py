"""The bench on a phone behind the real adb client, and what happens when the phone or the cable fails.

The phone of these tests runs commands on this machine (`fake_adbd.py`), so the runner is one for this machine, or one
for aarch64 that is emulated.
"""

import json
import os
import platform
import shutil
import subprocess
import sys
import threading

import numpy as np
import pytest
from fake_adbd import adb, phone
from recorded_phone import android
from results_schema import check_schema
from typer.testing import CliRunner
from watching import running, wait_until

from dspkd.cli.app import app
from dspkd.devices import open_device
from dspkd.errors import DspkdError
from dspkd_bench import runner_build
from dspkd_bench.bench import BenchConfig, run_bench
from dspkd_bench.latency import StopRule
from dspkd_bench.remote import Model, measure_remote
from dspkd_bench.runner_build import BINARY, MACHINES, WHEEL_VARIABLE

__all__ = ["adb", "android", "phone"]
HERE = platform.machine()
QUICK = StopRule(warmup_rounds=2, min_rounds=70, max_rounds=70, seconds=0.0)
ENDLESS = StopRule(warmup_rounds=1, min_rounds=10, max_rounds=10**9, seconds=120.0)
RUNNER = f"{BINARY} --seconds"
EMULATOR = ("qemu-aarch64-static", "-cpu", "cortex-a76")
pytestmark = pytest.mark.skipif(
    platform.system() != "Linux" or HERE not in MACHINES or not shutil.which("g++"), reason="needs Linux and g++"
)


@pytest.fixture
def artifact(tiny_artifacts):
    return tiny_artifacts["executorch"]


@pytest.fixture
def program(artifact):
    with np.load(artifact / "golden.npz") as stored:
        return Model(artifact / "model.pte", "executorch", stored["pixels"][0])


def measured(url, *folders):
    results = run_bench(BenchConfig(folders=list(folders), stop=QUICK, device=url))
    check_schema(results)
    return results


def test_a_program_is_measured_on_a_phone(android, artifact, tmp_path):
    results = measured(android.url, artifact)
    [subject] = results["subjects"]
    assert subject["latency"]["n"] == 70 and subject["runtime"].startswith("executorch ")
    assert subject["device_check"]["same_class"] and subject["device_check"]["max_abs_difference"] < 1e-4
    # Of a process that does nothing else.
    assert 0 < subject["memory"]["increase_mib"] < subject["memory"]["peak_rss_mib"] < 200
    assert subject["memory"]["resident_increase_mib"] <= subject["memory"]["increase_mib"]
    device = results["device"]
    assert (device["kind"], device["url"], device["name"]) == ("adb", android.url, "Xiaomi 2210132G")
    assert device["fixed_performance"] == "on" and device["facts"]["System on a chip"] == "QTI SM8550"
    assert [line.split()[-1] for line in (tmp_path / "modes").read_text().splitlines()] == ["true", "false"]
    assert results["validity"]["verdict"] != "valid"
    assert any("thermal status SEVERE" in reason for reason in results["validity"]["reasons"])
    assert android.left() == []


def test_the_only_phone_needs_no_name_and_the_results_have_it(phone, artifact):
    assert measured("adb:", artifact)["device"]["url"] == phone.url


@pytest.mark.skipif(
    not (os.environ.get(WHEEL_VARIABLE) and shutil.which("aarch64-linux-gnu-g++") and shutil.which(EMULATOR[0])),
    reason=f"needs {WHEEL_VARIABLE} (executorch's aarch64 wheel), aarch64-linux-gnu-g++ and qemu-aarch64-static",
)
def test_a_runner_for_aarch64_gives_the_golden_answer(phone, artifact):
    """Cross-compiled, sent with its loader and libraries, and emulated where a phone's kernel would start it."""
    loader = MACHINES["aarch64"].loader

    def emulate(path):
        if path.name.endswith(loader):
            real = path.with_name("real-loader")
            path.rename(real)
            path.write_text(f'#!/bin/sh\nexec {" ".join(EMULATOR)} {real} "$@"\n')

    phone.script("uname", 'case $1 in -m) echo aarch64;; *) exec /bin/uname "$@";; esac')
    phone.on_file = emulate
    results = measured(phone.url, artifact)
    [subject] = results["subjects"]
    assert results["device"]["machine"] == "aarch64"
    assert subject["device_check"]["same_class"] and subject["device_check"]["max_abs_difference"] < 1e-4
    assert phone.left() == []


def test_what_a_phone_cannot_run_is_said_and_the_rest_is_measured(phone, tiny_artifacts):
    results = measured(phone.url, tiny_artifacts["onnx"], tiny_artifacts["executorch"])
    assert [subject["target"] for subject in results["subjects"]] == ["executorch"]
    [failed] = results["failed"]
    assert "ONNX" in failed["name"] and "Python" in failed["message"]


# Faults: each with a message of its own, exit code 5, and nothing left there ------------------------


def fails(phone, artifact, message, *, url=None):
    with pytest.raises(DspkdError, match=message) as caught:
        run_bench(BenchConfig(folders=[artifact], stop=QUICK, device=url or phone.url))
    assert caught.value.exit_code == 5 and caught.value.hint
    wait_until(lambda: phone.left() == [])
    assert not running(RUNNER, phone.work)
    return caught.value


def answer(phone, text):
    """What arrives as the loader, which starts the runner, is this script instead."""

    def replace(path):
        if path.name.endswith(MACHINES[HERE].loader):
            path.write_text(f"#!/bin/sh\n{text}\n")

    phone.on_file = replace


def test_only_models_that_need_a_python(phone, tiny_artifacts):
    error = fails(phone, tiny_artifacts["onnx"], "can run none of them.*Python")
    assert "doctor --device adb:" in error.hint


def test_a_phone_with_32_bits(phone, artifact):
    phone.script("uname", "echo armv8l")
    fails(phone, artifact, "armv8l.*no runner")


def test_another_processor_than_it_says(phone, artifact):
    def foreign(path):
        if path.name.endswith(MACHINES[HERE].loader):
            # An ELF header of a machine that nobody has.
            path.write_bytes(b"\x7fELF\x02\x01\x01" + bytes(9) + b"\x02\x00\xfe\xca" + bytes(44))

    phone.on_file = foreign
    fails(phone, artifact, "(?i)ended early: .*(exec format error|cannot execute|not found|syntax error)")


def test_no_wheel_to_make_the_runner_of(phone, artifact, monkeypatch):
    monkeypatch.delenv(WHEEL_VARIABLE, raising=False)
    other = next(name for name in MACHINES if name != HERE)
    phone.script("uname", f"echo {other}")
    assert "pip download" in fails(phone, artifact, f"needs executorch's wheel for {other}").hint


def test_no_compiler_to_make_the_runner_with(phone, artifact, monkeypatch):
    which = shutil.which
    monkeypatch.setattr(runner_build.shutil, "which", lambda name: None if "g++" in name else which(name))
    fails(phone, artifact, r"no C\+\+ compiler g\+\+")


def test_a_full_disk(phone, artifact):
    phone.free_bytes = 1000
    assert fails(phone, artifact, "No space left on device").hint == "make room on the device"


def test_no_permission(phone, artifact):
    phone.script("mktemp", "echo 'mktemp: /data/local/tmp: Permission denied' >&2; exit 1")
    fails(phone, artifact, "no temporary folder can be made there: .*Permission denied")


def test_a_folder_where_nothing_may_be_executed(phone, artifact):
    answer(phone, "echo './ld: Permission denied' >&2; exit 126")
    fails(phone, artifact, "ended early: .*Permission denied")


def test_garbage(phone, artifact):
    answer(phone, "echo Welcome to Android")
    fails(phone, artifact, "'Welcome to Android'")


def test_silence(phone, artifact):
    answer(phone, "echo 'Segmentation fault' >&2; exit 139")
    fails(phone, artifact, "ended early: Segmentation fault")


def test_a_hanging_runner(phone, program):
    answer(phone, "exec sleep 4323")
    with open_device(phone.url) as device, pytest.raises(DspkdError, match="said nothing for 1 s") as caught:
        measure_remote(device, [program], QUICK, threads=1, patience_s=1.0)
    assert caught.value.exit_code == 5
    wait_until(lambda: not running("sleep 4323"))
    assert phone.left() == []


def test_a_wrong_serial(phone, artifact):
    fails(phone, artifact, "adb:R58M123 is not attached", url="adb:R58M123")


def test_two_phones_and_no_serial(phone, adb, artifact):
    second = adb.attach()
    assert second.serial in str(fails(phone, artifact, "several devices are attached", url="adb:"))


def test_a_phone_that_does_not_accept_this_computer(adb, artifact):
    phone = adb.attach("unauthorized")
    fails(phone, artifact, "is unauthorized")


def test_odd_paths(phone, artifact, tmp_path):
    odd = tmp_path / "it's $(touch HERE); `id` & *"
    shutil.copytree(artifact, odd)
    [subject] = measured(phone.url, odd)["subjects"]
    assert subject["path"] == str(odd)
    assert not (phone.work / "HERE").exists() and phone.left() == []


# The cable ------------------------------------------------------------------------------------------


def has_measured(phone):
    """Of the second that it said, the first has arrived."""
    return phone.said.count(b'"times"') >= 2


def interrupted(phone, program, how):
    """What is kept when `how` happens while the phone measures."""
    kept = {}

    def measure():
        with open_device(phone.url) as device:
            kept["run"] = measure_remote(device, [program], ENDLESS, threads=1)

    thread = threading.Thread(target=measure)
    thread.start()
    wait_until(lambda: has_measured(phone), seconds=60)
    how()
    thread.join(30)
    assert len(kept["run"].series[0].ms) > 10
    wait_until(lambda: not running(RUNNER, phone.work))
    wait_until(lambda: phone.left() == [])
    return kept["run"]


def kill_runner(phone):
    for pid in running(RUNNER, phone.work):
        os.kill(pid, 9)


def test_the_runner_is_killed(phone, program):
    assert "ended early" in interrupted(phone, program, lambda: kill_runner(phone)).interrupted


def test_unplugged_while_it_measures(phone, program):
    assert "connection" in interrupted(phone, program, phone.cut).interrupted


def test_a_second_bench_on_the_same_phone(phone, program, artifact):
    def refused():
        with pytest.raises(DspkdError, match="another dspkd bench is running there") as caught:
            run_bench(BenchConfig(folders=[artifact], stop=QUICK, device=phone.url))
        assert caught.value.exit_code == 5
        kill_runner(phone)

    interrupted(phone, program, refused)


@pytest.mark.parametrize("step", ["mktemp", "getprop", "uname -m", "sync:", "chmod", RUNNER])
def test_unplugged_at_each_step(phone, artifact, step):
    """As soon as the phone is asked for the step."""
    phone.on_service = lambda name: phone.cut() if step in name else None
    fails(phone, artifact, "lost|cannot be copied|no temporary folder")


def test_unplugged_when_all_is_measured(phone, artifact):
    """What remains is to say how the phone is, and to tidy up: the phone does that itself."""
    asked = []

    def cut(name):
        asked.extend([name] if "thermalservice" in name else [])
        if len(asked) == 2:
            phone.cut()

    phone.on_service = cut
    results = measured(phone.url, artifact)
    assert results["subjects"][0]["latency"]["n"] == 70
    assert results["device"]["after"] is None and results["interrupted"] is None
    wait_until(lambda: phone.left() == [])


def test_dspkd_itself_is_killed(phone, artifact):
    words = ["bench", str(artifact), "--device", phone.url, "--seconds", "120"]
    process = subprocess.Popen([sys.executable, "-m", "dspkd", *words], stderr=subprocess.DEVNULL)
    wait_until(lambda: running(RUNNER, phone.work), seconds=60)
    process.kill()
    process.wait()
    wait_until(lambda: not running(RUNNER, phone.work))
    wait_until(lambda: phone.left() == [])


# The command line -----------------------------------------------------------------------------------


def test_what_was_measured_before_the_cable_was_pulled_is_written(phone, artifact, tmp_path):
    out = tmp_path / "results.json"

    def unplug():
        wait_until(lambda: has_measured(phone), seconds=60)
        phone.cut()

    threading.Thread(target=unplug).start()
    words = ["bench", str(artifact), "--device", phone.url, "--sustained", "12", "--out", str(out)]
    done = CliRunner().invoke(app, words)
    assert done.exception.exit_code == 5 and "broke off" in str(done.exception)
    results = json.loads(out.read_text())
    check_schema(results)
    assert results["subjects"][0]["latency"]["n"] > 10
    assert "connection" in results["interrupted"] and results["validity"]["verdict"] == "invalid"
    wait_until(lambda: phone.left() == [])


def test_doctor_says_what_the_phone_can_run(android, tiny_artifacts):
    done = CliRunner().invoke(app, ["doctor", str(tiny_artifacts["executorch"]), "--device", "adb:", "--json"])
    assert done.exit_code == 0, done.output
    value = json.loads(done.stdout)
    assert value["device"] == android.url and value["machine"]["phone"]["soc"] == "QTI SM8550"
    done = CliRunner().invoke(app, ["doctor", str(tiny_artifacts["onnx"]), "--device", android.url])
    assert done.exception.exit_code == 5
    assert android.left() == []
