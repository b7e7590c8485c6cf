"""Configurations of runs that take seconds."""

from dspkd.config import parse_run_config

# Networks that timm has for tests: a step and an export take a fraction of what those of a real student take.
STUDENT = "timm/test_resnet"
TEACHER = "timm/test_byobnet"
# The paper's student, whose epochs also leave time to be killed in.
REAL = "shufflenet_v2_x0_5"


def tiny_config(root, out, *, teacher=None, workers=0, stages=None, **more):
    """A run of seconds: `STUDENT` at 32 px; two epochs of cross entropy unless `stages` says otherwise."""
    values = {
        "model": STUDENT,
        "data": {"root": str(root), "workers": workers},
        "size": 32,
        "batch_size": 8,
        "out": str(out),
        "stages": stages or [{"method": "cross_entropy", "epochs": 2, "optimizer": {"lr": 0.05}}],
        **more,
    }
    if teacher is not None:
        values["teacher"] = str(teacher)
    return parse_run_config(values, origin="test")
