"""Power of known size in, energy per inference out; the sensors are files in a folder of the test's own."""

import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from loopback_ssh import loopback
from other_pythons import other_python
from results_schema import check_schema
from watching import processes, running, wait_until

from dspkd.errors import DeviceError
from dspkd_bench import agent, bench
from dspkd_bench.agent import Plan, PowerSampler, Rule, find_sensors, measure_calls
from dspkd_bench.bench import BenchConfig, run_bench
from dspkd_bench.energy import PowerTrace, energy_per_inference, read_trace
from dspkd_bench.environment import facts
from dspkd_bench.latency import Series, StopRule, latency_summary
from dspkd_bench.recording import Recording
from dspkd_bench.remote import read_events
from dspkd_bench.statistics import judge
from dspkd_bench.under_load import power_trace, shown_states, under_load

__all__ = ["loopback"]
ORIN_NANO = {
    "name": "ina3221",
    "in1_label": "VDD_IN",
    "in1_input": "5000",
    "curr1_input": "1000",
    "in2_label": "VDD_CPU_GPU_CV",
    "in2_input": "5000",
    "curr2_input": "200",
    "in7_label": "Sum of shunt voltages",
}
QUICK = StopRule(warmup_rounds=1, min_rounds=8, max_rounds=8, seconds=0.0)


@pytest.fixture
def sysfs(tmp_path, monkeypatch):
    """A function that writes a folder of sensor files into a sysfs of the test's own."""
    root = tmp_path / "sys"
    root.mkdir()
    monkeypatch.setattr(agent, "SYS", root)
    monkeypatch.setenv("DSPKD_SYS", str(root))

    def write(folder, files):
        (root / "class" / folder).mkdir(parents=True, exist_ok=True)
        for name, text in files.items():
            (root / "class" / folder / name).write_text(text + "\n")
        return root / "class" / folder

    return write


def calls_of(seconds, ms=10.0, since=0.0):
    at_s = since + np.arange(0.0, seconds - 1e-9, ms / 1e3)
    return Series([ms] * len(at_s), at_s.tolist())


def trace_of(at_s, watts, *, counts=False):
    """The trapezoids of a power that is given at every moment."""
    at_s, watts = np.asarray(at_s), np.asarray(watts)
    energy = np.concatenate([[0.0], np.cumsum(np.diff(at_s) * (watts[1:] + watts[:-1]) / 2 * 1e3)])
    return PowerTrace("VDD_IN, made up", counts, at_s, energy, {})


# A known trace --------------------------------------------------------------------------------------


def test_energy_above_idle_of_a_constant_load():
    at_s = np.arange(0.0, 80.0, 0.1)
    trace = trace_of(at_s, np.where(at_s < 15, 3.0, 8.0))
    energy = energy_per_inference(trace, (0.0, 14.9), calls_of(60, ms=20.0, since=15.05))
    # (8 W - 3 W) x 20 ms
    assert energy["mj_per_inference"] == pytest.approx(100.0, rel=1e-6)
    assert energy["interval"] == pytest.approx([100.0, 100.0], rel=1e-6)
    assert (energy["idle_w"], energy["active_w"]) == (pytest.approx(3.0), pytest.approx(8.0))
    assert energy["rate_hz"] == 10.0 and energy["sensor"] == "VDD_IN, made up"
    assert energy["seconds"] == pytest.approx(60.0, abs=0.2)


def test_the_work_before_a_pause_is_not_idle():
    at_s = np.arange(0.0, 80.0, 0.1)
    trace = trace_of(at_s, np.where((at_s > 2) & (at_s < 15), 3.0, 8.0))
    assert energy_per_inference(trace, (0.0, 14.9), calls_of(60, since=15.05))["idle_w"] == pytest.approx(3.0)


