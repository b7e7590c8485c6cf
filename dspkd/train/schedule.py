"""Learning rate: linear warm-up, then cosine (paper section 4.2). A function of the step, so it has no state to
restore.
"""

from __future__ import annotations

import math

from dspkd.config import OptimizerConfig

__all__ = ["learning_rate"]


def learning_rate(step: int, steps_per_epoch: int, epochs: int, config: OptimizerConfig) -> float:
    """Rate of step `step` (0-based within the stage): it reaches `lr` at the end of the warm-up and `min_lr` at
    the last step.
    """
    warmup_epochs = config.warmup_epochs if config.warmup_epochs is not None else epochs / 6
    total = steps_per_epoch * epochs
    warmup = min(round(warmup_epochs * steps_per_epoch), total - 1)
    if step < warmup:
        return config.lr * (step + 1) / warmup
    progress = (step - warmup) / max(1, total - 1 - warmup)
    return config.min_lr + (config.lr - config.min_lr) * 0.5 * (1 + math.cos(math.pi * min(progress, 1.0)))
