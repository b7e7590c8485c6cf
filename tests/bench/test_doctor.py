"""What is said of a machine, and what the probe finds on real ones: several Pythons, and a device behind ssh."""

import json
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
from loopback_ssh import loopback
from other_pythons import other_python

from dspkd.artifact import Artifact, ArtifactCard
from dspkd.devices import open_device
from dspkd.errors import DeviceError
from dspkd.preprocess import Preprocess
from dspkd_bench import doctor_probe
from dspkd_bench.doctor import DEVICE_IMPORTS, check_machine, examine, read_probe

__all__ = ["loopback"]
PROBE = Path(doctor_probe.__file__)
PORTABLE = "executorch.extension.pybindings.portable_lib"
ORIN = "# R36 (release), REVISION: 4.3, GCID: 38968081, BOARD: generic, EABI: aarch64"


def works(version=None):
    return {"version": version, "error": None}


def board(**changed):
    """A device on which everything that the base job needs is there."""
    found = {
        "probe": 1,
        "python": "3.10.12",
        "pip": True,
        "machine": "aarch64",
        "os": "Ubuntu 22.04.5 LTS",
        "packages": {"numpy": "1.26.4", "onnxruntime": "1.23.0"},
        "imports": {"numpy": works(), "onnxruntime": {**works(), "providers": ["CPUExecutionProvider"]}},
        "tools": {},
        "nvidia_driver": None,
        "nv_tegra_release": None,
        "temporary_folder": "/tmp",
        "free_bytes": 8 << 30,
        "governor": "performance",
    }
    return {**found, **changed}


def checked(machine, artifacts=(), url="ssh://board"):
    return {check.name: check for check in check_machine(machine, url, artifacts)}


def with_runtime(name, module, version, **changed):
    machine = board(**changed)
    machine["packages"] = {**machine["packages"], name: version}
    machine["imports"] = {**machine["imports"], module: works()}
    return machine


@pytest.fixture
def program():
    """The card of an ExecuTorch program; no file is read."""
    card = ArtifactCard(
        target="executorch",
        precision="fp32",
        model_file="model.pte",
        model_files=("model.pte",),
        files={},
        classes=("MEL", "NV"),
        preprocess=Preprocess(size=96),
        input={},
        output={},
        source={},
        tools={"executorch": "1.5.1"},
        certificate={},
    )
    return Artifact(card, Path("program"))


def carded(artifact, **changed):
    return replace(artifact, card=artifact.card.model_copy(update=changed))


@pytest.mark.parametrize("version", ["3.8", "3.10", "3.12"])
def test_the_probe_runs_under_old_and_new_pythons_and_writes_nothing(version, tmp_path):
    (tmp_path / "broken.py").write_text("raise ImportError('libfoo.so.1: cannot open [it]')")
    (tmp_path / "crashing.py").write_text("import os, signal\nos.kill(os.getpid(), signal.SIGSEGV)")
    (tmp_path / "fine.py").write_text("print('a banner', end='')\n__version__ = '2.5'")
    (tmp_path / "doctor_probe.py").write_bytes(PROBE.read_bytes())
    before = sorted(tmp_path.rglob("*"))
    wanted = {
        "imports": [["crashing", "fine", "absent", "broken"]],
        "packages": ["pip", "absent"],
        "tools": ["sh", "no"],
    }
    done = subprocess.run(
        [other_python(version), "doctor_probe.py", json.dumps(wanted)], capture_output=True, cwd=tmp_path, check=True
    )
    found = read_probe(done.stdout.decode(), "here")
    assert found["python"].startswith(version + ".")
    assert found["imports"]["fine"] == {"version": "2.5", "error": None}
    assert found["imports"]["absent"] is None
    assert found["imports"]["broken"]["error"] == "ImportError: libfoo.so.1: cannot open [it]"
    assert "SIGSEGV" in found["imports"]["crashing"]["error"]
    assert found["packages"]["absent"] is None
    assert found["tools"]["sh"].endswith("/sh") and found["tools"]["no"] is None
    assert found["free_bytes"] > 0 and found["cores"] >= 1
    assert sorted(tmp_path.rglob("*")) == before


def test_an_ended_probe_takes_its_imports_along(tmp_path):
    (tmp_path / "doctor_probe.py").write_bytes(PROBE.read_bytes())
    (tmp_path / "endless.py").write_text(
        "import os, time\nopen('pid', 'w').write(str(os.getpid()) + '\\n')\ntime.sleep(60)"
    )
    wanted = json.dumps({"imports": [["endless"]]})
    probe = subprocess.Popen([sys.executable, "doctor_probe.py", wanted], cwd=tmp_path)
    pid = tmp_path / "pid"
    deadline = time.monotonic() + 20
    while not (pid.exists() and pid.read_text().endswith("\n")) and time.monotonic() < deadline:
        time.sleep(0.02)
    probe.terminate()
    assert probe.wait(10) == 128 + signal.SIGTERM
    for _ in range(100):
        state = Path(f"/proc/{int(pid.read_text())}/stat")
        if not state.exists() or state.read_text().rpartition(")")[2].split()[0] == "Z":
            return
        time.sleep(0.05)
    pytest.fail("the import goes on")