def test_a_gap_is_left_out_of_a_power_and_not_of_a_counter():
    """While nothing was sampled the power was twice as high: a counter has it, a line through the gap has not."""
    at_s = np.arange(0.0, 80.0, 0.1)
    watts = np.select([at_s < 15, (at_s > 40) & (at_s < 45)], [3.0, 13.0], 8.0)
    energies = {}
    for counts in (False, True):
        full = trace_of(at_s, watts)
        seen = (at_s < 39.9) | (at_s > 45.1)
        trace = PowerTrace("made up", counts, at_s[seen], full.energy_mj[seen], {})
        if not counts:
            trace = trace_of(at_s[seen], watts[seen])
        energies[counts] = energy_per_inference(trace, (0.0, 14.9), calls_of(60, since=15.05))
    assert energies[False]["mj_per_inference"] == pytest.approx(50.0, rel=1e-3)
    assert energies[False]["seconds"] < 57
    # 5 W for 55 s and 10 W for 5 s, over 6000 inferences
    assert energies[True]["mj_per_inference"] == pytest.approx((55 * 5 + 5 * 10) / 6.0, rel=2e-3)


@pytest.mark.parametrize("seconds", [0.5, 1.0])
def test_too_few_samples(seconds):
    at_s = np.arange(0.0, 20.0, 0.1)
    with pytest.raises(ValueError, match="too few samples"):
        energy_per_inference(trace_of(at_s, np.ones_like(at_s)), (0.0, 10.0), calls_of(seconds, since=10.0))


@pytest.mark.parametrize("dependence", [0.0, 0.8])
def test_intervals_hold_the_true_energy(dependence):
    """Noise of 10 % on every sample, independent or dragging on; the true energy is 50 mJ."""
    rng, held, runs = np.random.default_rng(7), 0, 400
    at_s = np.arange(0.0, 80.0, 0.1)
    for _ in range(runs):
        noise = rng.normal(size=len(at_s))
        for i in range(1, len(noise)):
            noise[i] = dependence * noise[i - 1] + np.sqrt(1 - dependence**2) * noise[i]
        trace = trace_of(at_s, np.where(at_s < 15, 3.0, 8.0) * (1 + 0.1 * noise))
        low, high = energy_per_inference(trace, (0.0, 14.9), calls_of(60, since=15.05))["interval"]
        held += low <= 50.0 <= high
    assert 0.92 <= held / runs <= 0.99


# What the agent sends ----------------------------------------------------------------------------------


def sent(files, rows, folder="hwmon0"):
    """(sensors, rows) as the agent sends them; `rows` are {file: text} every tenth of a second."""
    columns = [f"{folder}/{name}" for name in rows[0]]
    fixed = {f"{folder}/{name}": text for name, text in files.items() if name not in rows[0]}
    texts = [(0.1 * i, list(row.values())) for i, row in enumerate(rows)]
    return {"columns": columns, "fixed": fixed, "denied": []}, texts


def test_rails_of_an_ina3221_in_millivolts_and_milliamperes():
    rows = [{"in1_input": "5000", "curr1_input": str(1000 + 10 * i)} for i in range(21)]
    trace = read_trace(*sent(ORIN_NANO, rows), "NVIDIA Jetson Orin Nano")
    # 5 V x 1.0 A rising to 1.2 A in 2 s: 5.5 W on average
    assert trace.energy_mj[-1] == pytest.approx(11_000.0)
    assert trace.sensor == "VDD_IN, ina3221"
    assert trace.rails_w(2.0) == pytest.approx({"VDD_IN": 5.75, "VDD_CPU_GPU_CV": 1.0})
    assert trace.rails_w(9.0) == {}


def test_a_sample_that_could_not_be_read_is_bridged():
    rows = [{"in1_input": "5000", "curr1_input": None if i in (3, 7) else "1000"} for i in range(21)]
    trace = read_trace(*sent(ORIN_NANO, rows), None)
    assert len(trace.at_s) == 19 and trace.energy_mj[-1] == pytest.approx(10_000.0)


