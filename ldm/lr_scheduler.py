"""Learning-rate schedules: multipliers of the base rate, for torch's `LambdaLR`."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Sequence


class LambdaWarmUpCosineScheduler2:
    """Cycles of linear warm-up from `f_start` to `f_max` and cosine decay to `f_min`.

    Each list has one entry for each cycle. After the last cycle the multiplier stays at its end.

    Args:
        warm_up_steps: optimizer steps of the warm-ups.
        f_min: multipliers at the end of the cycles.
        f_max: multipliers after the warm-ups.
        f_start: multipliers at the start of the cycles.
        cycle_lengths: optimizer steps of the cycles, with their warm-ups.
        verbosity_interval: accepted for old configurations; the rate is logged by the trainer.
    """

    def __init__(
        self,
        warm_up_steps: Sequence[int],
        f_min: Sequence[float],
        f_max: Sequence[float],
        f_start: Sequence[float],
        cycle_lengths: Sequence[int],
        verbosity_interval: int = 0,  # noqa: ARG002
    ) -> None:
        lengths = {len(warm_up_steps), len(f_min), len(f_max), len(f_start), len(cycle_lengths)}
        if len(lengths) != 1:
            raise ValueError(f"the lists must have one entry a cycle each, got lengths {lengths}")
        self.warm_up_steps, self.cycle_lengths = list(warm_up_steps), list(cycle_lengths)
        self.f_min, self.f_max, self.f_start = list(f_min), list(f_max), list(f_start)
        self.starts = [sum(self.cycle_lengths[:i]) for i in range(len(self.cycle_lengths))]

    def _place(self, n: int) -> tuple[int, int]:
        # The step at which two cycles meet ends the earlier one.
        cycle = max(0, bisect_left(self.starts, n) - 1)
        return cycle, min(n - self.starts[cycle], self.cycle_lengths[cycle])

    def _decay(self, cycle: int, n: int) -> float:
        warm_up = self.warm_up_steps[cycle]
        t = (n - warm_up) / max(1, self.cycle_lengths[cycle] - warm_up)
        low, high = self.f_min[cycle], self.f_max[cycle]
        return low + 0.5 * (high - low) * (1 + math.cos(math.pi * min(t, 1)))

    def __call__(self, n: int) -> float:
        cycle, n = self._place(n)
        warm_up, start = self.warm_up_steps[cycle], self.f_start[cycle]
        if n < warm_up:
            return start + (self.f_max[cycle] - start) * n / warm_up
        return self._decay(cycle, n)

    schedule = __call__


class LambdaWarmUpCosineScheduler(LambdaWarmUpCosineScheduler2):
    """Linear warm-up from `lr_start` to `lr_max`, then half a cosine down to `lr_min`.

    Args:
        warm_up_steps: optimizer steps of the warm-up.
        lr_min: multiplier at the end.
        lr_max: multiplier after the warm-up.
        lr_start: multiplier at the start.
        max_decay_steps: step at which `lr_min` is reached.
        verbosity_interval: accepted for old configurations; the rate is logged by the trainer.
    """

    def __init__(
        self,
        warm_up_steps: int,
        lr_min: float,
        lr_max: float,
        lr_start: float,
        max_decay_steps: int,
        verbosity_interval: int = 0,  # noqa: ARG002
    ) -> None:
        super().__init__([warm_up_steps], [lr_min], [lr_max], [lr_start], [max_decay_steps])


class LambdaLinearScheduler(LambdaWarmUpCosineScheduler2):
    """Cycles of linear warm-up from `f_start` to `f_max` and linear decay to `f_min`."""

    def _decay(self, cycle: int, n: int) -> float:
        length = self.cycle_lengths[cycle]
        return self.f_min[cycle] + (self.f_max[cycle] - self.f_min[cycle]) * (length - n) / length


class LambdaWarmUpStableDecayScheduler:
    """Linear warm-up from 0 to 1, a constant rate, then a line down to `lr_min`.

    The constant part has no planned end: a run can stop anywhere in it, be resumed, and decay from
    any step by another `decay_start` (Hu et al. 2024, arXiv 2404.06395, section 4).

    Args:
        warm_up_steps: optimizer steps of the warm-up.
        decay_start: step at which the decay starts.
        decay_steps: length of the decay, at least 1.
        lr_min: multiplier after the decay.
    """

    def __init__(
        self, warm_up_steps: int, decay_start: int, decay_steps: int, lr_min: float = 0.0
    ) -> None:
        if decay_steps < 1:
            raise ValueError(f"decay_steps must be at least 1, got {decay_steps}")
        self.warm_up_steps, self.decay_start = warm_up_steps, decay_start
        self.decay_steps, self.lr_min = decay_steps, lr_min

    def __call__(self, n: int) -> float:
        if n < self.warm_up_steps:
            return (n + 1) / self.warm_up_steps
        t = min(max(n - self.decay_start, 0) / self.decay_steps, 1.0)
        return 1.0 + t * (self.lr_min - 1.0)