@pytest.mark.parametrize("text", ["", "Welcome!", "[1]", '{"probe": 1}', '{"probe": 99, "python": "3.8"}', "{"])
def test_what_is_not_of_the_probe_is_a_device_error(text):
    with pytest.raises(DeviceError, match="not of the probe"):
        read_probe(text, "ssh://board")


def test_a_banner_before_the_answer_does_no_harm():
    assert read_probe("Welcome!\n" + json.dumps(board()), "ssh://board")["python"] == "3.10.12"


def test_over_ssh_what_is_there_is_found_and_nothing_stays(loopback, monkeypatch):
    monkeypatch.setattr("dspkd_bench.doctor.DEVICE_IMPORTS", DEVICE_IMPORTS[:1])
    home = loopback.folder / "home"
    home.mkdir()
    there = loopback.folder / "python-there"
    there.write_text(f'#!/bin/sh\nHOME={home} exec {sys.executable} "$@"\n')
    there.chmod(0o755)
    monkeypatch.setenv("DSPKD_DEVICE_PYTHON", str(there))
    with open_device(loopback.url) as device:
        found = checked(examine(device), url=device.url)
    assert found["numpy"].state == "ok"
    assert "CPUExecutionProvider" in found["onnxruntime"].found
    # ONNX Runtime leaves a file in the temporary folder and a database in the cache, if it is let.
    assert list(loopback.work.iterdir()) == []
    assert list(home.iterdir()) == []


def test_a_device_without_python_or_with_an_old_one(loopback, monkeypatch):
    monkeypatch.setenv("DSPKD_DEVICE_PYTHON", "no-such-python")
    with open_device(loopback.url) as device, pytest.raises(DeviceError, match="has no no-such-python"):
        examine(device)
    old = loopback.folder / "old-python"
    old.write_text("#!/bin/sh\necho Linux aarch64 3.6.9\n")
    old.chmod(0o755)
    monkeypatch.setenv("DSPKD_DEVICE_PYTHON", str(old))
    with open_device(loopback.url) as device, pytest.raises(DeviceError, match=r"Python 3\.6\.9"):
        examine(device)


def test_a_device_that_has_what_it_needs_has_nothing_missing():
    found = checked(board())
    assert {check.state for check in found.values()} == {"ok", "not needed"}


def test_a_device_without_any_runtime_lacks_one_and_the_command_runs_there():
    machine = board(imports={"numpy": works()}, packages={"numpy": "1.26.4"})
    check = checked(machine)["onnxruntime"]
    assert check.state == "missing"
    assert check.fix == "ssh ssh://board 'python3 -m pip install numpy onnxruntime'"


def test_the_command_fits_the_python_that_was_examined():
    bare = {"imports": {"numpy": works()}, "packages": {"numpy": "1.26.4"}}
    check = checked(board(**bare, command="/opt/py/bin/python", refuses_pip=True))["onnxruntime"]
    expected = "/opt/py/bin/python -m pip install --user --break-system-packages numpy onnxruntime"
    assert check.fix == f"ssh ssh://board '{expected}'"


def test_tensorrt_is_asked_for_only_where_there_is_a_gpu():
    assert checked(board())["tensorrt"].fix is None
    assert "pip install tensorrt" in checked(board(nvidia_driver="570.1"))["tensorrt"].fix


def test_a_runtime_that_does_not_import_is_no_runtime():
    broken = {"version": None, "error": "ImportError: libstdc++"}
    check = checked(board(imports={"numpy": works(), "onnxruntime": broken}))["onnxruntime"]
    assert check.state == "missing"
    assert "libstdc++" in check.found and "--force-reinstall" in check.fix


def test_one_working_runtime_is_enough_unless_an_artifact_needs_another(program):
    assert checked(board())["executorch"].state == "not needed"
    assert checked(board(), [program])["executorch"].state == "missing"


@pytest.mark.parametrize(
    ("here", "state"), [("1.4.9", "warning"), ("1.5", "warning"), ("1.5.1", "ok"), ("1.10.0+cpu", "ok"), ("2.0", "ok")]
)
def test_a_program_made_by_a_newer_executorch_is_flagged(program, here, state):
    made = carded(program, tools={"executorch": "1.5.1+cpu"})
    check = checked(with_runtime("executorch", PORTABLE, here), [made])[f"{program.path} on executorch"]
    assert check.state == state
    assert here in check.found
    if state == "warning":
        assert check.fix == "ssh ssh://board 'python3 -m pip install '\"'\"'executorch==1.5.1'\"'\"''"


