"""The demo, smaller: every step of it runs for real."""

import json

import pytest
from tiny_runs import STUDENT, TEACHER

from dspkd.cli import demo
from dspkd.errors import OutputError


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    out = tmp_path_factory.mktemp("demo") / "out"
    with pytest.MonkeyPatch.context() as patch:
        for name, value in (
            ("SIZE", 64), ("LESIONS", 120), ("TEACHER_EPOCHS", 1), ("STUDENT_EPOCHS", (1, 1)),
            ("TEACHER", TEACHER), ("STUDENT", STUDENT),
        ):  # fmt: skip
            patch.setattr(demo, name, value)
        demo.run_demo(out, seed=0, resume=False)
    return out


def test_everything_is_there(finished):
    names = {path.name for path in (finished / "runs").iterdir()}
    assert names == {"teacher", "alone", "student"}
    for name in ("student", "teacher"):
        for target in ("onnx", "executorch"):
            card = json.loads((finished / "artifacts" / name / f"{target}-fp32" / "artifact.json").read_text())
            assert card["certificate"]["passed"]
            assert card["certificate"]["top1_agreement"] == 1.0
    results = json.loads((finished / "results.json").read_text())
    assert {(s["role"], s["target"]) for s in results["subjects"]} == {
        (role, target) for role in ("teacher", "student") for target in ("pytorch", "onnx", "executorch")
    }
    stages = [json.loads(line)["stage"] for line in (finished / "runs/student/metrics.jsonl").read_text().splitlines()]
    assert stages == ["hf_masked_generation", "norm_kd"]


def test_the_page_stands_alone_and_shows_the_runs_as_they_came_out(finished):
    text = (finished / "report.html").read_text()
    assert "http://" not in text
    assert "https://" not in text
    for name in ("teacher", "alone", "student"):
        score = json.loads((finished / "runs" / name / "student.json").read_text())["metrics"]["test"][
            "balanced_accuracy"
        ]
        assert f"{100 * score:.1f}" in text
    assert "data:image/png;base64," in text


def test_a_taken_folder_is_refused(finished):
    with pytest.raises(OutputError, match="not empty"):
        demo.run_demo(finished, seed=0, resume=False)
