"""What doctor says of a phone."""

from dataclasses import replace
from pathlib import Path

import pytest
from fake_adbd import adb, phone
from recorded_phone import android

from dspkd.artifact import Artifact, ArtifactCard
from dspkd.devices import open_device
from dspkd.errors import MissingDependencyError
from dspkd.preprocess import Preprocess
from dspkd_bench import doctor_phone
from dspkd_bench.doctor import check_machine, examine

__all__ = ["adb", "android", "phone"]
URL = "adb:R58M123"


def a_phone(**changed):
    """As `examine` finds it; `changed` goes to where it belongs."""
    said = {
        "model": "Google Pixel 7",
        "soc": "Google GS201",
        "android": "14",
        "api_level": 34,
        "abi": "arm64-v8a",
        "thermal_status": "NONE",
        "temperatures_c": {},
        "battery_percent": 80.0,
        "battery_c": 25.0,
        "battery_status": "CHARGING",
        "powered_by": "USB",
        "battery_saver": False,
    }
    machine = {
        "machine": "aarch64",
        "memory_kib": 8 << 20,
        "free_kib": 4 << 20,
        "cores": 8,
        "runner": {"executorch": "1.5.1", "error": None, "hint": None},
    }
    assert changed.keys() <= said.keys() | machine.keys()
    said.update({key: value for key, value in changed.items() if key in said})
    machine.update({key: value for key, value in changed.items() if key in machine})
    return {**machine, "phone": said}


def checked(machine, *artifacts):
    return {check.name: check for check in check_machine(machine, URL, artifacts)}


@pytest.fixture
def program():
    """The card of an ExecuTorch program; no file is read."""
    card = ArtifactCard(
        target="executorch",
        precision="int8",
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


def test_a_phone_is_asked_by_its_own_commands_and_nothing_stays(android, monkeypatch):
    monkeypatch.setattr(doctor_phone, "look_for_parts", lambda machine: "1.5.1")
    with open_device(android.url) as device:
        machine = examine(device)
        found = {check.name: check for check in check_machine(machine, device.url, [])}
    assert found["phone"].found == "Xiaomi 2210132G, QTI SM8550"
    assert found["Android"].found == "14, API level 34, arm64-v8a"
    assert "cores" in found["processor"].found and "GiB memory" in found["processor"].found
    assert "GiB free" in found["disk"].found
    assert (found["heat"].state, found["heat"].found) == ("warning", "thermal status SEVERE: let it cool down")
    assert found["battery"].found == "61 %, 35.0 °C, discharging, on battery"
    assert android.left() == []


def test_nothing_is_changed_on_the_phone(android, tmp_path):
    with open_device(android.url) as device:
        examine(device)
    assert not (tmp_path / "modes").exists()


def test_a_phone_that_has_what_it_needs_has_nothing_to_mend(program):
    found = checked(a_phone(), program)
    assert {check.state for check in found.values()} == {"ok"}
    assert found["program"].found == "runs on executorch 1.5.1"


@pytest.mark.parametrize(
    ("changed", "name", "state", "words"),
    [
        ({"machine": "armv8l"}, "processor", "missing", "runner for x86_64 and aarch64 only"),
        ({"free_kib": 1000}, "disk", "warning", "wanted"),
        ({"free_kib": None}, "disk", "warning", "not known"),
        ({"api_level": 29}, "fixed performance", "not needed", "API level 30"),
        ({"api_level": None, "android": None}, "Android", "warning", "does not say"),
        ({"thermal_status": "LIGHT"}, "heat", "warning", "LIGHT"),
        ({"thermal_status": None}, "heat", "ok", "not known"),
        ({"battery_saver": True}, "battery", "warning", "battery saver is on"),
    ],
)
def test_what_a_phone_lacks_or_what_hinders(changed, name, state, words):
    check = checked(a_phone(**changed))[name]
    assert check.state == state and words in check.found


def test_the_command_is_for_this_phone():
    fix = checked(a_phone(battery_saver=True))["battery"].fix
    assert fix == "adb -s R58M123 shell 'settings put global low_power 0'"


def test_what_the_runner_is_made_of_is_looked_for_here(android, monkeypatch):
    def nothing(machine):
        raise MissingDependencyError("there is no C++ compiler", hint="apt install g++-aarch64-linux-gnu")

    monkeypatch.setattr(doctor_phone, "look_for_parts", nothing)
    with open_device(android.url) as device:
        check = checked(examine(device))["runner"]
    expected = ("missing", "there is no C++ compiler", "apt install g++-aarch64-linux-gnu")
    assert (check.state, check.found, check.fix) == expected


def test_only_programs_of_executorch_run_on_a_phone(program):
    check = checked(a_phone(), carded(program, target="onnx"))["program"]
    assert check.state == "missing" and "a phone runs executorch programs" in check.found
    assert check.fix == "dspkd export STUDENT --target executorch --precision int8"


def test_a_program_of_a_newer_executorch_is_flagged(program):
    check = checked(a_phone(), carded(program, tools={"executorch": "1.6.0+cpu"}))["program"]
    assert (check.state, check.fix) == ("warning", "pip install executorch==1.6.0")