@pytest.mark.parametrize(
    ("here", "details", "state"),
    [
        ("10.3.0", {"oldest_tensorrt": "10", "build": {"tensorrt": "10.3.0"}}, "ok"),
        ("10.3.0", {"oldest_tensorrt": "10"}, "ok"),
        ("8.5.2.2", {"oldest_tensorrt": "8.6"}, "warning"),
        ("10.4.0", {"oldest_tensorrt": "10", "build": {"tensorrt": "10.3.0"}}, "warning"),
    ],
)
def test_a_tensorrt_engine_belongs_to_its_version(program, here, details, state):
    engine = carded(program, target="tensorrt", details=details)
    machine = with_runtime("tensorrt", "tensorrt", here, nvidia_driver="present", nv_tegra_release=ORIN)
    found = checked(machine, [engine])
    assert found[f"{program.path} on tensorrt"].state == state
    assert "JetPack 6" in found["Jetson"].found


def test_a_jetson_gets_its_tensorrt_from_jetpack(program):
    engine = carded(program, target="tensorrt")
    check = checked(board(nv_tegra_release=ORIN), [engine])["tensorrt"]
    assert (check.state, check.fix) == ("missing", "ssh -t ssh://board 'sudo apt-get install python3-libnvinfer'")


XAVIER = "# R35 (release), REVISION: 4.1, GCID: 33958178, BOARD: t186ref, EABI: aarch64"
THOR = "# R38 (release), REVISION: 2.0, GCID: 41844464, BOARD: generic, EABI: aarch64"


@pytest.mark.parametrize(
    ("release", "tensorrt", "state"),
    [
        (ORIN, "10.3.0.30", "ok"),
        (ORIN, "8.6.2.3", "ok"),
        (ORIN, "10.13.3", "warning"),
        (ORIN, "8.5.2.2", "warning"),
        (XAVIER, "8.5.2.2", "ok"),
        (XAVIER, "10.3.0", "warning"),
        (THOR, "10.13.3.9", "ok"),
        (THOR, "11.0", "ok"),
        (THOR, "10.3.0", "warning"),
        ("# R99 (release), REVISION: 1.0, GCID: 1, BOARD: generic, EABI: aarch64", "20.0", "ok"),
    ],
)
def test_a_jetpack_has_its_tensorrt(release, tensorrt, state):
    machine = with_runtime("tensorrt", "tensorrt", tensorrt, nvidia_driver="present", nv_tegra_release=release)
    check = checked(machine)["Jetson"]
    assert check.state == state
    assert (tensorrt in check.found) == (state == "warning")
    assert (check.fix is None) == (state == "ok")


def test_an_engine_needs_a_driver_here_too(program):
    engine = carded(program, target="tensorrt")
    for url in ("local", "ssh://board"):
        assert checked(board(), [engine], url=url)["NVIDIA driver"].state == "missing"
        assert "NVIDIA driver" not in checked(board(nvidia_driver="570.1"), [engine], url=url)
        assert "NVIDIA driver" not in checked(board(), [program], url=url)


@pytest.mark.parametrize(
    ("changed", "name"),
    [({"governor": "schedutil"}, "governor"), ({"free_bytes": 1 << 20}, "disk"), ({"pip": False}, "pip")],
)
def test_what_only_hinders_is_a_warning_with_a_command(changed, name):
    check = checked(board(**changed))[name]
    assert check.state == "warning"
    assert check.fix.startswith("ssh ")


def test_the_environment_of_the_tests_has_what_it_needs_itself():
    with open_device("local") as device:
        machine = examine(device)
    found = checked(machine, url="local")
    assert [name for name, check in found.items() if check.state == "missing"] == []
    assert "torchvision" in found["dspkd's packages"].found
    machine["packages"]["onnxruntime"] = None
    machine["imports"]["onnxruntime"] = None
    check = checked(machine, url="local")["dspkd[onnx]"]
    assert (check.state, check.fix) == ("missing", "pip install 'dspkd[onnx]'")
    machine["packages"]["timm"] = "0.9.0"
    check = checked(machine, url="local")["dspkd's packages"]
    assert (check.state, check.fix) == ("missing", "pip install --upgrade dspkd")
    assert "timm is 0.9.0" in check.found
    machine["imports"]["torchvision"] = {"version": None, "error": "OSError: libcudart"}
    assert "libcudart" in checked(machine, url="local")["dspkd's packages"].found
