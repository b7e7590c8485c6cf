"""What runs on this machine, read from /proc, which needs no procps."""

import os
import time
from pathlib import Path

__all__ = ["processes", "running", "wait_until"]


def processes():
    """(pid, parent's pid, name, command line) of everything that runs here."""
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            name, _, rest = (folder / "stat").read_text().partition("(")[2].rpartition(")")
            words = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
        if rest.split()[0] != "Z":
            yield int(folder.name), int(rest.split()[1]), name, words


def running(word, within=""):
    """The processes with that word in their command line that work in a folder or below it; no shell that waits."""
    return [
        pid
        for pid, _, name, words in processes()
        if word in words and pid != os.getpid() and name not in ("sh", "dash", "bash") and _works_in(pid, within)
    ]


def _works_in(pid, folder):
    try:
        return str(Path(f"/proc/{pid}/cwd").readlink()).startswith(str(folder))
    except OSError:
        return False


def wait_until(condition, seconds=15):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.05)
