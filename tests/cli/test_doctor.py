"""`dspkd doctor` as scripts and people see it."""

import json
import subprocess
import sys

import pytest

from dspkd_bench import doctor as checks
from dspkd_bench.doctor import Check


@pytest.fixture
def quick(monkeypatch):
    """Without the seconds that torch takes to load."""
    monkeypatch.setattr(checks, "LOCAL_IMPORTS", (("onnxruntime",),))


@pytest.fixture
def lacking(monkeypatch, quick):
    """This machine as if onnxruntime were not installed."""
    read = checks.read_probe

    def without(text, url):
        machine = read(text, url)
        machine["packages"]["onnxruntime"] = machine["imports"]["onnxruntime"] = None
        return machine

    monkeypatch.setattr(checks, "read_probe", without)


def test_json_is_all_that_is_printed(dspkd, quick):
    code, out, err = dspkd("doctor", "--json")
    value = json.loads(out)
    assert (code, err) == (0, "")
    assert set(value) == {"schema_version", "device", "ok", "checks", "machine"}
    assert (value["device"], value["ok"]) == ("local", True)
    assert {"Python", "dspkd[onnx]", "ssh", "disk", "governor"} <= {check["name"] for check in value["checks"]}
    for check in value["checks"]:
        assert set(check) == {"name", "state", "found", "fix"}
        assert check["state"] in ("ok", "missing", "warning", "not needed")


def test_a_missing_runtime_is_exit_5_with_its_command(dspkd, lacking):
    code, out, err = dspkd("doctor")
    assert code == 5
    assert "missing" in out
    assert "  pip install 'dspkd[onnx]'" in out.splitlines()
    assert err == "dspkd: error: local lacks what is needed: dspkd[onnx] - pip install 'dspkd[onnx]'\n"
    code, out, _ = dspkd("doctor", "--json")
    assert (code, json.loads(out)["ok"]) == (5, False)


def test_a_command_is_never_wrapped_and_brackets_are_no_styles(dspkd, monkeypatch):
    fix = "pip install " + "'dspkd[onnx]' " * 20
    monkeypatch.setattr(checks, "examine", lambda device: {})
    monkeypatch.setattr(checks, "check_machine", lambda *_: [Check("x[red]", "warning", "[bold]", fix)])
    code, out, _ = dspkd("doctor")
    assert code == 0
    assert f"  {fix}" in out.splitlines()
    assert "x[red]" in out and "[bold]" in out


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [(["--device", "ssh://127.0.0.1:1"], 5), (["--device", "tcp://x"], 2), (["no-such-folder"], 4)],
    ids=["unreachable", "malformed", "artifact"],
)
def test_what_cannot_be_examined_is_an_error_of_one_line(dspkd, arguments, expected):
    code, out, err = dspkd("doctor", *arguments)
    assert (code, out) == (expected, "")
    assert err.startswith("dspkd: error: ") and err.count("\n") == 1


def test_it_loads_no_torch_in_its_own_process():
    program = (
        "import sys; sys.argv = ['dspkd', 'doctor', '--json']\n"
        "from dspkd_bench import doctor\ndoctor.LOCAL_IMPORTS = ()\n"
        "from dspkd.cli.app import app\n"
        "try:\n    app()\nexcept SystemExit as end:\n    assert not end.code\n"
        "assert 'torch' not in sys.modules and 'onnxruntime' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True, capture_output=True)
