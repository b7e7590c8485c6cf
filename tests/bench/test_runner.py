"""The C++ runner, compiled for this machine and run on real ExecuTorch programs; for aarch64 under qemu."""

import itertools
import json
import os
import platform
import shutil
import signal
import subprocess
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

from dspkd.errors import DeviceError, MissingDependencyError, OutputError, UsageError
from dspkd.fileio import ensure_dir
from dspkd_bench import runner_build
from dspkd_bench.agent import early_stopping_rank
from dspkd_bench.runner_build import WHEEL_VARIABLE, build_runner
from dspkd_export.golden import read_golden

pytest.importorskip("executorch")
HERE = platform.machine()
pytestmark = pytest.mark.skipif(
    platform.system() != "Linux" or HERE not in runner_build.MACHINES or not shutil.which("g++"),
    reason="needs Linux and g++",
)
QUICK = ("--warmup", "1", "--seconds", "0", "--min-rounds", "4", "--max-rounds", "4")


@pytest.fixture(scope="module")
def kit(tmp_path_factory):
    """Built with warnings as errors."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runner_build, "FLAGS", (*runner_build.FLAGS, "-Werror"))
        return build_runner(tmp_path_factory.mktemp("runner") / "kit", machine=HERE)


def start(kit, *arguments, before=(), **environment):
    """In the kit's folder, with nothing of this process's environment."""
    return subprocess.run(
        [*before, *kit.command, *map(str, arguments)],
        cwd=kit.files[0].parent,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
    )


def events(done):
    return [json.loads(line) for line in done.stdout.splitlines()]


def of_kind(said, kind):
    return [event for event in said if event["event"] == kind]


class _Bytes(torch.nn.Module):
    """Every value of the picture counts differently, so that a picture read in another order gives another answer."""

    def __init__(self, size):
        super().__init__()
        torch.manual_seed(0)
        self.layer = torch.nn.Linear(3 * size * size, 4)

    def forward(self, pixels):
        return torch.softmax(self.layer(pixels.flatten(1).float() / 255.0 - 0.5), dim=1)


class _Shape(torch.nn.Module):
    def forward(self, x):
        return torch.softmax(x.flatten(1), dim=1)


def write_program(path, module, example, *, delegate=True, **how):
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
    from executorch.exir import to_edge_transform_and_lower

    exported = torch.export.export(module.eval(), (example,), **how)
    partitioners = [XnnpackPartitioner()] if delegate else []
    path.write_bytes(to_edge_transform_and_lower(exported, partitioner=partitioners).to_executorch().buffer)
    return path


@pytest.fixture(scope="module")
def model(tiny_artifacts):
    return tiny_artifacts["executorch"] / "model.pte"


@pytest.fixture(scope="module")
def golden(tiny_artifacts):
    return read_golden(tiny_artifacts["executorch"] / "golden.npz")


def test_gives_the_golden_probabilities(kit, model, golden, tmp_path):
    for pixels, expected in zip(golden.pixels, golden.deployed, strict=True):
        (tmp_path / "picture.bin").write_bytes(pixels.tobytes())
        done = start(kit, *QUICK, "--input", tmp_path / "picture.bin", model)
        assert (done.returncode, done.stderr) == (0, "")
        (output,) = of_kind(events(done), "output")
        assert np.abs(np.array(output["probabilities"]) - expected).max() < 1e-4


def test_prints_the_protocol(kit, model):
    said = events(start(kit, *QUICK, model))
    assert [e["event"] for e in said] == ["start", "loaded", "output", "state", "began", "times", "state", "end"]
    first, loaded = said[0], said[1]
    assert (first["protocol"], first["program"], first["machine"]) == (1, "dspkd-runner", HERE)
    assert loaded["runtime"] == kit.runtime
    assert loaded["load_ms"] > 0 and loaded["first_ms"] > 0
    assert len(first["affinity"]) == first["cores"]
    assert said[3]["at_ms"] == 0.0 and said[6]["at_ms"] > said[5]["at_ms"][-1]
    assert (said[3]["phase"], said[6]["phase"]) == ("before", "after")
    assert 0 < time.monotonic_ns() - said[4]["monotonic_ns"] < 120e9


def test_models_take_turns_and_the_order_turns(kit, model):
    said = events(start(kit, *QUICK, model, model, model))
    calls = sorted(
        (at, took, e["index"]) for e in of_kind(said, "times") for at, took in zip(e["at_ms"], e["ms"], strict=True)
    )
    assert [index for _, _, index in calls] == [0, 1, 2, 1, 2, 0, 2, 0, 1, 0, 1, 2]
    for (at, took, _), (following, _, _) in itertools.pairwise(calls):
        assert at + took <= following + 1e-3


def test_stops_after_the_seconds_but_not_before_the_rounds(kit, model):
    said = events(start(kit, "--seconds", "1.3", "--max-rounds", "1000000", model))
    times = of_kind(said, "times")
    # Flushed after a second, and at the end.
    assert len(times) == 2 and len(of_kind(said, "state")) == 3
    assert 1000 <= times[1]["at_ms"][0] < 1300
    assert 1100 < times[1]["at_ms"][-1] < 1400
    few = events(start(kit, "--seconds", "0", "--min-rounds", "7", "--max-rounds", "9", model))
    assert len(of_kind(few, "times")[0]["ms"]) == 7
    above = events(start(kit, "--seconds", "0", "--min-rounds", "7", "--max-rounds", "3", model))
    assert len(of_kind(above, "times")[0]["ms"]) == 7


def test_any_number_of_rounds_that_a_plan_can_have(kit, model):
    said = events(start(kit, *QUICK[:-1], str(10**12), model))
    assert len(of_kind(said, "times")[0]["ms"]) == 4


def test_a_cold_start_and_its_memory(kit, model, golden, tmp_path):
    (tmp_path / "picture.bin").write_bytes(golden.pixels[0].tobytes())
    done = start(kit, "--cold", "--input", tmp_path / "picture.bin", model)
    assert (done.returncode, done.stderr) == (0, "")
    said = events(done)
    assert [e["event"] for e in said] == ["start", "cold", "end"]
    assert said[1]["load_ms"] > 0 and said[1]["first_ms"] > 0
    assert 0 < said[1]["before_kib"] < said[1]["resident_kib"] <= said[1]["peak_kib"]
    (tmp_path / "empty.pte").write_bytes(b"")
    failed = start(kit, "--cold", tmp_path / "empty.pte")
    assert failed.returncode == 4 and [e["event"] for e in events(failed)] == ["start", "failed", "end"]


class _Slow(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Conv2d(3, 16, 101, padding=50)

    def forward(self, x):
        return torch.softmax(self.layer(x).mean((2, 3)), dim=1)


def test_a_call_that_does_not_return_cannot_keep_it_running(kit, tmp_path):
    """One call takes longer than a program that was told to end may take."""
    slow = write_program(tmp_path / "slow.pte", _Slow(), torch.zeros(1, 3, 768, 768), delegate=False)
    with subprocess.Popen(
        [*kit.command, "--cold", str(slow)], cwd=kit.files[0].parent, stdout=subprocess.PIPE, text=True
    ) as process:
        assert json.loads(next(process.stdout))["event"] == "start"
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=60) == -signal.SIGALRM
        assert process.stdout.read() == ""


FEWEST = next(n for n in itertools.count(1) if early_stopping_rank(n))


@pytest.mark.parametrize(("precision", "rounds"), [("1e9", FEWEST), ("0", 300)])
def test_stops_when_p90_is_known(kit, model, precision, rounds):
    """As soon as agent.py's rule gives any estimate of it; exactly it is never known."""
    words = ("--warmup", "0", "--seconds", "60", "--min-rounds", "10", "--max-rounds", "300", "--precision", precision)
    taken = sum(len(e["ms"]) for e in of_kind(events(start(kit, *words, model)), "times"))
    # It looks again after every fifth more.
    assert rounds <= taken <= 1.2 * rounds + 1