def test_packages_and_memory_of_a_processor_in_microjoules():
    columns = ["intel-rapl:0/energy_uj", "intel-rapl:0:0/energy_uj", "intel-rapl:0:2/energy_uj"]
    fixed = {
        "intel-rapl:0/name": "package-0",
        "intel-rapl:0/max_energy_range_uj": "10000000",
        "intel-rapl:0:0/name": "core",
        "intel-rapl:0:0/max_energy_range_uj": "10000000",
        "intel-rapl:0:2/name": "dram",
        "intel-rapl:0:2/max_energy_range_uj": "10000000",
    }
    # 20 W, 15 W of them in the cores, and 2 W; the first counter runs over once every 5 s
    rows = [(0.1 * i, [str(2_000_000 * i % 10_000_000), str(1_500_000 * i % 10_000_000), str(200_000 * i)]) for i in
            range(41)]  # fmt: skip
    trace = read_trace({"columns": columns, "fixed": fixed, "denied": []}, rows, None)
    assert trace.counts and trace.sensor == "package-0 + package-0 dram, powercap"
    assert trace.energy_mj[-1] == pytest.approx(22_000.0 * 4)
    assert trace.rails_w(3.0) == pytest.approx({"package-0": 20.0, "package-0 core": 15.0, "package-0 dram": 2.0})


def test_lines_of_tegrastats():
    lines = [f"RAM 100/200MB CPU [1%@729] VDD_IN {4000 + i}mW/4000mW VDD_SOC 900mW/900mW" for i in range(11)]
    rows = [(0.1 * i, [line]) for i, line in enumerate([*lines, "garbage", ""])]
    trace = read_trace({"columns": ["tegrastats"], "fixed": {}, "denied": []}, rows, None)
    assert trace.energy_mj[-1] == pytest.approx(4005.0)
    assert trace.sensor == "VDD_IN, tegrastats"


@pytest.mark.parametrize(
    ("sensors", "rows", "says"),
    [
        (None, [], "no power sensor that can be read"),
        ({"columns": [], "fixed": {}, "denied": []}, [], "no power sensor that can be read"),
        ({"columns": [], "fixed": {}, "denied": ["intel-rapl:0/energy_uj"]}, [], r"may not be read.*intel-rapl:0/"),
        ({"columns": ["tegrastats"], "fixed": {}, "denied": []}, [(0.0, ["VDD_IN"])], "none of the rails"),
        ({"columns": ["tegrastats"], "fixed": {}, "denied": []}, [(0.0, ["a", "b"])], "another number of columns"),
        (*sent(ORIN_NANO | {"name": "coretemp"}, [{"in1_input": "1"}]), "none of the rails"),
        (*sent(ORIN_NANO, [{"in1_input": "5 V", "curr1_input": "1"}]), "in1_input: expected a whole number"),
        (*sent({"name": "core"}, [{"energy_uj": "1"}], "intel-rapl:0"), "none of the powercap zones is a package"),
    ],
)
def test_what_gives_no_power_says_why(sensors, rows, says):
    with pytest.raises(ValueError, match=says):
        read_trace(sensors, rows, None)


def test_a_board_whose_input_is_not_known_is_not_guessed():
    files = {"name": "ina3221", "in1_label": "VDD_GPU"}
    rows = [{"in1_input": "5000", "curr1_input": "1000"}] * 5
    with pytest.raises(ValueError, match="none of the rails is known to be the board's input: VDD_GPU"):
        read_trace(*sent(files, rows), "NVIDIA Jetson AGX Thor Developer Kit")


# The agent reads them ---------------------------------------------------------------------------------


