"""Other machines as places where files go, commands run and results come back: this one, or one behind ssh or adb.

    with open_device("ssh://jetson") as device:
        device.push(Path("model.onnx"), "model.onnx")
        done = device.run([device.python, "build_engine.py", "build"], timeout=600)
        device.pull("model.engine", Path("model.engine"))

A device is one fresh folder for as long as it is open, and the folder is removed again, also after an error or Ctrl-C.
Names on the device are plain file names in that folder, and commands run in it.

ssh is the system's own OpenSSH, so hosts, users, keys, agents and jump hosts of ssh_config apply, and nothing asks for
a password. Files travel through the same connection as the commands: a device needs neither scp nor sftp. Two
variables change what is called: DSPKD_SSH_CONFIG, another ssh_config, and DSPKD_DEVICE_PYTHON, the Python of the
device if it is not `python3`. What adb needs is in `adb_device.py`.
"""

from __future__ import annotations

import os
import re
import select
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, Self
from urllib.parse import urlsplit

from dspkd.errors import DeviceError, UsageError
from dspkd.fileio import atomic_file

__all__ = ["Completed", "Device", "LocalDevice", "NoAnswerError", "ShellDevice", "SshDevice", "open_device"]

CONNECT_SECONDS = 10
COPY_SECONDS = 600
CLEANUP_SECONDS = 15
# How often it is looked whether something came.
LOOK_SECONDS = 1.0
# A socket's path may have 104 bytes, and ssh appends 17 while it makes one.
LONGEST_SOCKET = 80
NOT_FOUND = 127
CONNECTION_LOST = 255
NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")
FILE = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.+-]*")
HOST = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*|[0-9A-Fa-f:.]*:[0-9A-Fa-f:.]*")
FOLDER = re.compile(rb"^dspkd-folder (.+)\n", re.MULTILINE)
# What OpenSSH or the device says, and what helps. The first that is found applies.
FIXES = (
    ("Host key verification failed", "connect once by hand to check and accept its key: ssh {host}"),
    ("Permission denied", "no key is accepted there: load one with ssh-add, or install one with ssh-copy-id {host}"),
    ("Could not resolve hostname", "check the name, or add the host to ssh_config"),
    ("Connection refused", "check the port and that an ssh server runs there"),
    ("timed out", "check that the device is on and reachable from here"),
    ("No route to host", "check that the device is on and reachable from here"),
    ("No space left on device", "make room on the device"),
    ("Disk quota exceeded", "make room on the device"),
)


@dataclass(frozen=True, slots=True)
class Completed:
    returncode: int
    """127 if there is no such command on the device."""
    stdout: str
    stderr: str

    @property
    def last_line(self) -> str:
        """The last line of stderr, else of stdout: what a failed command usually has to say."""
        return next((said[-1] for said in (lines(self.stderr), lines(self.stdout)) if said), "it says nothing")


