"""Phones behind the real adb client: which one is meant, and what each fault says.

What every device does is tested in test_devices.py.
"""

import threading

import pytest
from fake_adbd import FakePhone, adb, phone
from watching import running, wait_until

from dspkd.adb_device import AdbDevice
from dspkd.devices import open_device
from dspkd.errors import DeviceError

__all__ = ["adb", "phone"]


def fails(url, message, hint):
    with pytest.raises(DeviceError, match=message) as caught, open_device(url):
        pass
    assert caught.value.exit_code == 5
    assert hint in caught.value.hint
    return caught.value


def test_the_only_phone_needs_no_serial(phone):
    with open_device("adb:") as device:
        assert device.url == phone.url


def test_the_variable_of_android_names_the_phone(adb, monkeypatch):
    adb.attach()
    second = adb.attach()
    monkeypatch.setenv("ANDROID_SERIAL", second.serial)
    with open_device("adb:") as device:
        assert device.url == second.url
        assert len(second.left()) == 1


def test_two_phones_and_no_serial(adb):
    phones = [adb.attach(), adb.attach()]
    error = fails("adb:", "several devices are attached", "--device adb:SERIAL")
    assert all(phone.serial in str(error) for phone in phones)


def test_no_phone(adb):
    fails("adb:", "no device is attached to adb", "USB debugging")


def test_a_wrong_serial(phone):
    error = fails("adb:R58M123", "adb:R58M123 is not attached", "adb devices -l")
    assert phone.serial in str(error)


def test_unauthorized(adb):
    phone = adb.attach("unauthorized")
    fails(phone.url, f"{phone.url} is unauthorized", "unlock the phone")


def test_offline(adb):
    phone = adb.attach("silent")
    fails(phone.url, f"{phone.url} is offline", "unplug it")


def test_an_android_without_exit_codes(adb):
    fails(adb.attach("old").url, "no exit codes", "Android 7")


def test_no_adb_on_this_machine(monkeypatch):
    monkeypatch.setenv("ADB", "no-such-adb")
    fails("adb:1", "there is no no-such-adb on this machine", "apt install adb")


def test_an_adb_that_does_not_start(monkeypatch, tmp_path):
    program = tmp_path / "adb"
    program.write_text(
        "#!/bin/sh\necho '* failed to start daemon' >&2\necho 'adb: cannot connect to daemon' >&2; exit 1\n"
    )
    program.chmod(0o755)
    monkeypatch.setenv("ADB", str(program))
    fails("adb:", "adb does not run: adb: cannot connect to daemon", "adb kill-server")


def test_an_adb_that_hangs(monkeypatch, tmp_path):
    program = tmp_path / "adb"
    program.write_text("#!/bin/sh\nexec sleep 60\n")
    program.chmod(0o755)
    monkeypatch.setenv("ADB", str(program))
    monkeypatch.setattr("dspkd.adb_device.ANSWER_SECONDS", 0.2)
    monkeypatch.setattr(AdbDevice._execute, "__kwdefaults__", {"timeout": 0.2, "stdin": None, "stdout": None})
    fails("adb:", "does not answer within", "check that the device is on")


def test_no_folder_can_be_made(phone):
    phone.script("mktemp", "echo 'mktemp: /data/local/tmp: Permission denied' >&2; exit 1")
    error = fails(phone.url, "no temporary folder can be made there: mktemp: .*Permission denied", "/data/local/tmp")
    assert "dspkd-ended" not in str(error)


def test_a_full_disk(phone, tmp_path):
    (tmp_path / "model").write_bytes(bytes(1000))
    phone.free_bytes = 100
    with open_device(phone.url) as device, pytest.raises(DeviceError, match="No space left on device") as caught:
        device.push(tmp_path / "model", "model.pte")
    assert caught.value.hint == "make room on the device"
    assert phone.left() == []


def test_a_local_file_that_is_missing(phone, tmp_path):
    with open_device(phone.url) as device, pytest.raises(DeviceError, match=r"nothing\.pte cannot be copied there"):
        device.push(tmp_path / "nothing.pte", "model.pte")


@pytest.mark.parametrize("service", ["sync:", "shell"])
def test_unplugged(phone, tmp_path, service):
    """While a file goes there, and while a command runs; the phone then tidies up by itself."""
    (tmp_path / "model").write_bytes(bytes(1000))
    with pytest.raises(DeviceError) as caught, open_device(phone.url) as device:
        phone.on_service = lambda name: phone.cut() if name.startswith(service) else None
        device.push(tmp_path / "model", "model.pte")
        device.run(["sleep", "60"])
    assert "is lost" in str(caught.value) or "cannot be copied there" in str(caught.value)
    assert caught.value.exit_code == 5 and "adb devices -l" in caught.value.hint
    wait_until(lambda: phone.left() == [])


def test_unplugged_while_a_command_runs(phone, tmp_path):
    """What it has said until then is kept, and on the phone it is ended."""
    said = tmp_path / "said"

    def unplug():
        wait_until(lambda: said.stat().st_size > 0)
        phone.cut()

    with (
        said.open("wb") as stream,
        pytest.raises(DeviceError, match="is lost") as caught,
        open_device(phone.url) as device,
    ):
        threading.Thread(target=unplug).start()
        device.run(["sh", "-c", "echo before; exec sleep 4322"], stdout=stream)
    assert caught.value.hint
    assert said.read_text() == "before\n"
    wait_until(lambda: phone.left() == [])
    wait_until(lambda: not running("sleep 4322"))


def test_a_command_that_ends_with_255_is_no_lost_connection(phone):
    with open_device(phone.url) as device:
        assert device.run(["sh", "-c", "exit 255"]).returncode == 255


def test_an_odd_folder_on_the_phone(adb, tmp_path):
    odd = FakePhone(tmp_path / "it's $(touch HERE);  `id` & *")
    adb.run("connect", odd.serial)
    (tmp_path / "model").write_bytes(b"content")
    with open_device(odd.url) as device:
        device.push(tmp_path / "model", "model.pte")
        assert device.run(["cat", "model.pte"]).stdout == "content"
        device.pull("model.pte", tmp_path / "back")
        assert len(odd.left()) == 1
    assert (tmp_path / "back").read_bytes() == b"content"
    assert odd.left() == []


def test_odd_paths(phone, tmp_path):
    odd = tmp_path / "it's $(touch HERE); `id` & *"
    odd.mkdir()
    (odd / "model").write_bytes(b"content")
    with open_device(phone.url) as device:
        device.push(odd / "model", "model.pte")
        device.pull("model.pte", odd / "back")
    assert (odd / "back").read_bytes() == b"content"
    assert not (phone.work / "HERE").exists()
