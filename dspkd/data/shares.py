"""Pictures as shares for threads."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

__all__ = ["side_by_side"]

# What a thread takes at a time: handing over single pictures takes longer than decoding small ones.
SHARE = 8


def side_by_side(indices: Sequence[int], threads: int) -> Iterator[list[Sequence[int]]]:
    """`indices` as shares for one thread each, as many at a time as there are threads. They go through the pictures
    side by side: those of an archive are read as one stream.
    """
    for start in range(0, len(indices), threads * SHARE):
        together = indices[start : start + threads * SHARE]
        yield [together[k::threads] for k in range(min(threads, len(together)))]
