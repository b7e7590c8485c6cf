"""Running a TensorRT engine of this machine in this process."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from dspkd import tensorrt_device
from dspkd.errors import DeviceError
from dspkd.runtimes import LoadedModel

__all__ = ["load_tensorrt"]


def load_tensorrt(path: Path, threads: int) -> LoadedModel:
    """DeviceError without TensorRT or a GPU, or if the engine was built for others: nothing is wrong with the file.

    `threads` has no meaning on a GPU.
    """
    try:
        engine = tensorrt_device.Engine(path)
    except tensorrt_device.Failure as error:
        raise DeviceError(str(error), hint="use the machine that the engine was built on") from error

    def run(images: np.ndarray) -> np.ndarray:
        try:
            return engine.run(images)
        except tensorrt_device.Failure as error:
            raise DeviceError(f"{path}: {error}", hint="check the GPU") from error

    return LoadedModel(f"{engine.version} on {engine.gpu}", run, batch=engine.max_batch, dtype=engine.dtype)
