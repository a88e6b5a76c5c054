"""Randomness as a function of (seed, sample, purpose): no hidden state, no order dependence.

A *sample index* is the place of a sample in the stream of the run: global step × global batch size
+ place in the batch. So it determines step and sample. Its random numbers do not depend on the
number of workers, on image logging, or on interruptions of the run.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import IntEnum

import numpy as np
import torch
from torch import Tensor


class Purpose(IntEnum):
    """The purpose of a random number; numbers for different purposes are independent."""

    ORDER = 0
    TEMPLATE = 1
    FLIP = 2
    POSTERIOR = 3
    TIMESTEP = 4
    NOISE = 5
    CAPTION = 6
    CAPTION_DROPOUT = 7
    IMAGE = 8
    INITIAL_NOISE = 9
    STEP_NOISE = 10
    INITIAL_WORD = 11
    DROPOUT = 12
    MIXTURE = 13
    PASTING = 14
    NAME = 15
    STRATUM = 16
    CANDIDATES = 17


def generator(seed: int, sample: int, purpose: Purpose) -> np.random.Generator:
    """Return the random generator of a sample and a purpose.

    `seed` lies in [0, 2^64), `sample` in [0, 2^56).
    """
    if not 0 <= seed < 2**64:
        raise ValueError(f"seed must lie in [0, 2^64), got {seed}")
    if not 0 <= sample < 2**56:
        raise ValueError(f"sample must lie in [0, 2^56), got {sample}")
    return np.random.Generator(np.random.Philox(key=[seed, sample << 8 | int(purpose)]))


def normal(seed: int, samples: Sequence[int], shape: Sequence[int], purpose: Purpose) -> Tensor:
    """Sample N(0, 1) for each sample: float32 [len(samples), *shape] on the CPU."""
    noises = [
        generator(seed, int(s), purpose).standard_normal(tuple(shape), dtype=np.float32)
        for s in samples
    ]
    return torch.from_numpy(np.stack(noises))


def uniform(seed: int, samples: Sequence[int], purpose: Purpose) -> Tensor:
    """Sample U[0, 1) for each sample: float64 [len(samples)]."""
    return torch.tensor(
        [generator(seed, int(s), purpose).random() for s in samples], dtype=torch.float64
    )


def integers(seed: int, samples: Sequence[int], high: int, purpose: Purpose) -> Tensor:
    """Sample uniform integers in [0, high) for each sample: int64 [len(samples)]."""
    return torch.tensor(
        [int(generator(seed, int(s), purpose).integers(high)) for s in samples], dtype=torch.int64
    )
