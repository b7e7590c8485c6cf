"""A phone that answers as a Xiaomi was recorded (tests/bench/data/sensors)."""

from pathlib import Path

import pytest

__all__ = ["RECORDED", "android"]
RECORDED = Path(__file__).parent / "bench" / "data" / "sensors"


@pytest.fixture
def android(phone, tmp_path):
    """It writes what its `cmd` is asked for to tmp_path / "modes"."""
    phone.script("getprop", f"cat {RECORDED}/getprop_xiaomi.txt")
    cases = f"battery) cat {RECORDED}/battery_xiaomi.txt;; thermalservice) cat {RECORDED}/thermal_xiaomi.txt;;"
    phone.script("dumpsys", f"case $1 in {cases} esac")
    phone.script("settings", "echo 0")
    phone.script("cmd", f'echo "$@" >> {tmp_path}/modes')
    return phone