def test_every_model_runs_alone_after_a_pause(kit, model):
    said = events(start(kit, *QUICK, "--sustained", "1.2", "--pause", "1", model, model))
    assert [e["index"] for e in of_kind(said, "sustained")] == [0, 1]
    for event in of_kind(said, "sustained"):
        idle, started = event["idle_ms"]
        assert started - idle >= 1000
        own = [e for e in of_kind(said, "times") if e.get("phase") == "sustained" and e["index"] == event["index"]]
        times = [at for e in own for at in e["at_ms"]]
        assert len(own) == 2 and started <= times[0] and 1000 < times[-1] - times[0] < 1200
        states = [e["phase"] for e in of_kind(said, "state") if e.get("index") == event["index"]]
        assert states == ["idle", "sustained"]
    assert [len(e["ms"]) for e in of_kind(said, "times") if "phase" not in e] == [4, 4]


def test_what_cannot_be_loaded_does_not_keep_others_from_being_measured(kit, model, tmp_path):
    whole = model.read_bytes()
    (tmp_path / "short.pte").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "changed.pte").write_bytes(whole[:64] + bytes(b ^ 255 for b in whole[64:2000]) + whole[2000:])
    done = start(kit, *QUICK, tmp_path / "short.pte", model, tmp_path / "changed.pte", tmp_path / 'no "ä"\n.pte')
    assert done.returncode == 0
    said = events(done)
    failed = {e["index"]: e["message"] for e in of_kind(said, "failed")}
    assert set(failed) == {0, 2, 3}
    assert "InvalidProgram" in failed[0] and "too small" in failed[0]
    assert "Error::Invalid" in failed[2]
    assert "AccessFailed" in failed[3] and 'no "' in failed[3]
    assert [e["index"] for e in of_kind(said, "times")] == [1]


