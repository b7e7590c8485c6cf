"""What a phone says of itself around a measurement, and the mode that is switched back whatever happens."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from fake_adbd import adb, phone
from recorded_phone import RECORDED, android
from watching import wait_until

from dspkd.devices import LocalDevice, open_device
from dspkd_bench.phone import Phone, PhoneState, read_state, watch_phone
from dspkd_bench.sensors import phone_identity

__all__ = ["adb", "android", "phone"]
ROOT = Path(__file__).resolve().parents[2]
COOL = PhoneState("NONE", {}, 80.0, 25.0, "DISCHARGING", "battery", False)


@pytest.fixture
def modes(tmp_path):
    """What `cmd` was asked for."""
    log = tmp_path / "modes"
    return lambda: [line.split()[-1] for line in log.read_text().splitlines()] if log.exists() else []


def watched(url):
    with open_device(url) as device, watch_phone(device) as seen:
        pass
    return seen


def test_what_a_phone_is_and_how_it_was_before_and_after(android):
    said = watched(android.url).as_dict()
    assert said["name"] == "Xiaomi 2210132G" and said["soc"] == "QTI SM8550"
    assert (said["android"], said["api_level"], said["abi"]) == ("14", 34, "arm64-v8a")
    for state in (said["before"], said["after"]):
        assert state["thermal_status"] == "SEVERE"
        assert state["temperatures_c"]["skin"] == pytest.approx(45.136)
        assert (state["battery_percent"], state["battery_c"], state["powered_by"]) == (61.0, 35.0, "battery")
    assert said["facts"]["Battery"].startswith("61 %, 35.0 °C, discharging, on battery before")
    assert said["facts"]["Energy"].startswith("not measured: nothing reads")


def test_a_phone_on_a_cable_says_why_there_is_no_energy(android):
    powered = "sed 's/USB powered: false/USB powered: true/'"
    android.script("dumpsys", f"test $1 = battery && {powered} {RECORDED}/battery_xiaomi.txt")
    seen = watched(android.url)
    assert seen.before.powered_by == "USB"
    assert "powered by USB" in seen.facts()["Energy"]


def test_the_mode_is_on_while_it_measures_and_off_again(android, modes):
    with open_device(android.url) as device, watch_phone(device) as seen:
        assert seen.fixed_performance == "on"
        assert modes() == ["true"]
    assert modes() == ["true", "false"]


def test_the_mode_is_off_again_after_an_error(android, modes):
    with pytest.raises(RuntimeError), open_device(android.url) as device, watch_phone(device):
        raise RuntimeError
    assert modes() == ["true", "false"]


def test_the_mode_is_off_again_when_the_cable_is_pulled(android, modes):
    with open_device(android.url) as device, watch_phone(device) as seen:
        android.cut()
    assert seen.after is None and seen.facts()["Thermal status"] == "SEVERE before; not known after"
    wait_until(lambda: modes() == ["true", "false"])


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_the_mode_is_off_again_when_dspkd_is_ended(android, modes, number):
    code = f"""
from dspkd.devices import open_device
from dspkd_bench.phone import watch_phone
with open_device({android.url!r}) as device, watch_phone(device):
    print("on", flush=True)
    device.run(["sleep", "60"])
"""
    child = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, cwd=ROOT)
    assert child.stdout.readline() == b"on\n"
    os.kill(child.pid, number)
    child.communicate(timeout=20)
    wait_until(lambda: modes() == ["true", "false"])
    wait_until(lambda: android.left() == [])


@pytest.mark.parametrize(
    ("text", "mode"),
    [
        ("echo 'java.lang.SecurityException: uid 2000 does not have android.permission.DEVICE_POWER' >&2; exit 255",
         "not allowed"),
        ("echo 'Failed to set FIXED_PERFORMANCE mode' >&2; exit 255", "not supported"),
        ("echo 'Unknown command: set-fixed-performance-mode-enabled'; exit 255", "not supported"),
    ],
)  # fmt: skip
def test_a_phone_that_does_not_have_the_mode_or_does_not_give_it(android, text, mode):
    android.script("cmd", text)
    assert watched(android.url).facts()["Fixed-performance mode"] == mode


def test_an_old_android_is_not_asked_for_the_mode(android, modes):
    android.script("getprop", f"sed 's/sdk]: .34]/sdk]: [29]/' {RECORDED}/getprop_xiaomi.txt")
    seen = watched(android.url)
    assert (seen.identity.api_level, seen.fixed_performance, modes()) == (29, "not supported", [])


def test_what_is_no_android_says_nothing_and_stops_nothing(phone):
    phone.script("dumpsys", "echo nonsense")
    seen = watched(phone.url)
    assert seen.identity == phone_identity({})
    assert seen.before == PhoneState(None, {}, None, None, None, None, None)
    assert seen.as_dict()["facts"]["Battery"] == "not known before; not known after"


def test_values_that_were_set_by_hand_are_no_measurements(android):
    set_by_hand = "sed '1s/$/\\n  (UPDATES STOPPED -- use reset to restart)/'"
    overridden = "sed 's/IsStatusOverride: false/IsStatusOverride: true/'"
    cases = f"battery) {set_by_hand} {RECORDED}/battery_xiaomi.txt;;"
    cases += f"thermalservice) {overridden} {RECORDED}/thermal_xiaomi.txt;;"
    android.script("dumpsys", f"case $1 in {cases} esac")
    with open_device(android.url) as device:
        state = read_state(device)
    assert (state.thermal_status, state.battery_percent, state.powered_by) == (None, None, None)


def test_a_phone_that_slows_itself_down_is_doubted():
    hot = PhoneState("LIGHT", {}, 80.0, 40.0, "DISCHARGING", "battery", False)
    saving = PhoneState("NONE", {}, 14.0, 25.0, "DISCHARGING", "battery", True)
    identity = phone_identity({})
    assert Phone(identity, "on", COOL, COOL).doubts == []
    assert Phone(identity, "on", COOL, hot).doubts == [
        "the phone slowed itself down: thermal status LIGHT after the measurement"
    ]
    assert "battery saver is on before" in Phone(identity, "on", saving, None).doubts[0]


def test_what_is_not_behind_adb_is_no_phone():
    with LocalDevice() as device, watch_phone(device) as seen:
        assert seen is None