def test_which_files_are_sensors(sysfs):
    sysfs("hwmon/hwmon0", {"name": "coretemp", "in1_input": "1"})
    sysfs("hwmon/hwmon3", ORIN_NANO | {"in4_input": "7", "in1_enable": "1"})
    sysfs("powercap/intel-rapl:0", {"name": "package-0", "energy_uj": "5", "max_energy_range_uj": "9"})
    sysfs("powercap/intel-rapl-mmio:0", {"name": "package-0", "energy_uj": "5", "max_energy_range_uj": "9"})
    sensors = find_sensors()
    assert sensors.columns == [
        *(f"hwmon3/{name}" for name in ("curr1_input", "curr2_input", "in1_input", "in2_input")),
        "intel-rapl:0/energy_uj",
    ]
    assert sensors.fixed["hwmon3/in1_label"] == "VDD_IN" and sensors.fixed["hwmon3/in1_enable"] == "1"
    assert sensors.fixed["intel-rapl:0/max_energy_range_uj"] == "9"
    assert not any(name.startswith(("hwmon0", "intel-rapl-mmio")) for name in sensors.fixed)


def test_a_sensor_that_may_not_be_read(sysfs, monkeypatch):
    folder = sysfs("powercap/intel-rapl:0", {"name": "package-0", "energy_uj": "5", "max_energy_range_uj": "9"})
    closed = str(folder / "energy_uj")
    access, read = os.access, agent.read_text
    monkeypatch.setattr(os, "access", lambda path, mode: str(path) != closed and access(path, mode))
    monkeypatch.setattr(agent, "read_text", lambda path: None if str(path) == closed else read(path))
    assert find_sensors() == ([], {}, ["intel-rapl:0/energy_uj"])


def test_a_sustained_phase_with_a_known_power(sysfs):
    """10 W while it works, 5 W while it does not; power is sampled in no other phase."""
    folder = sysfs("hwmon/hwmon0", ORIN_NANO)
    recording, sampled = Recording(), []

    def draw(ma):
        (folder / "curr1_input").write_text(ma)

    def work():
        if (folder / "curr1_input").read_text() != "2000":
            draw("2000")
        time.sleep(0.004)

    def say(event, **values):
        recording.take({"event": event, **values})
        if event == "state":
            alive = any(thread.name == "power" for thread in threading.enumerate())
            sampled.append((values["phase"], alive))
        if event == "sustained" or values.get("phase") == "after":
            draw("1000")

    measure_calls({"0": work}, Plan(Rule(min_rounds=8, seconds=0.0), sustained_s=4.0), say)
    phases = {"before": False, "after": False, "idle": True, "sustained": True}
    assert {phase: alive for phase, alive in sampled if phase in phases} == phases
    assert not any(thread.name == "power" for thread in threading.enumerate())
    trace = read_trace(recording.sensors, recording.power, None)
    series = recording.sustained[0]
    energy = energy_per_inference(trace, recording.idle_s[0], series)
    each_ms = (series.at_s[-1] - series.at_s[0]) * 1e3 / (len(series.ms) - 1)
    assert energy["mj_per_inference"] == pytest.approx(5.0 * each_ms, rel=0.1)
    assert energy["idle_w"] == pytest.approx(5.0, rel=0.05) and energy["active_w"] == pytest.approx(10.0, rel=0.05)
    assert 3.5 <= energy["seconds"] <= 4.5 and energy["rate_hz"] > 2