def test_nothing_that_runs_is_exit_4(kit, tmp_path):
    (tmp_path / "empty.pte").write_bytes(b"")
    done = start(kit, tmp_path / "empty.pte")
    assert done.returncode == 4
    assert [e["event"] for e in events(done)] == ["start", "failed", "end"]


@pytest.fixture(scope="module")
def bytes_program(tmp_path_factory):
    example = torch.zeros(1, 8, 8, 3, dtype=torch.uint8)
    return write_program(tmp_path_factory.mktemp("bytes") / "bytes.pte", _Bytes(8), example)


def test_a_program_that_takes_bytes(kit, bytes_program, tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (1, 8, 8, 3), dtype=np.uint8)
    (tmp_path / "picture.bin").write_bytes(pixels.tobytes())
    expected = _Bytes(8)(torch.from_numpy(pixels))[0].detach().numpy()
    done = start(kit, *QUICK, "--input", tmp_path / "picture.bin", bytes_program)
    (output,) = of_kind(events(done), "output")
    assert np.abs(np.array(output["probabilities"]) - expected).max() < 1e-4


def test_a_program_of_any_batch_size_gets_one_picture(kit, tmp_path):
    batch = {"x": {0: torch.export.Dim("n", min=1, max=4)}}
    many = write_program(tmp_path / "many.pte", _Shape(), torch.zeros(2, 3, 4, 4), dynamic_shapes=batch)
    (output,) = of_kind(events(start(kit, *QUICK, many)), "output")
    assert len(output["probabilities"]) == 48
    assert sum(output["probabilities"]) == pytest.approx(1.0, abs=1e-5)


