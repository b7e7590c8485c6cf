"""A phone behind adb as a device, `adb:SERIAL`: the installed adb client does the talking, as ssh does for boards.

Files and commands live in a folder under /data/local/tmp, where Android lets the shell's user execute; where there is
no such folder (adbd on other systems) under TMPDIR. Which adb is called: $ADB, else `adb` on the PATH; $ANDROID_SERIAL
names the device if `adb:` does not.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import time
from dataclasses import replace
from pathlib import Path
from typing import IO

from dspkd.devices import COPY_SECONDS, Completed, NoAnswerError, ShellDevice, check_name, execute, lines
from dspkd.errors import DeviceError
from dspkd.fileio import atomic_file

__all__ = ["SERIAL", "AdbDevice"]

# No leading hyphen: that would be an option of adb.
SERIAL = re.compile(r"[A-Za-z0-9\[_][A-Za-z0-9._:%\[\]-]*")
# Starting adb's server, and a device that is asked for its state.
ANSWER_SECONDS = 30
# States that adb leaves by itself, soon.
UNSETTLED = {"authorizing", "connecting"}
SETTLE_SECONDS = 5
# adb's own exit code says nothing sure about how a command ended, so the script's last word does.
ENDED = re.compile(r"\n?^dspkd-ended (\d+)\n?\Z", re.MULTILINE)
PARENT = '$(test -d /data/local/tmp && echo /data/local/tmp || printf %s "${TMPDIR:-/tmp}")'
# What adb or the device says, and what helps. The first that is found applies.
FIXES = (
    ("authoriz", "unlock the phone and accept this computer's key in the dialog it shows"),
    ("no permissions", "let your user open USB devices: on Debian apt install android-sdk-platform-tools-common"),
    ("offline", "unplug it and plug it in again, or run: adb reconnect"),
    ("No space left on device", "make room on the device"),
    ("Permission denied", "another program owns that folder or forbids it: free /data/local/tmp on the device"),
    ("not found", "check cable and serial: adb devices -l"),
    ("no devices", "plug it in and switch on USB debugging in its developer options: adb devices -l"),
    ("cannot connect to daemon", "restart adb's server: adb kill-server"),
    ("failed to start daemon", "restart adb's server: adb kill-server"),
    ("closed", "plug it in again and look whether it is listed: adb devices -l"),
    ("no longer answers", "plug it in again and look whether it is listed: adb devices -l"),
)


class AdbDevice(ShellDevice):
    """`serial` as `adb devices` lists it; "" for $ANDROID_SERIAL, else the only device there is."""

    runs_python = False

    def __init__(self, serial: str = "") -> None:
        super().__init__(f"adb:{serial}")
        self._serial = serial
        self._adb = os.environ.get("ADB", "adb")

    @property
    def python(self) -> str:
        return os.environ.get("DSPKD_DEVICE_PYTHON", "python3")

    def no_python(self, done: Completed) -> DeviceError:
        return DeviceError(
            f"{self.url} has no {self.python}, as is usual for a phone: {done.last_line}",
            hint="a phone runs ExecuTorch programs: dspkd export --target executorch",
        )

    def describe(self) -> dict[str, str]:
        """`system` and `machine` as uname names them; no `python`."""
        done = self.run(["uname", "-sm"], timeout=ANSWER_SECONDS)
        words = done.stdout.split()
        if done.returncode != 0 or len(words) != 2:
            raise self._error("uname does not run there", done)
        return dict(zip(("system", "machine"), words, strict=True))

    def open(self) -> None:
        if shutil.which(self._adb) is None:
            raise DeviceError(
                f"{self.url}: there is no {self._adb} on this machine",
                hint="install Android's platform tools, on Debian apt install adb, or name the program in ADB",
            )
        self._serial = self._choose()
        self.url = f"adb:{self._serial}"
        done = self._call("shell", "echo dspkd >&2")
        if done.returncode == 0 and "dspkd" in done.stdout:
            raise DeviceError(
                f"{self.url}: its adb gives no exit codes and mixes stderr into stdout",
                hint="a device with Android 7 or later is needed",
            )
        self._make_folder(PARENT)

    def close(self) -> None:
        self._remove_folder()

    def push(self, local: Path, remote_name: str) -> None:
        check_name(remote_name)
        self._copy(["push", str(local.absolute()), self._there(remote_name)], f"{local} cannot be copied there")

    def pull(self, remote_name: str, local: Path) -> None:
        check_name(remote_name)
        with atomic_file(local) as temporary:
            self._copy(["pull", self._there(remote_name), str(temporary)], f"{remote_name} cannot be copied from there")

    def _copy(self, words: list[str], what: str) -> None:
        done = self._call(*words, timeout=COPY_SECONDS)
        if done.returncode != 0:
            # The last line is of how fast it was.
            raise DeviceError(f"{self.url}: {what}: {_said(done)}", hint=self._hint(_said(done)))

    def _there(self, name: str) -> str:
        return f"{self._opened_folder}/{name}"

    def _command(self, script: str) -> list[str]:
        ending = r"printf '\ndspkd-ended %s\n' $? >&2"
        return [self._adb, "-s", self._serial, "shell", f"({script}\n); {ending}"]

    def _shell(
        self,
        script: str,
        *,
        timeout: float | None = COPY_SECONDS,
        stdin: IO[bytes] | None = None,
        stdout: IO[bytes] | None = None,
    ) -> Completed:
        done = self._execute(self._command(script), timeout=timeout, stdin=stdin, stdout=stdout)
        ended = ENDED.search(done.stderr)
        if ended is None:
            raise DeviceError(f"the connection to {self.url} is lost: {_said(done)}", hint=self._hint(_said(done)))
        return Completed(int(ended[1]), done.stdout, done.stderr[: ended.start()])

    def _choose(self) -> str:
        """The serial of the device that is meant, once it is ready."""
        wanted = self._serial or os.environ.get("ANDROID_SERIAL", "")
        deadline = time.monotonic() + SETTLE_SECONDS
        attached = self._attached()
        while time.monotonic() < deadline and not UNSETTLED.isdisjoint(attached.values()):
            time.sleep(0.2)
            attached = self._attached()
        listed = ", ".join(attached) or "none"
        if not wanted and len(attached) > 1:
            raise DeviceError(f"several devices are attached: {listed}", hint="say which: --device adb:SERIAL")
        serial = wanted or next(iter(attached), "")
        if serial not in attached:
            what = f"adb:{wanted} is not attached; attached: {listed}" if wanted else "no device is attached to adb"
            raise DeviceError(what, hint=self._hint("not found" if attached else "no devices"))
        if attached[serial] != "device":
            raise DeviceError(f"adb:{serial} is {attached[serial]}", hint=self._hint(attached[serial]))
        return serial

    def _attached(self) -> dict[str, str]:
        """{serial: state}"""
        done = self._execute([self._adb, "devices"])
        if done.returncode != 0:
            raise DeviceError(f"{self.url}: adb does not run: {_said(done)}", hint=self._hint(_said(done)))
        return dict(line.split(None, 1) for line in lines(done.stdout)[1:] if len(line.split(None, 1)) == 2)

    def _call(self, *words: str, timeout: float | None = ANSWER_SECONDS) -> Completed:
        return self._execute([self._adb, "-s", self._serial, *words], timeout=timeout)

    def _execute(
        self,
        command: list[str],
        *,
        timeout: float | None = ANSWER_SECONDS,
        stdin: IO[bytes] | None = None,
        stdout: IO[bytes] | None = None,
    ) -> Completed:
        try:
            return execute(command, timeout=timeout, stdin=stdin, stdout=stdout)
        except subprocess.TimeoutExpired as error:
            raise NoAnswerError(self.url, error.timeout) from error

    def _error(self, what: str, done: Completed) -> DeviceError:
        return super()._error(what, replace(done, stderr=ENDED.sub("", done.stderr)))

    def _hint(self, text: str) -> str:
        return next((fix for said, fix in FIXES if said in text), "see what adb itself says: adb devices -l")


def _said(done: Completed) -> str:
    # adb speaks among what the command says, of files that are copied on stdout.
    own = [line for line in lines(f"{done.stderr}\n{done.stdout}") if line.startswith(("adb: ", "error: ", "* "))]
    return own[-1] if own else "the device no longer answers"
