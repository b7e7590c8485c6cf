"""The program that measures on a device, by itself: what it starts, what it says and when, when it stops."""

import json
import os
import shutil
import signal
import subprocess

import pytest
from other_pythons import other_python
from watching import running, wait_until

from dspkd_bench import agent

COLD_START = "agent.py spec.json 0"
SPEC = {
    "models": [
        {"file": "m.onnx", "batch_file": None, "target": "onnx", "provider": "cpu", "picture": "p.bin", "size": 1}
    ],
    "rule": {},
    "sustained_s": 0.0,
    "batches": [],
    "threads": 1,
    "cores": None,
    "cold": True,
}


@pytest.fixture
def hanging(tmp_path):
    """A device's folder with a runtime that never returns; what it is called with besides it does not need."""
    folder = tmp_path / "there" / "dspkd.1"
    folder.mkdir(parents=True)
    shutil.copy(agent.__file__, folder / "agent.py")
    (folder / "spec.json").write_text(json.dumps(SPEC))
    (folder / "numpy.py").write_text("")
    (folder / "onnxruntime.py").write_text("import time\nopen('hangs', 'w').close()\ntime.sleep(4324)\n")
    return folder


@pytest.mark.parametrize("version", ["3.8", "3.12"])
@pytest.mark.parametrize(
    ("how", "with_ctypes"), [(signal.SIGTERM, True), (signal.SIGTERM, False), (signal.SIGKILL, True)]
)
def test_the_cold_start_ends_with_an_agent_that_is_killed(hanging, version, how, with_ctypes):
    """Also where a Python was built without ctypes, if the signal can be caught."""
    if not with_ctypes:
        (hanging / "ctypes.py").write_text("raise ImportError\n")
    python = other_python(version)
    with subprocess.Popen([python, "agent.py", "spec.json"], cwd=hanging, stdout=subprocess.PIPE) as process:
        wait_until((hanging / "hangs").exists, seconds=60)
        assert running(COLD_START, hanging)
        os.kill(process.pid, how)
        assert process.wait(30) == -how
        wait_until(lambda: not running(COLD_START, hanging))
