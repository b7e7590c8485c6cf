import sys

import pytest
from lively import lively_artifacts, lively_export_json, lively_images, lively_student

from dspkd.cli import main

__all__ = ["lively_artifacts", "lively_export_json", "lively_images", "lively_student"]


@pytest.fixture
def dspkd(monkeypatch, capfd):
    """Call the command line in this process: `dspkd("eval", folder, ...)` -> (exit code, stdout, stderr).

    A process of its own spends four seconds on imports. File descriptors are captured, not sys.stdout, so that what a
    C++ runtime prints would be seen too.
    """

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["dspkd", *map(str, arguments)])
        capfd.readouterr()
        try:
            main()
            code = 0
        except SystemExit as end:
            code = end.code or 0
        out, err = capfd.readouterr()
        return code, out, err

    return call