class Device(ABC):
    """Use it in a `with` statement. Every method raises DeviceError if the device fails, not if a command does."""

    runs_python = True
    """Whether a Python is to be expected there."""

    def __init__(self, url: str) -> None:
        self.url = url

    @property
    @abstractmethod
    def python(self) -> str:
        """The command that starts the device's Python 3."""

    @abstractmethod
    def open(self) -> None:
        """Connect and make the work folder."""

    @abstractmethod
    def close(self) -> None:
        """Remove the work folder and disconnect. Does nothing twice, and raises nothing if the device is gone."""

    @abstractmethod
    def push(self, local: Path, remote_name: str) -> None:
        """Copy a file into the work folder."""

    @abstractmethod
    def pull(self, remote_name: str, local: Path) -> None:
        """Copy a file from the work folder; `local` is there whole or not at all."""

    @abstractmethod
    def run(self, argv: Sequence[str], *, timeout: float | None = None, stdout: IO[bytes] | None = None) -> Completed:
        """Run a command in the work folder. After `timeout` seconds it is ended and DeviceError raised.

        With `stdout`, an open file, the output goes there as it comes, so that it is kept if the device fails, and
        `timeout` counts from what came last: how long the whole takes does not matter.
        """

    def run_python(
        self, argv: Sequence[str], *, timeout: float | None = None, stdout: IO[bytes] | None = None
    ) -> Completed:
        """`argv` with the device's Python; DeviceError if it has none."""
        done = self.run([self.python, *argv], timeout=timeout, stdout=stdout)
        if done.returncode == NOT_FOUND:
            raise self.no_python(done)
        return done

    def no_python(self, done: Completed) -> DeviceError:
        """What to raise when the command that starts its Python is not found."""
        return DeviceError(
            f"{self.url} has no {self.python}: {done.last_line}",
            hint="install Python 3 there, or name the command in DSPKD_DEVICE_PYTHON",
        )

    def describe(self) -> dict[str, str]:
        """`system` and `machine` as uname names them, and the version of `python`."""
        code = "import platform as p; print(p.system(), p.machine(), p.python_version())"
        done = self.run_python(["-c", code], timeout=CONNECT_SECONDS * 3)
        words = lines(done.stdout)[-1].split() if done.returncode == 0 and lines(done.stdout) else []
        if len(words) != 3:
            raise DeviceError(f"{self.url}: {self.python} does not run: {done.last_line}", hint="repair its Python")
        return dict(zip(("system", "machine", "python"), words, strict=True))

    def __enter__(self) -> Self:
        try:
            self.open()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def open_device(url: str) -> Device:
    """`local`, `ssh://[user@]host[:port]`, where host may be an alias of ssh_config, or `adb:[serial]`, where without a
    serial there must be one device only. UsageError for anything else.
    """
    if url == "local":
        return LocalDevice()
    hint = "give `local`, ssh://[user@]host[:port] or adb:SERIAL"
    if url.startswith("adb:"):
        from dspkd.adb_device import SERIAL, AdbDevice

        serial = url.removeprefix("adb:")
        if serial and SERIAL.fullmatch(serial) is None:
            raise UsageError(f"device {url!r} is malformed", hint=hint)
        return AdbDevice(serial)
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as error:
        raise UsageError(f"device {url!r} is malformed: {error}", hint=hint) from error
    # A host that begins with a hyphen would be an option of ssh.
    user, host = parts.username, (parts.hostname or "")
    if (
        parts.scheme != "ssh"
        or HOST.fullmatch(host) is None
        or (user is not None and NAME.fullmatch(user) is None)
        or parts.password is not None
        or parts.path not in ("", "/")
        or parts.query
        or parts.fragment
    ):
        raise UsageError(f"device {url!r} is malformed", hint=hint)
    # urlsplit lowers the case of a host, and an alias of ssh_config has one.
    written = re.search(re.escape(host), parts.netloc.rpartition("@")[2], re.IGNORECASE)
    return SshDevice(written.group() if written else host, user=user, port=port)


class LocalDevice(Device):
    """This machine, with the Python that runs dspkd."""

    def __init__(self) -> None:
        super().__init__("local")
        self._folder: Path | None = None

    @property
    def python(self) -> str:
        return sys.executable

    def open(self) -> None:
        try:
            self._folder = Path(tempfile.mkdtemp(prefix="dspkd-"))
        except OSError as error:
            raise DeviceError(f"local: no temporary folder: {error.strerror}", hint="set TMPDIR") from error

    def close(self) -> None:
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)
            self._folder = None

    def push(self, local: Path, remote_name: str) -> None:
        self._copy(local, self._path(remote_name), f"{local} cannot be copied into the work folder")

    def pull(self, remote_name: str, local: Path) -> None:
        with atomic_file(local) as temporary:
            self._copy(self._path(remote_name), temporary, f"local: {remote_name} cannot be copied back")

    def run(self, argv: Sequence[str], *, timeout: float | None = None, stdout: IO[bytes] | None = None) -> Completed:
        try:
            return execute(list(argv), cwd=self._work, timeout=timeout, stdout=stdout)
        except subprocess.TimeoutExpired as error:
            raise _too_long(self.url, argv, error.timeout, silent=stdout is not None) from error
        except FileNotFoundError as error:
            return Completed(NOT_FOUND, "", f"{argv[0]}: {error.strerror}")
        except OSError as error:
            return Completed(126, "", f"{argv[0]}: {error.strerror}")

    @property
    def _work(self) -> Path:
        if self._folder is None:
            raise RuntimeError("the device is not open: use it in a with statement")
        return self._folder

    def _path(self, name: str) -> Path:
        check_name(name)
        return self._work / name

    def _copy(self, source: Path, target: Path, what: str) -> None:
        try:
            shutil.copyfile(source, target)
        except OSError as error:
            raise DeviceError(f"{what}: {error.strerror}", hint=_fix(str(error), "local")) from error


