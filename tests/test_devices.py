"""Devices: what goes there comes back, what fails says why, and nothing stays behind."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from fake_adbd import adb, phone
from loopback_ssh import free_port, loopback, serve
from watching import running, wait_until

from dspkd.devices import LocalDevice, SshDevice, open_device
from dspkd.errors import DeviceError, UsageError

__all__ = ["adb", "loopback", "phone"]
ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(params=["local", "ssh", "adb"])
def place(request, tmp_path, monkeypatch):
    """(url, the folder that work folders are made in)."""
    if request.param == "ssh":
        server = request.getfixturevalue("loopback")
        return server.url, server.work
    if request.param == "adb":
        phone = request.getfixturevalue("phone")
        return phone.url, phone.work
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(work))
    return "local", work


def gone(pid):
    """Whether a process has ended, given a moment."""
    for _ in range(100):
        try:
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
                return True
        except OSError:
            return True
        time.sleep(0.05)
    return False


def test_what_goes_there_comes_back(place, tmp_path):
    url, work = place
    content = os.urandom(300_001)
    (tmp_path / "there").write_bytes(content)
    with open_device(url) as device:
        device.push(tmp_path / "there", "model.onnx")
        listed = device.run(["ls", "-A"]).stdout.split()
        assert "model.onnx" in listed
        assert not any(name.endswith(".part") for name in listed)
        device.pull("model.onnx", tmp_path / "back")
        assert len(list(work.glob("dspkd*"))) >= 1
    assert (tmp_path / "back").read_bytes() == content
    assert list(work.iterdir()) == []


def test_a_command_gives_its_code_and_both_streams(place):
    with open_device(place[0]) as device:
        done = device.run(["sh", "-c", "echo out; echo err >&2; exit 3"])
        assert (done.returncode, done.stdout, done.stderr) == (3, "out\n", "err\n")
        assert done.last_line == "err"
        assert device.run(["no-such-command"]).returncode == 127


def test_arguments_arrive_unchanged(place):
    arguments = ["two words", "$HOME `id` $(id)", "it's", 'say "hello"', "a\nb", "", "*", "~", "ü", "-n", "a;b&c|d"]
    with open_device(place[0]) as device:
        done = device.run([device.python, "-c", "import sys; print(ascii(sys.argv[1:]))", *arguments])
    assert done.stdout.strip() == ascii(arguments)


def test_a_device_says_what_it_is(place):
    with open_device(place[0]) as device:
        described = device.describe()
    # Nobody expects a Python on a phone.
    assert described.pop("python", "3.").startswith("3.")
    assert described == {"system": os.uname().sysname, "machine": os.uname().machine}


def test_the_folder_is_removed_after_an_error(place):
    url, work = place
    with pytest.raises(RuntimeError, match="midway"), open_device(url) as device:
        assert device.run(["touch", "file"]).returncode == 0
        raise RuntimeError("midway")
    assert list(work.iterdir()) == []


def test_a_command_that_takes_too_long_is_ended(place):
    with open_device(place[0]) as device:
        with pytest.raises(DeviceError, match="did not end within 1 s") as caught:
            device.run(["sh", "-c", "echo $$ > pid; exec sleep 60"], timeout=1)
        assert "sleep 60" in str(caught.value)
        pid = device.run(["cat", "pid"]).stdout.strip()
        assert gone(int(pid))


def test_a_command_that_says_something_is_not_ended(tmp_path):
    """With a file for what it says, the time counts from the last that came."""
    said = tmp_path / "said"
    with LocalDevice() as device, said.open("wb") as stream:
        done = device.run(["sh", "-c", "for i in 1 2 3 4 5 6; do echo $i; sleep 0.5; done"], timeout=2, stdout=stream)
        assert done.returncode == 0 and said.read_text().split() == list("123456")
        with pytest.raises(DeviceError, match=r"sh -c .* said nothing for 1 s"):
            device.run(["sh", "-c", "echo 7; exec sleep 4325"], timeout=1, stdout=stream)
    assert said.read_text().split()[-1] == "7" and not running("sleep 4325")


def test_an_interrupt_leaves_nothing_there(place, tmp_path):
    url, work = place
    code = f"""
import tempfile
tempfile.tempdir = {str(work if url == "local" else tmp_path)!r}
from dspkd.devices import open_device
with open_device({url!r}) as device:
    print("open", flush=True)
    device.run(["sh", "-c", "echo $$ > {tmp_path}/pid; exec sleep 60"])
