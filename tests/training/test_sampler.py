"""Sample indices: every step takes the next ones, however they are shared out."""

from __future__ import annotations

import math
from itertools import islice
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from ldm.training.datamodule import DataModuleFromConfig, RunSampler


@given(
    batch=st.integers(1, 4), accumulate=st.integers(1, 3), world=st.integers(1, 3),
    step=st.integers(0, 5),
)  # fmt: skip
def test_a_step_takes_the_next_samples(batch: int, accumulate: int, world: int, step: int) -> None:
    share, total = batch * accumulate, batch * accumulate * world
    seen: list[int] = []
    for rank in range(world):
        own = RunSampler(batch, step, accumulate, rank, world)
        seen += list(islice(own, share))
    assert sorted(seen) == list(range(step * total, (step + 1) * total))


def test_going_on_is_cutting_off_the_front() -> None:
    whole = list(islice(RunSampler(2, 0, 3, 1, 2), 24))
    rest = list(islice(RunSampler(2, 2, 3, 1, 2), 12))
    assert rest == whole[12:]


def test_a_loader_has_no_end_and_keeps_the_order() -> None:
    loader = DataLoader(range(10**6), batch_size=3, sampler=RunSampler(3, 5))  # type: ignore[arg-type]
    with pytest.raises(TypeError):
        len(loader)
    first = next(iter(loader))
    assert torch.equal(first, torch.tensor([15, 16, 17]))


def test_fixed_samples_are_shared_without_overlap() -> None:
    shares: list[list[int]] = []
    for rank in range(3):
        data: Any = DataModuleFromConfig(2, validation_samples=7, num_workers=0)
        data.datasets["validation"] = [{"place": i} for i in range(9)]
        data.trainer = SimpleNamespace(
            global_rank=rank, world_size=3, accelerator=None, lightning_module=None
        )
        loader = data.val_dataloader()
        shares.append([int(i) for batch in loader for i in batch["place"]])
        assert len(loader) == math.ceil(len(shares[-1]) / 2)
    assert shares == [[0, 3, 6], [1, 4], [2, 5]]


def test_a_rank_beyond_the_world_is_refused() -> None:
    with pytest.raises(ValueError, match=r"rank must lie in \[0, 2\), got 2"):
        RunSampler(1, rank=2, world=2)