class ShellDevice(Device):
    """A device behind a program that runs POSIX shell scripts there."""

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self._folder = ""
        self._keeper: subprocess.Popen[bytes] | None = None
        self._complaints: IO[bytes] | None = None

    @abstractmethod
    def _command(self, script: str) -> list[str]:
        """What runs a script there."""

    def _keeper_command(self, script: str) -> list[str]:
        """What runs the first script, which keeps the work folder."""
        return self._command(script)

    @abstractmethod
    def _shell(
        self,
        script: str,
        *,
        timeout: float | None = COPY_SECONDS,
        stdin: IO[bytes] | None = None,
        stdout: IO[bytes] | None = None,
    ) -> Completed:
        """Run a script there. DeviceError if the connection is lost, NoAnswerError if it takes longer."""

    @abstractmethod
    def _hint(self, text: str) -> str:
        """What helps if the device or its connection says `text`."""

    @property
    def _opened_folder(self) -> str:
        if not self._folder:
            raise RuntimeError("the device is not open: use it in a with statement")
        return self._folder

    def _make_folder(self, parent: str) -> None:
        """`parent` is what the shell there takes for a word in double quotes.

        The script that makes the folder also removes it, and ends what runs in it, as soon as its input ends: when
        `close` ends it, when the connection is cut, and when this process is killed.
        """
        end = 'test -f "$d/.running" && kill "$(cat "$d/.running")"; test -f "$d/.at-end" && sh "$d/.at-end"; '
        # What is being ended may still write.
        remove = end + 'rm -rf -- "$d" || { sleep 1; rm -rf -- "$d"; }'
        script = (
            f"trap '' HUP PIPE; umask 077; d=$(mktemp -d \"{parent}/dspkd.XXXXXXXX\") || exit 1; "
            f'echo "dspkd-folder $d"; while read -r line; do :; done; {remove}'
        )
        # Not into a pipe that nobody empties.
        self._complaints = tempfile.TemporaryFile()  # noqa: SIM115
        self._keeper = subprocess.Popen(
            self._keeper_command(script),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._complaints,
            # Ctrl-C is for us, who then clean up in order.
            start_new_session=True,
        )
        said = _read_until(self._keeper, FOLDER, 3 * CONNECT_SECONDS)
        # A login script may have printed something before.
        found = FOLDER.search(said)
        if found is None:
            code = self._end_keeper()
            raise self._no_folder(Completed(code, said.decode(errors="replace"), self._complained()))
        self._folder = os.fsdecode(found[1])

    def _no_folder(self, done: Completed) -> DeviceError:
        return self._error("no temporary folder can be made there", done)

    def _remove_folder(self) -> None:
        """And end what runs in it. Nothing is raised if the device is gone."""
        self._folder = ""
        if self._keeper is not None:
            self._end_keeper()
            self._keeper = None
        if self._complaints is not None:
            self._complaints.close()
            self._complaints = None

    def _end_keeper(self) -> int:
        assert self._keeper is not None
        try:
            self._keeper.communicate(timeout=CLEANUP_SECONDS)
        except subprocess.TimeoutExpired:
            self._keeper.kill()
            self._keeper.communicate()
        return self._keeper.returncode

    def _complained(self) -> str:
        """What the connection that keeps the folder has said on stderr."""
        assert self._complaints is not None
        self._complaints.seek(0)
        return self._complaints.read().decode(errors="replace")

    def run(self, argv: Sequence[str], *, timeout: float | None = None, stdout: IO[bytes] | None = None) -> Completed:
        # Neither ssh nor adb ends a command that nobody waits for any more, so its number is kept while it runs.
        script = f"{shlex.join(argv)} & echo $! > .running; wait $!; code=$?; rm -f .running; exit $code"
        try:
            return self._in_folder(script, timeout=timeout, stdout=stdout)
        except NoAnswerError as error:
            self._stop()
            raise _too_long(self.url, argv, error.seconds, silent=stdout is not None) from error

    def at_end(self, argv: Sequence[str]) -> None:
        """Have the device run a command when it is closed, and by itself when the connection is cut."""
        done = self._in_folder(f"printf '%s\\n' {shlex.quote(shlex.join(argv))} >> .at-end")
        if done.returncode != 0:
            raise self._error("nothing can be written there", done)

    def _stop(self) -> None:
        self._shell(f"cd {shlex.quote(self._folder)} && kill $(cat .running)", timeout=CLEANUP_SECONDS)

    def _in_folder(
        self,
        script: str,
        *,
        timeout: float | None = COPY_SECONDS,
        stdin: IO[bytes] | None = None,
        stdout: IO[bytes] | None = None,
    ) -> Completed:
        script = f"cd {shlex.quote(self._opened_folder)} && {{ {script}; }}"
        return self._shell(script, timeout=timeout, stdin=stdin, stdout=stdout)

    def _error(self, what: str, done: Completed) -> DeviceError:
        return DeviceError(f"{self.url}: {what}: {done.last_line}", hint=self._hint(done.stderr))