@pytest.mark.parametrize(
    "target", ["onnx", pytest.param("executorch", marks=pytest.mark.skipif(not shutil.which("g++"), reason="no g++"))]
)
def test_an_artifact_with_its_energy_here_and_on_a_device(
    sysfs, tiny_artifacts, loopback_with_sysfs, monkeypatch, target
):
    """An ExecuTorch program's sensors are read there by the agent, beside the program that runs it."""
    sysfs("hwmon/hwmon0", ORIN_NANO)
    monkeypatch.setenv("DSPKD_DEVICE_PYTHON", sys.executable)
    for device in ("local", loopback_with_sysfs.url):
        results = run_bench(
            BenchConfig([tiny_artifacts[target]], device=device, stop=QUICK, sustained_s=2.0, memory=False)
        )
        check_schema(results)
        [subject] = results["subjects"]
        # The file never changes, so nothing is left above idle.
        assert subject["energy"]["mj_per_inference"] == pytest.approx(0.0, abs=1e-6)
        assert subject["energy"]["sensor"] == "VDD_IN, ina3221"
        assert subject["energy"]["idle_w"] == pytest.approx(5.0)
        assert subject["sustained"]["seconds"] == pytest.approx(2.0, abs=0.5)
        assert subject["sustained"]["burst_ms"] > 0 and subject["sustained"]["sustained_ms"] > 0
        alone = [state for state in results["states"] if "subject" in state]
        assert {state["phase"] for state in alone} == {"idle", "sustained"}
        assert alone[-1]["power_w"] == pytest.approx({"VDD_IN": 5.0, "VDD_CPU_GPU_CV": 1.0})
        assert results["settings"]["sustained_seconds"] == 2.0
    assert results["device"]["facts"]["power mode"] == "MAXN (0)"


def test_what_a_board_says_of_itself():
    data = Path(__file__).parent / "data" / "sensors"
    machine = {
        "board": "NVIDIA Jetson Orin Nano Developer Kit",
        "l4t": (data / "nv_tegra_release_orin_nano.txt").read_text(),
        "nvpmodel": (data / "nvpmodel_xavier_nx_verbose.txt").read_text(),
        "packages": {"tensorrt": "10.3.0", "numpy": "1.26.4"},
    }
    assert facts(machine) == {
        "board": "NVIDIA Jetson Orin Nano Developer Kit",
        "L4T": "36.3.0",
        "JetPack": "6",
        "power mode": "MODE_15W_6CORE (2)",
        "TensorRT": "10.3.0",
    }
    assert facts({"board": None, "l4t": "something else", "nvpmodel": "", "packages": {}}) == {}


@pytest.fixture
def loopback_with_sysfs(sysfs, tmp_path, monkeypatch):
    from loopback_ssh import serve

    bin = tmp_path / "bin"
    bin.mkdir()
    (bin / "nvpmodel").write_text("#!/bin/sh\n[ \"$*\" = -q ] && echo 'NV Power Mode: MAXN' && echo 0\n")
    (bin / "nvpmodel").chmod(0o755)
    with serve(tmp_path / "ssh", DSPKD_SYS=str(agent.SYS), PATH=f"{bin}:{os.environ['PATH']}") as server:
        monkeypatch.setenv("DSPKD_SSH_CONFIG", str(server.ssh_config))
        yield server


def test_without_the_option_or_a_sensor_nothing_is_said_of_energy(sysfs, tiny_artifacts, monkeypatch):
    monkeypatch.setattr(Plan, "pause_s", 0.1)
    config = BenchConfig([tiny_artifacts["onnx"]], stop=QUICK, memory=False)
    [subject] = run_bench(config)["subjects"]
    assert subject["energy"] == {"not_measured": "asked for with --sustained"} and "sustained" not in subject
    [subject] = run_bench(replace(config, sustained_s=0.5))["subjects"]
    assert subject["energy"] == {"not_measured": "no power sensor that can be read"} and subject["sustained"]


