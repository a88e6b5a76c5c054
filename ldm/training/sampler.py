"""The samples of each process: arithmetic on the global step, so a run can resume anywhere."""

from __future__ import annotations

from collections.abc import Iterator

from torch.utils.data import Sampler


class RunSampler(Sampler[int]):
    """Yield this rank's sample indices, endlessly, from an optimizer step on.

    Element j of micro-batch m of step s on rank r is ((s·accumulate + m)·world + r)·batch + j:
    every step takes the next `accumulate·world·batch` indices, however they are shared out.

    Args:
        batch: samples in a micro-batch on one rank.
        first_step: optimizer steps already done.
        accumulate: micro-batches in a step.
        rank, world: this process among all.
    """

    def __init__(
        self, batch: int, first_step: int = 0, accumulate: int = 1, rank: int = 0, world: int = 1
    ) -> None:
        if not 0 <= rank < world:
            raise ValueError(f"rank must lie in [0, {world}), got {rank}")
        self.batch, self.first_batch = batch, first_step * accumulate
        self.rank, self.world = rank, world

    def __iter__(self) -> Iterator[int]:
        """Yield sample indices; the trainer stops asking at `max_steps`."""
        number = self.first_batch
        while True:
            start = (number * self.world + self.rank) * self.batch
            yield from range(start, start + self.batch)
            number += 1


class FixedSampler(Sampler[int]):
    """Yield this rank's share of samples 0 … length-1: the same ones every time.

    Args:
        length: samples of the set.
        rank, world: this process among all.
    """

    def __init__(self, length: int, rank: int = 0, world: int = 1) -> None:
        self.indices = range(rank, length, world)

    def __iter__(self) -> Iterator[int]:
        """Yield the indices in order."""
        return iter(self.indices)

    def __len__(self) -> int:
        """Return this rank's number of samples."""
        return len(self.indices)