class SshDevice(ShellDevice):
    """A machine behind OpenSSH: one connection, which everything shares."""

    def __init__(self, host: str, *, user: str | None = None, port: int | None = None) -> None:
        at = f"{user}@" if user else ""
        address = f"[{host}]" if ":" in host else host
        super().__init__(f"ssh://{at}{address}" + (f":{port}" if port else ""))
        self._destination, self._port = f"{at}{host}", port
        self._private: Path | None = None

    @property
    def python(self) -> str:
        return os.environ.get("DSPKD_DEVICE_PYTHON", "python3")

    def open(self) -> None:
        if shutil.which("ssh") is None:
            raise DeviceError(f"{self.url}: there is no ssh on this machine", hint="install the OpenSSH client")
        self._private = Path(tempfile.mkdtemp(prefix="dspkd-"))
        if len(os.fsencode(self._private)) > LONGEST_SOCKET:
            self._private.rmdir()
            self._private = Path(tempfile.mkdtemp(prefix="dspkd-", dir="/tmp"))
        self._make_folder("${TMPDIR:-/tmp}")

    def _no_folder(self, done: Completed) -> DeviceError:
        if done.returncode not in (CONNECTION_LOST, -signal.SIGKILL):
            return super()._no_folder(done)
        reason = "\n".join(lines(done.stderr)[-1:]) or ("timed out" if done.returncode < 0 else "it says nothing")
        return DeviceError(f"{self.url} cannot be reached: {reason}", hint=self._hint(reason))

    @property
    def _socket(self) -> Path:
        assert self._private is not None
        return self._private / "s"

    def _ssh(self, *options: str) -> list[str]:
        config = os.environ.get("DSPKD_SSH_CONFIG")
        fixed = (
            "BatchMode=yes",
            f"ConnectTimeout={CONNECT_SECONDS}",
            "ServerAliveInterval=10",
            "ServerAliveCountMax=3",
            "ClearAllForwardings=yes",
            "RemoteCommand=none",
            f"ControlPath={self._socket}",
            *([f"Port={self._port}"] if self._port else []),
            *options,
        )
        switches = (word for option in fixed for word in ("-o", option))
        return ["ssh", *(["-F", config] if config else []), "-T", *switches]

    def close(self) -> None:
        self._remove_folder()
        if self._private is not None:
            shutil.rmtree(self._private, ignore_errors=True)
            self._private = None

    def push(self, local: Path, remote_name: str) -> None:
        check_name(remote_name)
        part = shlex.quote(f".{remote_name}.part")
        try:
            with local.open("rb") as source:
                done = self._in_folder(f"cat > {part} && mv -- {part} {remote_name}", stdin=source)
        except OSError as error:
            raise DeviceError(f"{local} cannot be read: {error.strerror}", hint="check the file") from error
        if done.returncode != 0:
            raise self._error(f"{local.name} cannot be copied there", done)

    def pull(self, remote_name: str, local: Path) -> None:
        check_name(remote_name)
        with atomic_file(local) as temporary, temporary.open("wb") as target:
            done = self._in_folder(f"cat -- {remote_name}", stdout=target)
            if done.returncode != 0:
                raise self._error(f"{remote_name} cannot be copied from there", done)

    def _keeper_command(self, script: str) -> list[str]:
        return self._session(script, "ControlMaster=yes")

    def _command(self, script: str) -> list[str]:
        # Through the keeper's connection or not at all: a new one would find the folder gone.
        return self._session(script, "ControlMaster=no", "ProxyCommand=false")

    def _session(self, script: str, *options: str) -> list[str]:
        # `exec sh`, whatever the user's login shell is.
        return [*self._ssh(*options), "--", self._destination, f"exec sh -c {shlex.quote(script)}"]

    def _shell(
        self,
        script: str,
        *,
        timeout: float | None = COPY_SECONDS,
        stdin: IO[bytes] | None = None,
        stdout: IO[bytes] | None = None,
    ) -> Completed:
        try:
            done = execute(self._command(script), timeout=timeout, stdin=stdin, stdout=stdout)
        except subprocess.TimeoutExpired as error:
            raise NoAnswerError(self.url, error.timeout) from error
        if done.returncode == CONNECTION_LOST:
            reason = "\n".join(lines(self._complained())[-1:]) or done.last_line
            raise DeviceError(f"the connection to {self.url} is lost: {reason}", hint=self._hint(reason))
        return done

    def _hint(self, text: str) -> str:
        port = f"-p {self._port} " if self._port else ""
        return _fix(text, f"{port}{self._destination}")