def test_says_why_a_program_cannot_be_measured(kit, bytes_program, tmp_path):
    two = write_program(tmp_path / "two.pte", _Shape(), torch.zeros(2, 3, 4, 4))
    flat = write_program(tmp_path / "flat.pte", _Shape(), torch.zeros(1, 12))
    (tmp_path / "picture.bin").write_bytes(bytes(4 * 4 * 3))
    done = start(kit, *QUICK, "--input", tmp_path / "picture.bin", two, flat, bytes_program)
    assert done.returncode == 4
    messages = [e["message"] for e in of_kind(events(done), "failed")]
    assert "cannot be run: Error::" in messages[0]
    assert "takes neither float32 (1, 3, H, H)" in messages[1]
    assert "takes pictures of 8 px, --input has 4 px" in messages[2]


def test_state_of_a_phone(kit, model, tmp_path):
    for number, clock in ((10, "2400000"), (2, "600000")):
        folder = ensure_dir(tmp_path / f"sys/devices/system/cpu/cpu{number}/cpufreq")
        (folder / "scaling_cur_freq").write_text(clock + "\n")
        (folder / "scaling_governor").write_text("schedutil\n")
    ensure_dir(tmp_path / "sys/devices/system/cpu/cpufreq")
    for number, (name, value) in enumerate(
        (("cpu-0", "45500"), ("cpu-0", "-1200"), ("off", "-274000"), ("odd", "no number"))
    ):
        folder = ensure_dir(tmp_path / f"sys/class/thermal/thermal_zone{number}")
        (folder / "type").write_text(name + "\n")
        (folder / "temp").write_text(value + "\n")
    ensure_dir(tmp_path / "proc")
    (tmp_path / "proc" / "loadavg").write_text("1.25 0.5 0.1 1/100 4242\n")
    state = of_kind(events(start(kit, *QUICK, model, DSPKD_RUNNER_ROOT=str(tmp_path))), "state")[-1]
    assert state["clocks_khz"] == [600000, 2400000]
    assert state["governor"] == ["schedutil"]
    assert state["temperatures_c"] == {"cpu-0": 45.5, "cpu-0 (thermal_zone1)": -1.2}
    assert state["load1"] == 1.25


def test_a_state_that_cannot_be_read_is_empty(kit, model, tmp_path):
    state = of_kind(events(start(kit, *QUICK, model, DSPKD_RUNNER_ROOT=str(tmp_path))), "state")[0]
    del state["event"]
    assert state == {
        "at_ms": 0.0,
        "phase": "before",
        "load1": None,
        "clocks_khz": [],
        "governor": [],
        "temperatures_c": {},
    }


