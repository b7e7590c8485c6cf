"""What one process of a run draws in an epoch: all of it, or its share where several processes train together."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from dspkd.data.views import VIEWS_PER_EPOCH, BalancedSampler

__all__ = ["Draws", "most_draws"]


class Draws(BalancedSampler):
    """`BalancedSampler` with view ids that come again after `views` epochs, divided among `ranks` processes.

    Of every `batch_size` draws each process gets an equal part, so that what they do in a step together is what one
    process does alone. What is left over after the last whole batch is nobody's.
    """

    def __init__(
        self,
        positions: np.ndarray,
        labels: np.ndarray,
        *,
        balance: float,
        seed: int,
        views: int | None = None,
        batch_size: int = 1,
        rank: int = 0,
        ranks: int = 1,
    ) -> None:
        super().__init__(positions, labels, balance=balance, seed=seed)
        self.views, self.batch_size, self.rank, self.ranks = views, batch_size, rank, ranks

    def __len__(self) -> int:
        if self.ranks == 1:
            return super().__len__()
        return super().__len__() // self.batch_size * (self.batch_size // self.ranks)

    def __iter__(self) -> Iterator[tuple[int, int]]:
        share = self.batch_size // self.ranks
        repeated = self.epoch - self.epoch % self.views if self.views is not None else 0
        for number, (position, view) in enumerate(super().__iter__()):
            if self.ranks == 1 or number % self.batch_size // share == self.rank:
                yield position, view - repeated * VIEWS_PER_EPOCH


def most_draws(sampler: BalancedSampler) -> np.ndarray:
    """How often each image of the table up to the last of `sampler.positions` can be drawn in one epoch, int64.

    It depends on its class alone, neither on the seed nor on the epoch.
    """
    whole = BalancedSampler(sampler.positions, _by_position(sampler), balance=sampler.balance, seed=0)
    counts = np.bincount([position for position, _ in whole], minlength=int(sampler.positions.max()) + 1)
    most = np.zeros_like(counts)
    for label in np.unique(sampler.labels):
        members = sampler.positions[sampler.labels == label]
        most[members] = counts[members].max()
    return most


def _by_position(sampler: BalancedSampler) -> np.ndarray:
    labels = np.zeros(int(sampler.positions.max()) + 1, dtype=np.int64)
    labels[sampler.positions] = sampler.labels
    return labels