def _read_until(process: subprocess.Popen[bytes], pattern: re.Pattern[bytes], seconds: float) -> bytes:
    """What it prints up to `pattern`, its end, or the time limit."""
    assert process.stdout is not None
    said, deadline = b"", time.monotonic() + seconds
    while pattern.search(said) is None:
        ready, _, _ = select.select([process.stdout], [], [], max(0.0, deadline - time.monotonic()))
        part = os.read(process.stdout.fileno(), 1 << 16) if ready else b""
        if not part:
            break
        said += part
    return said


class NoAnswerError(DeviceError):
    def __init__(self, url: str, seconds: float) -> None:
        super().__init__(f"{url} does not answer within {seconds:.0f} s", hint="check that the device is on")
        self.seconds = seconds


def execute(
    command: list[str],
    *,
    timeout: float | None,
    cwd: Path | None = None,
    stdin: IO[bytes] | None = None,
    stdout: IO[bytes] | None = None,
) -> Completed:
    """TimeoutExpired after `timeout` seconds; with `stdout`, after so many in which nothing more came."""
    with subprocess.Popen(
        command,
        stdin=stdin or subprocess.DEVNULL,
        stdout=stdout or subprocess.PIPE,
        stderr=subprocess.PIPE,
        cwd=cwd,
    ) as process:
        try:
            streams = _wait_for(process, timeout, stdout)
        except BaseException:
            process.kill()
            raise
    said, complained = (stream.decode(errors="replace") if stream else "" for stream in streams)
    return Completed(process.returncode, said, complained)


def _wait_for(
    process: subprocess.Popen[bytes], timeout: float | None, stdout: IO[bytes] | None
) -> tuple[bytes | None, bytes | None]:
    if timeout is None or stdout is None:
        return process.communicate(timeout=timeout)
    size, came = -1, time.monotonic()
    while True:
        now, size_now = time.monotonic(), os.fstat(stdout.fileno()).st_size
        if size_now != size:
            size, came = size_now, now
        left = came + timeout - now
        if left <= 0:
            raise subprocess.TimeoutExpired(process.args, timeout)
        with suppress(subprocess.TimeoutExpired):
            return process.communicate(timeout=min(left, LOOK_SECONDS))


def check_name(name: str) -> None:
    if FILE.fullmatch(name) is None:
        raise ValueError(f"{name!r} is no plain file name")


def _too_long(url: str, argv: Sequence[str], seconds: float, *, silent: bool) -> DeviceError:
    command = shlex.join(argv[:3]) + (" ..." if len(argv) > 3 else "")
    if silent:
        what = f"{url}: `{command}` said nothing for {seconds:.0f} s and was ended"
        return DeviceError(what, hint="it hangs, or a single step takes that long: give it less to do at once")
    return DeviceError(f"{url}: `{command}` did not end within {seconds:.0f} s", hint="give it more time")


def _fix(text: str, host: str) -> str:
    return next((fix.format(host=host) for said, fix in FIXES if said in text), "try the same with plain ssh")


def lines(text: str) -> list[str]:
    return [line.strip() for line in text.splitlines() if line.strip()]
