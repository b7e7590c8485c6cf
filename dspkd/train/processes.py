"""The processes of one run: one, or several that `torchrun` has started, on one machine or many."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import numpy as np
import torch.distributed

from dspkd.errors import ConfigError, DeviceError
from dspkd.quiet import quiet_libraries

if TYPE_CHECKING:
    from lightning_fabric import Fabric

__all__ = ["check_divisible", "gathered", "is_first_process", "make_fabric", "process_count", "rank"]


def process_count() -> int:
    return int(os.environ["WORLD_SIZE"]) if _by_torchrun() else 1


def rank() -> int:
    return int(os.environ["RANK"]) if _by_torchrun() else 0


def is_first_process() -> bool:
    """The one that writes files and reports."""
    return rank() == 0


def _by_torchrun() -> bool:
    return torch.distributed.is_available() and torch.distributed.is_torchelastic_launched()


def make_fabric(device: str, precision: str) -> Fabric:
    """Raises DeviceError if there is no such device, or too few of them."""
    from lightning_fabric import Fabric
    from lightning_fabric.strategies.ddp import DDPStrategy
    from lightning_fabric.utilities.exceptions import MisconfigurationException

    if device not in ("auto", "cpu", "cuda", "mps"):
        raise DeviceError(f"unknown device {device!r}", hint="use auto, cpu, cuda or mps")
    several = process_count() > 1
    here = int(os.environ["LOCAL_WORLD_SIZE"]) if several else 1
    try:
        fabric = Fabric(
            accelerator=device,
            devices=here,
            num_nodes=process_count() // here,
            strategy=DDPStrategy() if several else "auto",
            precision=precision,  # type: ignore[arg-type]
        )
        with quiet_libraries():
            fabric.launch()
    except (RuntimeError, ValueError, MisconfigurationException) as error:
        raise DeviceError(f"device {device!r} cannot be used here: {error}", hint="use --device cpu") from error
    return fabric


def check_divisible(batch_size: int, images: int) -> None:
    """Raises ConfigError if the processes cannot have equal parts of every batch."""
    if batch_size % process_count():
        raise ConfigError(
            f"batch_size {batch_size} cannot be divided among {process_count()} processes",
            hint="it counts the images of all processes together: choose a multiple of their number",
        )
    if process_count() > 1 and images < batch_size:
        raise ConfigError(
            f"the training part has {images} images, fewer than one batch of {batch_size}",
            hint="several processes need a whole batch: lower --batch-size",
        )


def gathered(part: np.ndarray) -> np.ndarray:
    """The parts (N_r, ...) of all processes, one after the other."""
    if process_count() == 1:
        return part
    parts: list[np.ndarray] = [part] * process_count()
    torch.distributed.all_gather_object(parts, part)
    return np.concatenate(parts)
