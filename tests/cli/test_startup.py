"""Help is there at once: nothing heavy is imported before a verb does its work.

The modules are compared and no time is measured, which would depend on what else the machine does.
"""

import json
import subprocess
import sys

import pytest

HEAVY = ("torch", "numpy", "timm", "torchvision", "onnx", "onnxruntime", "executorch", "PIL", "matplotlib")
PROGRAM = """
import json, sys
sys.argv = ["dspkd", *json.loads(sys.argv[1])]
from dspkd.cli import main
try:
    main()
except SystemExit as end:
    assert not end.code, end.code
print("\\nLOADED", json.dumps(sorted({name.partition(".")[0] for name in sys.modules})))
"""


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], ["distill", "--help"]], ids=" ".join)
def test_help_imports_nothing_heavy(arguments):
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, json.dumps(arguments)], capture_output=True, text=True, check=True
    )
    loaded = set(json.loads(done.stdout.rpartition("LOADED")[2]))
    assert {"dspkd", "typer"} <= loaded
    assert loaded.isdisjoint(HEAVY), loaded.intersection(HEAVY)


def test_python_m_dspkd_is_the_command():
    done = subprocess.run([sys.executable, "-m", "dspkd", "--version"], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("dspkd ")