"""
    child = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=ROOT)
    assert child.stdout.readline() == b"open\n"
    for _ in range(100):
        if (tmp_path / "pid").exists() and (tmp_path / "pid").read_text().strip():
            break
        time.sleep(0.05)
    child.send_signal(signal.SIGINT)
    _, errors = child.communicate(timeout=20)
    assert b"KeyboardInterrupt" in errors
    assert gone(int((tmp_path / "pid").read_text()))
    assert list(work.iterdir()) == []


def test_a_file_that_cannot_be_fetched_leaves_the_old_one(place, tmp_path):
    (tmp_path / "old").write_text("old")
    with open_device(place[0]) as device, pytest.raises(DeviceError, match=r"missing\.json .*(No such file|not exist)"):
        device.pull("missing.json", tmp_path / "old")
    assert (tmp_path / "old").read_text() == "old"
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith(".")] == []


@pytest.mark.parametrize("name", ["../up", "/etc/passwd", "a b", "-rf", "", ".hidden", "$(id)"])
def test_names_on_a_device_are_plain(name, tmp_path):
    (tmp_path / "file").touch()
    with LocalDevice() as device, pytest.raises(ValueError, match="no plain file name"):
        device.push(tmp_path / "file", name)


def test_a_closed_device_does_nothing(place):
    device = open_device(place[0])
    with pytest.raises(RuntimeError, match="not open"):
        device.run(["true"])
    with device:
        pass
    device.close()


@pytest.mark.parametrize(
    ("url", "destination", "port"),
    [
        ("ssh://Board", "Board", None),
        ("ssh://me@Board.local:2222", "me@Board.local", 2222),
        ("ssh://Board@Board", "Board@Board", None),
        ("ssh://[::1]:22", "::1", 22),
        ("ssh://10.0.0.7/", "10.0.0.7", None),
    ],
)
def test_urls(url, destination, port):
    device = open_device(url)
    assert isinstance(device, SshDevice)
    assert (device._destination, device._port) == (destination, port)
    assert device.url == url.rstrip("/")


@pytest.mark.parametrize(
    "url",
    [
        "", "jetson", "ssh://", "ssh://host:port", "ssh://host:99999", "ssh://-oProxyCommand=id", "ssh://a b",
        "ssh://me:secret@host", "ssh://host/path", "http://host", "ssh://-l@host", "ssh://host?x=1",
        "adb:-s", "adb:a b", "adb:$(id)", "adb:x;id",
    ],
)  # fmt: skip
def test_malformed_urls_are_a_usage_error(url):
    with pytest.raises(UsageError) as caught:
        open_device(url)
    assert "ssh://[user@]host[:port]" in str(caught.value)
    assert caught.value.exit_code == 2


def test_nobody_listening(loopback):
    port = free_port()
    with pytest.raises(DeviceError, match="Connection refused") as caught, open_device(f"ssh://127.0.0.1:{port}"):
        pass
    assert f"ssh://127.0.0.1:{port} cannot be reached" in str(caught.value)
    assert "check the port" in caught.value.hint


def test_a_key_that_is_not_accepted(loopback):
    (loopback.folder / "authorized_keys").write_text((loopback.folder / "other.pub").read_text())
    with pytest.raises(DeviceError, match="Permission denied") as caught, open_device(loopback.url):
        pass
    assert "ssh-copy-id Board" in caught.value.hint


def test_a_host_that_is_not_known(loopback):
    (loopback.folder / "known_hosts").write_text("")
    with pytest.raises(DeviceError, match="Host key verification failed") as caught, open_device(loopback.url):
        pass
    assert "ssh Board" in caught.value.hint


def test_a_name_that_nobody_knows(loopback):
    with pytest.raises(DeviceError) as caught, open_device("ssh://no-such-host.invalid"):
        pass
    assert "check the name" in caught.value.hint


def test_a_connection_that_is_cut(loopback):
    # The grandparent of the command is the server's process for this connection.
    cut = "kill -9 $(cut -d' ' -f4 /proc/$PPID/stat); sleep 5"
    with pytest.raises(DeviceError, match="the connection to ssh://Board is lost") as caught:  # noqa: SIM117
        with open_device(loopback.url) as device:
            device.run(["sh", "-c", cut])
    assert caught.value.hint
    # By the shell that keeps the folder.
    wait_until(lambda: list(loopback.work.iterdir()) == [])


def test_a_device_without_python(loopback, monkeypatch):
    monkeypatch.setenv("DSPKD_DEVICE_PYTHON", "python3-of-another-place")
    with open_device(loopback.url) as device, pytest.raises(DeviceError, match="has no python3-of-another-place"):
        device.describe()


def test_a_machine_without_ssh(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(DeviceError, match="there is no ssh on this machine"), open_device("ssh://board"):
        pass


def test_a_device_that_is_full(tmp_path_factory, tmp_path, monkeypatch):
    # Every file that this cat writes goes to a device that is always full.
    cat = tmp_path / "cat"
    cat.write_text("#!/bin/sh\nexec /bin/cat > /dev/full\n")
    cat.chmod(0o755)
    with serve(tmp_path_factory.mktemp("full"), PATH=f"{tmp_path}:{os.environ['PATH']}") as server:
        monkeypatch.setenv("DSPKD_SSH_CONFIG", str(server.ssh_config))
        with open_device(server.url) as device:
            with pytest.raises(DeviceError, match="No space left on device") as caught:
                device.push(Path(__file__), "model.onnx")
            assert "model.onnx" not in device.run(["ls"]).stdout
    assert "make room" in caught.value.hint


def test_an_odd_folder_on_the_device(tmp_path_factory, tmp_path, monkeypatch):
    odd = tmp_path / "it's $(touch HERE);  `id` & *"
    odd.mkdir()
    (tmp_path / "model").write_bytes(b"content")
    with serve(tmp_path_factory.mktemp("odd"), TMPDIR=odd) as server:
        monkeypatch.setenv("DSPKD_SSH_CONFIG", str(server.ssh_config))
        with open_device(server.url) as device:
            device.push(tmp_path / "model", "model.pte")
            assert device.run(["cat", "model.pte"]).stdout == "content"
            assert len(list(odd.iterdir())) == 1
        assert list(odd.iterdir()) == []


def test_a_login_script_that_talks_is_no_trouble(tmp_path_factory, monkeypatch):
    home = tmp_path_factory.mktemp("home")
    (home / "environment.sh").write_text("echo welcome\n")
    with serve(tmp_path_factory.mktemp("talks"), BASH_ENV=home / "environment.sh") as server:
        monkeypatch.setenv("DSPKD_SSH_CONFIG", str(server.ssh_config))
        with open_device(server.url) as device:
            assert device.run(["echo", "hello"]).stdout.splitlines()[-1] == "hello"


def test_devices_need_neither_torch_nor_numpy():
    code = "import sys, dspkd.devices; print([m for m in ('torch', 'numpy') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.strip() == "[]"
