"""Timesteps spread over a step: each part of the schedule once, each one still uniform."""

from __future__ import annotations

import pytest
import torch

from ldm.models.diffusion.batch_noise import BatchNoise

MOMENTS = torch.zeros(1, 2, 1, 1)


def timesteps(samples: range, strata: int, seed: int = 3, power: float = 1.0) -> torch.Tensor:
    noise = BatchNoise(seed, 1, 1, "image", 1000, power, strata)
    batch = {"sample": torch.tensor(samples), "moments": MOMENTS.expand(len(samples), 2, 1, 1)}
    return noise(batch)["timestep"]


@pytest.mark.parametrize("strata", [2, 8])
def test_each_group_takes_each_part_of_the_schedule_once(strata: int) -> None:
    for first in range(0, 5 * strata, strata):
        t = timesteps(range(first, first + strata), strata)
        assert sorted((t * strata // 1000).tolist()) == list(range(strata))


def test_each_timestep_is_uniform() -> None:
    t = timesteps(range(8000), 8).double()
    for place in range(8):  # a sample's place in its group decides nothing
        own = t[place::8]
        assert abs(own.mean().item() - 499.5) < 4 * 288.7 / 1000**0.5
        assert abs(own.std().item() - 288.7) < 20
    assert timesteps(range(8), 8).tolist() != timesteps(range(8, 16), 8).tolist()


def test_a_timestep_depends_on_seed_and_sample_alone() -> None:
    whole = timesteps(range(16), 8)
    parts = torch.cat([timesteps(range(i, i + 2), 8) for i in range(0, 16, 2)])
    assert torch.equal(whole, parts)
    assert not torch.equal(whole, timesteps(range(16), 8, seed=4))


def test_one_stratum_gives_the_same_timesteps_as_none() -> None:
    assert torch.equal(
        timesteps(range(64), 1), BatchNoise(3, 1, 1, "image", 1000)(_batch(64))["timestep"]
    )


def test_a_power_goes_with_strata() -> None:
    t = timesteps(range(4000), 8, power=3.0).double() / 1000
    assert abs((t**3).mean().item() - 0.5) < 0.01  # u = t^power is uniform


def _batch(count: int) -> dict[str, torch.Tensor]:
    return {"sample": torch.arange(count), "moments": MOMENTS.expand(count, 2, 1, 1)}
