"""A kill at any moment of an export: the folder holds the old artifact or the new one, whole."""

import os
import shutil
import sys
from dataclasses import replace

import numpy as np
import pytest

from dspkd.artifact import load_artifact
from dspkd.errors import VerificationError
from dspkd.evaluate import Classifier
from dspkd.runtimes import LoadedModel
from dspkd.student import load_student
from dspkd_export import TARGETS, export_student
from dspkd_export.job import Compiled

KILLED = 9
TOUCHES_FILES = {
    "open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.chmod", "os.listdir", "shutil.rmtree", "ctypes.dlsym",
}  # fmt: skip


@pytest.fixture
def quick_export(lively_artifacts, lively_student, lively_images, monkeypatch):
    """export(out): writes the files of a real artifact in no time; nothing is compiled or run."""
    certificate = load_artifact(lively_artifacts["onnx"]).card.certificate
    student = load_student(lively_student)

    def answers(pixels):
        return np.full((len(pixels), 3), 1 / 3, dtype=np.float32)

    def copy(job):
        for name in ("model.onnx", "model_static.onnx"):
            shutil.copy(lively_artifacts["onnx"] / name, job.folder / name)
        return Compiled(("model.onnx", "model_static.onnx"), {}, loaded={"model.onnx": LoadedModel("none", answers)})

    monkeypatch.setitem(TARGETS, "onnx", replace(TARGETS["onnx"], compile=copy))
    monkeypatch.setattr("dspkd_export.export.certify", lambda *args, **kwargs: certificate)
    monkeypatch.setattr("dspkd_export.export.load_student", lambda folder: student)
    monkeypatch.setattr(
        "dspkd_export.export.student_classifier",
        lambda s: Classifier("none", s.card.classes, s.card.preprocess, answers),
    )

    def export(out):
        export_student(lively_student, targets=["onnx"], precisions=["fp32"], out=out, images=lively_images)

    return export


def killed_at(moment, out, export):
    """Run `export(out)` in a process of its own that dies at its `moment`-th touch of a file. False: it came to its
    end before.
    """
    child = os.fork()
    if not child:
        touched = 0

        def die_in_time(event, _arguments):
            nonlocal touched
            if event in TOUCHES_FILES:
                touched += 1
                if touched == moment:
                    os._exit(KILLED)

        sys.addaudithook(die_in_time)
        try:
            export(out)
        except BaseException:
            os._exit(1)
        os._exit(0)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert code in (0, KILLED)
    return code == KILLED


def content(folder):
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def test_a_first_export_is_whole_or_not_there(quick_export, tmp_path):
    quick_export(tmp_path / "whole")
    new = content(tmp_path / "whole" / "onnx-fp32")
    moment, found = 1, set()
    while killed_at(moment, tmp_path / "out", quick_export):
        folder = tmp_path / "out" / "onnx-fp32"
        found.add(folder.exists())
        assert not folder.exists() or content(folder) == new
        shutil.rmtree(tmp_path / "out", ignore_errors=True)
        moment += 1
    assert moment > 20
    assert False in found


def test_an_old_artifact_is_there_until_the_new_one_is(quick_export, lively_artifacts, tmp_path):
    quick_export(tmp_path / "whole")
    new, old = content(tmp_path / "whole" / "onnx-fp32"), content(lively_artifacts["onnx"])
    assert new != old
    out = tmp_path / "out"
    folder = out / "onnx-fp32"
    moment, found = 1, []
    while True:
        shutil.rmtree(out, ignore_errors=True)
        shutil.copytree(lively_artifacts["onnx"], folder)
        if not killed_at(moment, out, quick_export):
            break
        found.append("old" if content(folder) == old else "new")
        assert content(folder) in (old, new), f"killed at touch {moment}"
        moment += 1
    # Old up to one moment, new from then on, with kills on either side of it.
    assert found == sorted(found, reverse=True)
    assert set(found) == {"old", "new"}


def test_what_a_kill_leaves_is_no_artifact_and_goes_with_the_next_export(quick_export, tmp_path):
    out = tmp_path / "out"
    assert killed_at(15, out, quick_export)
    for leftover in out.iterdir():
        with pytest.raises(VerificationError):
            load_artifact(leftover)
    quick_export(out)
    assert [path.name for path in out.iterdir()] == ["onnx-fp32"]
