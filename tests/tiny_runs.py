"""Configurations of runs that take seconds."""

from dspkd.config import parse_run_config


def tiny_config(root, out, *, teacher=None, workers=0, stages=None, **more):
    """A run of seconds: ShuffleNetV2 x0.5 at 32 px; two epochs of cross entropy unless `stages` says otherwise."""
    values = {
        "model": "shufflenet_v2_x0_5",
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