def test_throttling_under_load_is_a_remark_and_no_fault_of_the_times_before(sysfs, tiny_artifacts, monkeypatch):
    monkeypatch.setattr(Plan, "pause_s", 0.1)
    clocks = agent.SYS / "devices/system/cpu/cpu0/cpufreq"
    clocks.mkdir(parents=True)
    (clocks / "scaling_cur_freq").write_text("1500000")
    (clocks / "scaling_governor").write_text("performance")
    recorded = agent.measure_calls

    def hot(calls, plan, say, batched):
        def heard(event, **values):
            say(event, **values)
            if event == "state" and values["phase"] == "sustained":
                (clocks / "scaling_cur_freq").write_text("900000")

        recorded(calls, plan, heard, batched)

    monkeypatch.setattr(bench, "measure_calls", hot)
    stop = StopRule(warmup_rounds=1, min_rounds=70, max_rounds=70, seconds=0.0)
    results = run_bench(BenchConfig([tiny_artifacts["onnx"]], stop=stop, sustained_s=2.6, memory=False))
    [subject] = results["subjects"]
    assert "throttled: the clock fell from 1.50 to 0.90 GHz" in subject["sustained"]["remarks"]
    assert subject["validity"]["verdict"] != "invalid"


# tegrastats, a child that always ends --------------------------------------------------------------------


@pytest.fixture
def tegrastats(tmp_path, monkeypatch):
    """A stand-in that prints a line whenever it is asked to."""
    bin = tmp_path / "bin"
    bin.mkdir()
    (bin / "tegrastats").write_text(
        '#!/bin/sh\nwhile :; do echo "RAM 1/2MB $* VDD_IN 4000mW/4000mW"; sleep 0.02; done\n'
    )
    (bin / "tegrastats").chmod(0o755)
    monkeypatch.setenv("PATH", f"{bin}:{os.environ['PATH']}")
    return str(bin / "tegrastats")


def test_tegrastats_where_there_is_no_other_sensor(sysfs, tegrastats):
    sensors = find_sensors()
    assert sensors == (["tegrastats"], {}, [])
    sampler = PowerSampler(sensors, time.perf_counter_ns)
    sampler.start()
    wait_until(lambda: len(sampler._rows) > 5)
    assert running(tegrastats)
    sampler.stop()
    rows = sampler.take()
    assert rows[0][1] == ["RAM 1/2MB --interval 100 VDD_IN 4000mW/4000mW"] and len(rows) > 5
    assert not running(tegrastats) and sampler.take() == []


def test_tegrastats_ends_with_an_agent_that_is_killed(sysfs, tegrastats):
    code = (
        "import time; from dspkd_bench.agent import *; "
        "PowerSampler(find_sensors(), time.perf_counter_ns).start(); time.sleep(600)"
    )
    process = subprocess.Popen([sys.executable, "-c", code])
    try:
        wait_until(lambda: running(tegrastats), seconds=30)
    finally:
        process.kill()
        process.wait()
    wait_until(lambda: not running(tegrastats))


def test_a_hardware_monitor_makes_tegrastats_superfluous(sysfs, tegrastats):
    sysfs("hwmon/hwmon0", ORIN_NANO)
    assert "tegrastats" not in find_sensors().columns


# On a device, and when the link breaks ------------------------------------------------------------------


@pytest.fixture
def board(loopback, monkeypatch):
    monkeypatch.setenv("DSPKD_DEVICE_PYTHON", sys.executable)
    return loopback


def test_batches_cores_and_the_cold_start_on_a_device(board, tiny_artifacts):
    [core, *_] = sorted(os.sched_getaffinity(0))
    folder = tiny_artifacts["onnx"]
    results = run_bench(BenchConfig([folder], stop=QUICK, device=board.url, batches=(1, 4), cores=(core,)))
    check_schema(results)
    [subject] = results["subjects"]
    [batch] = subject["batches"]
    assert batch["batch"] == 4 and batch["latency"]["n"] == 5
    assert results["environment"]["affinity"] == [core]
    assert results["environment"]["packages"]["onnxruntime"]
    # Each in a process of its own, the imports left out.
    assert 0 < subject["memory"]["resident_increase_mib"] <= subject["memory"]["increase_mib"] < 100
    assert subject["memory"]["peak_rss_mib"] > subject["memory"]["increase_mib"]
    assert subject["load_ms"] > 0 and subject["first_inference_ms"] > 0
    assert list(board.work.iterdir()) == []


