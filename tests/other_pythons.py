"""Pythons of other versions on this machine, as boards have them."""

from pathlib import Path

import pytest

__all__ = ["other_python"]


def other_python(version):
    """The path of a Python of that version; skips the test where there is none."""
    installed = sorted((Path.home() / ".pyenv" / "versions").glob(f"{version}.*/bin/python"))
    for python in (*installed, Path(f"/usr/bin/python{version}")):
        if python.exists():
            return str(python)
    pytest.skip(f"no Python {version} here")
