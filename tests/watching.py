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


def running(word):
    return [pid for pid, _, _, words in processes() if word in words and pid != os.getpid()]


def wait_until(condition, seconds=15):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.05)