def test_cores_and_providers_that_a_device_lacks(board, tiny_artifacts):
    config = BenchConfig([tiny_artifacts["onnx"]], stop=QUICK, device=board.url, memory=False)
    with pytest.raises(DeviceError, match=r"cores \[1023\] were asked for"):
        run_bench(replace(config, cores=(1023,)))
    results = run_bench(replace(config, providers=("cpu", "cuda")))
    assert [s["provider"] for s in results["subjects"]] == ["cpu"]
    assert "no CUDAExecutionProvider" in results["failed"][0]["message"]


def test_a_cut_connection_in_the_sustained_phase_keeps_the_rounds(board, tiny_artifacts, tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    config = BenchConfig([tiny_artifacts["onnx"]], stop=QUICK, device=board.url, memory=False, sustained_s=60.0)
    kept = {}
    thread = threading.Thread(target=lambda: kept.update(run_bench(config)))
    thread.start()
    # What comes back lies there as it comes.
    wait_until(lambda: any('"idle"' in file.read_text() for file in tmp_path.glob("dspkd-*/events")), seconds=60)
    for pid in sessions(board):
        os.kill(pid, 9)
    thread.join(60)
    check_schema(kept)
    assert "connection" in kept["interrupted"] and kept["validity"]["verdict"] == "invalid"
    [subject] = kept["subjects"]
    assert subject["latency"]["n"] == 8 and "sustained" not in subject
    assert subject["energy"]["not_measured"]
    wait_until(lambda: not running("agent.py spec.json", board.work))


def sessions(board):
    """The server's own processes for its connections."""
    found, look = [], running(f"{board.folder}/sshd_config")
    while look:
        look = [pid for pid, parent, name, _ in processes() if parent in look and name.startswith("sshd")]
        found += look
    return found


def test_a_phase_that_was_cut_short_gives_no_energy():
    recording = Recording(series={0: calls_of(1)}, sustained={0: calls_of(3)}, interrupted="cut")
    told = under_load(0, recording, "no power sensor that can be read")
    assert told == {"energy": {"not_measured": "no power sensor that can be read"}}
    at_s = np.arange(0.0, 10.0, 0.1)
    told = under_load(0, recording, trace_of(at_s, np.ones_like(at_s)))
    assert told == {"energy": {"not_measured": "the sustained phase did not reach its end"}}


def test_power_of_one_program_is_not_given_to_the_calls_of_another():
    """The clocks of two programs on a device begin at different moments."""
    agent_part, runner_part = Recording(), Recording()
    at_s = np.arange(0.0, 40.0, 0.1)
    for part, sensors in ((agent_part, True), (runner_part, False)):
        if sensors:
            part.take({"event": "sensors", "columns": ["tegrastats"], "fixed": {}, "denied": []})
        part.take({"event": "times", "index": 0, "phase": "sustained", "at_ms": [1000 * i for i in range(10, 30)],
                   "ms": [1000.0] * 20})  # fmt: skip
        part.take({"event": "sustained", "index": 0, "idle_ms": [0, 10_000]})
    whole = Recording()
    whole.join(agent_part, [1])
    whole.join(runner_part, [0])
    trace = trace_of(at_s, np.where(at_s < 10, 1.0, 2.0))
    assert under_load(1, whole, trace)["energy"]["mj_per_inference"] == pytest.approx(1000.0, rel=0.01)
    assert "reads no power sensor" in under_load(0, whole, trace)["energy"]["not_measured"]
    assert under_load(0, whole, trace)["sustained"]["sustained_ms"] == 1000.0


def test_each_program_is_judged_by_its_own_clock_and_its_times_go_on():
    """One after the other on a device whose idle clock is half of its working one."""

    def program():
        part, clock = Recording(), {"before": 900_000, "rounds": 2_000_000, "after": 900_000}
        for at_ms, phase in ((0, "before"), (1000, "rounds"), (2000, "rounds"), (2500, "after")):
            part.take({"event": "state", "at_ms": at_ms, "phase": phase, "clocks_khz": [clock[phase]]})
        part.take({"event": "times", "index": 0, "at_ms": [10.0 * i for i in range(200)], "ms": [9.0] * 200})
        part.take({"event": "state", "at_ms": 9000, "phase": "idle", "index": 0, "clocks_khz": [900_000]})
        return part

    whole = Recording()
    for index in (1, 0):
        whole.join(program(), [index])
    for index in (0, 1):
        own = whole.states_around(index)
        assert [state["phase"] for state in own] == ["before", "rounds", "rounds", "after"]
        assert judge(latency_summary(whole.series[index].ms), [], own, 2).verdict == "valid"
    at_ms = [state["at_ms"] for state in shown_states(whole, ["a", "b"], "no sensor")]
    assert at_ms == sorted(at_ms) and at_ms[5] == 9000.0 and at_ms[-1] == 18_000.0
    assert [state.get("subject") for state in shown_states(whole, ["a", "b"], "")][4::5] == ["b", "a"]
    assert whole.series[1].at_s[0] == 0.0 and whole.series[0].at_s[0] == 9.0


def test_a_fall_of_the_clock_in_one_program_is_not_held_against_the_other():
    whole = Recording()
    for index, clocks in enumerate(((2_000_000, 1_200_000), (2_000_000, 2_000_000))):
        part = Recording()
        for clock in clocks:
            part.take({"event": "state", "at_ms": 0, "phase": "rounds", "clocks_khz": [clock]})
        whole.join(part, [index])
    verdicts = [judge({"n": 70, "p90_early_stopping_ms": 1.0}, [], whole.states_around(i), 2).verdict for i in (0, 1)]
    assert verdicts == ["invalid", "valid"]


@pytest.mark.parametrize("event", [
    {"event": "power", "at_ms": [1], "rows": []},
    {"event": "power", "at_ms": [float("nan")], "rows": [[]]},
    {"event": "sensors", "columns": 3, "fixed": {}, "denied": []},
    {"event": "sustained", "index": 0, "idle_ms": [1]},
    {"event": "state", "index": "x"},
    {"event": "times", "index": 0, "at_ms": [1], "ms": [float("inf")]},
])  # fmt: skip
def test_malformed_events(event):
    with pytest.raises((KeyError, TypeError, ValueError)):
        Recording().take(event)


# The Pythons of boards ------------------------------------------------------------------------------------


def test_all_phases_under_other_pythons(sysfs):
    """Without numpy and a runtime, which these may lack; at the same time, because each waits for seconds."""
    sysfs("hwmon/hwmon0", ORIN_NANO)
    code = (
        "import time, agent; work = lambda: time.sleep(0.002); say = agent._say; "
        "rule = agent.Rule(warmup_rounds=1, min_rounds=8, max_rounds=8, seconds=0.0); "
        "say('start', protocol=1, **agent.describe()); "
        "agent.measure_calls({'0': work}, agent.Plan(rule, 2.0, (4,)), say, [(4, {'0': work})]); say('end')"
    )
    pythons = {version: other_python(version) for version in ("3.8", "3.10", "3.12")}
    started = {
        version: subprocess.Popen(
            [python, "-c", code], cwd=Path(agent.__file__).parent, stdout=subprocess.PIPE, text=True
        )
        for version, python in pythons.items()
    }
    said = {version: process.communicate()[0] for version, process in started.items()}
    for version, text in said.items():
        run = read_events(text, "here")
        assert run.interrupted is None and run.machine["python"].startswith(version + ".")
        assert len(run.series[0].ms) == 8 and len(run.batches[0][4].ms) == 5
        told = under_load(0, run, power_trace(run, 2.0))
        assert told["energy"]["idle_w"] == pytest.approx(5.0) and told["sustained"]["burst_ms"] >= 2.0