@pytest.mark.parametrize("threads", [1, 2])
def test_sigterm_ends_it_with_what_was_measured(kit, model, threads):
    command = [*kit.command, "--seconds", "60", "--max-rounds", "100000000", "--threads", str(threads), str(model)]
    with subprocess.Popen(command, cwd=kit.files[0].parent, stdout=subprocess.PIPE, text=True) as process:
        lines = iter(process.stdout)
        while json.loads(next(lines))["event"] != "state":
            pass
        time.sleep(0.3)
        status = Path(f"/proc/{process.pid}/status").read_text()
        process.send_signal(signal.SIGTERM)
        rest = [json.loads(line) for line in lines]
        assert process.wait(timeout=20) == 0
    assert f"Threads:\t{threads}\n" in status
    assert rest[-1] == {"event": "end"}
    assert of_kind(rest, "times")[-1]["ms"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "no model is given"),
        (("--seconds", "m.pte"), "--seconds takes seconds from 0, not 'm.pte'"),
        (("--seconds", "inf", "m.pte"), "--seconds takes seconds"),
        (("--min-rounds", "1.5", "m.pte"), "--min-rounds takes a whole number"),
        (("--threads", "0", "m.pte"), "--threads takes a whole number from 1"),
        (("--precision", "-1", "m.pte"), "--precision takes a fraction from 0"),
        (("--sustained", "long", "m.pte"), "--sustained takes seconds from 0"),
        (("--max-rounds", "99999999999999999999", "m.pte"), "--max-rounds takes a whole number"),
        (("--cold", "a.pte", "b.pte"), "--cold takes one model"),
        (("m.pte", "--warmup"), "--warmup takes a value"),
        (("--colour", "red", "m.pte"), "there is no --colour"),
        (("--input", "no.bin", "m.pte"), "cannot read no.bin"),
        (("--input", runner_build.BINARY, "m.pte"), "no square picture"),
    ],
)
def test_bad_arguments_are_refused(kit, arguments, message):
    done = start(kit, *arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert message in done.stderr and "usage: dspkd_runner" in done.stderr


# The build ------------------------------------------------------------------------------------------


def test_a_kit_is_whole_and_needs_nothing_else(kit):
    folder = kit.files[0].parent
    assert sorted(p.name for p in folder.iterdir()) == sorted(p.name for p in kit.files)
    assert all(p.is_file() and not p.is_symlink() for p in kit.files)
    loader = kit.command[0]
    listed = subprocess.run(
        [loader, "--library-path", ".", "--list", "./dspkd_runner"], cwd=folder, capture_output=True, text=True
    ).stdout
    used = [line.split("=>")[1].split()[0] for line in listed.splitlines() if "=>" in line]
    assert used and all(
        Path(folder, path).resolve().parent == folder.resolve() for path in used if loader[2:] not in path
    )
    assert set(kit.executables) == {"dspkd_runner", loader[2:]}


def test_a_second_build_compiles_nothing(tmp_path, monkeypatch):
    monkeypatch.setenv("DSPKD_CACHE", str(tmp_path / "cache"))
    build_runner(tmp_path / "kit", machine=HERE)
    monkeypatch.setattr(runner_build, "_compile", lambda *_: pytest.fail("compiled again"))
    again = build_runner(tmp_path / "kit", machine=HERE)
    assert start(again).returncode == 2


def test_a_program_that_does_not_compile_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.setenv("DSPKD_CACHE", str(tmp_path / "cache"))
    (tmp_path / "broken.cpp").write_text("int main() { return nothing; }")
    monkeypatch.setattr(runner_build, "SOURCE", tmp_path / "broken.cpp")
    with pytest.raises(DeviceError, match=r"cannot be compiled: .*nothing"):
        build_runner(tmp_path / "kit", machine=HERE)
    assert not (tmp_path / "kit").exists()
    assert not list((tmp_path / "cache").iterdir())


def test_a_folder_with_something_else_is_left_alone(tmp_path):
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(OutputError, match="no earlier runner"):
        build_runner(tmp_path, machine=HERE)
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.txt"]


def other_machine():
    return next(name for name in runner_build.MACHINES if name != HERE)


def made_up_package(folder, *, version, machine):
    """The names that a wheel has, and an ELF header."""
    for name in runner_build.LIBRARIES:
        ensure_dir(folder / "executorch/lib")
        header = b"\x7fELF" + bytes(14) + runner_build.MACHINES[machine].elf.to_bytes(2, "little")
        (folder / "executorch/lib" / name).write_bytes(header)
    ensure_dir(folder / "executorch/include")
    (folder / "executorch/version.py").write_text(f'__version__ = "{version}+cpu"\n')
    return folder


def test_says_what_is_missing(tmp_path, monkeypatch):
    monkeypatch.delenv(WHEEL_VARIABLE, raising=False)
    with pytest.raises(UsageError, match="no runner for 'riscv64'"):
        build_runner(tmp_path / "kit", machine="riscv64")
    with pytest.raises(MissingDependencyError, match=f"pip download .*{other_machine()}"):
        build_runner(tmp_path / "kit", machine=other_machine())
    with pytest.raises(MissingDependencyError, match="no C\\+\\+ compiler no-such-g"):
        build_runner(tmp_path / "kit", machine=HERE, compiler="no-such-g++")
    monkeypatch.setenv(WHEEL_VARIABLE, str(tmp_path / "no.whl"))
    with pytest.raises(MissingDependencyError, match=r"no executorch wheel at .*no\.whl"):
        build_runner(tmp_path / "kit", machine=other_machine())
    assert not list(tmp_path.iterdir())


def test_refuses_a_wheel_that_does_not_fit(tmp_path):
    version = runner_build._installed_version()
    old = made_up_package(tmp_path / "old", version="0.7.0", machine=HERE)
    with pytest.raises(DeviceError, match=rf"of executorch 0\.7\.0, installed here is {version}"):
        build_runner(tmp_path / "kit", machine=HERE, wheel=old)
    wrong = made_up_package(tmp_path / "wrong", version=version, machine=other_machine())
    with pytest.raises(DeviceError, match=f"not for {HERE}"):
        build_runner(tmp_path / "kit", machine=HERE, wheel=wrong)
    with pytest.raises(DeviceError, match=r"has no include, lib/libexecutorch\.so"):
        build_runner(tmp_path / "kit", machine=HERE, wheel=ensure_dir(tmp_path / "empty"))
    (tmp_path / "damaged.whl").write_bytes(b"PK no wheel")
    with pytest.raises(DeviceError, match="cannot be unpacked"):
        build_runner(tmp_path / "kit", machine=HERE, wheel=tmp_path / "damaged.whl")
    assert not (tmp_path / "kit").exists()


def test_a_wheel_file_is_read_and_nothing_of_it_is_left(tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(ensure_dir(tmp_path / "tmp")))
    monkeypatch.setattr("tempfile.tempdir", None)
    folder = made_up_package(tmp_path / "made", version="0.7.0", machine=HERE)
    with zipfile.ZipFile(tmp_path / "made.whl", "w") as archive:
        for path in folder.rglob("*"):
            archive.write(path, path.relative_to(folder))
    with pytest.raises(DeviceError, match=r"of executorch 0\.7\.0"):
        build_runner(tmp_path / "kit", machine=HERE, wheel=tmp_path / "made.whl")
    assert not list((tmp_path / "tmp").iterdir())


@pytest.mark.parametrize(
    ("target", "message"),
    [("aarch64-unknown-linux-android21", "Android NDK"), ("riscv64-linux-gnu", "compiles for riscv64-linux-gnu")],
)
def test_refuses_a_compiler_for_something_else(tmp_path, target, message):
    compiler = tmp_path / "c++"
    compiler.write_text(f"#!/bin/sh\necho {target}\n")
    compiler.chmod(0o755)
    with pytest.raises(DeviceError, match=message):
        build_runner(tmp_path / "kit", machine=HERE, compiler=str(compiler))


@pytest.mark.skipif(
    not (
        os.environ.get(WHEEL_VARIABLE) and shutil.which("aarch64-linux-gnu-g++") and shutil.which("qemu-aarch64-static")
    ),
    reason=f"needs {WHEEL_VARIABLE} (executorch's aarch64 wheel), aarch64-linux-gnu-g++ and qemu-aarch64-static",
)
def test_compiled_for_aarch64_it_gives_the_golden_probabilities(model, golden, tmp_path):
    kit = build_runner(tmp_path / "kit", machine="aarch64")
    (tmp_path / "picture.bin").write_bytes(golden.pixels[0].tobytes())
    # A core as phones have it. qemu's default one has SME, with which an int8 model gave wrong answers (qemu 7.2,
    # executorch 1.5.1); whether the emulation or XNNPACK's kernels are at fault is not known.
    emulator = ["qemu-aarch64-static", "-cpu", "cortex-a76"]
    done = start(kit, *QUICK, "--input", tmp_path / "picture.bin", model, before=emulator)
    assert (done.returncode, done.stderr) == (0, "")
    said = events(done)
    assert said[0]["machine"] == "aarch64"
    assert np.abs(np.array(of_kind(said, "output")[0]["probabilities"]) - golden.deployed[0]).max() < 1e-4
    assert len(of_kind(said, "times")[0]["ms"]) == 4
