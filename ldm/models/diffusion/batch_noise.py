"""The random numbers of a training batch, as functions of (seed, sample)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ldm.randomness import Purpose, generator, integers, normal, uniform


def timesteps_of(u: Tensor, num_timesteps: int, power: float) -> Tensor:
    """Return t = ⌊T·u^(1/power)⌋, int64, for u in [0, 1). The density of t grows as t^(power−1)."""
    t = (num_timesteps * u ** (1 / power)).long()
    return t.clamp(max=num_timesteps - 1)  # a root may round up to 1


@dataclass(frozen=True)
class BatchNoise:
    """Samples the random numbers of a batch on the CPU.

    The numbers of a sample depend on the seed and on its index alone. Therefore a batch does not
    depend on workers, processes or interruptions.

    Attributes:
        seed: seed of the run.
        channels: channels of a latent.
        downsampling: pixels of an image to an element of its latent, along a side.
        image_key: key of the images in a batch, [b, h, w, c].
        num_timesteps: T; 0 for an autoencoder, which needs no timesteps.
        timestep_power: 1 samples uniform timesteps (the paper); see `LatentDiffusion`.
        timestep_strata: consecutive samples whose timesteps are spread evenly; 1 for none.
    """

    seed: int
    channels: int
    downsampling: int
    image_key: str
    num_timesteps: int = 0
    timestep_power: float = 1.0
    timestep_strata: int = 1

    def __call__(self, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        """Return the random numbers of a training step.

        Args:
            batch: `sample`, indices of the run's stream [b], and `moments` or images.

        Returns:
            `posterior_noise`, N(0, 1), [b, c, h, w]; with timesteps also `timestep`, int64 [b], and
            `noise` (ε), N(0, 1), [b, c, h, w].
        """
        samples = batch["sample"].tolist()
        if "moments" in batch:
            _, twice, h, w = batch["moments"].shape
            shape = (twice // 2, h, w)
        else:
            _, h, w, _ = batch[self.image_key].shape
            shape = (self.channels, h // self.downsampling, w // self.downsampling)
        found = {"posterior_noise": normal(self.seed, samples, shape, Purpose.POSTERIOR)}
        if not self.num_timesteps:
            return found
        noise = normal(self.seed, samples, shape, Purpose.NOISE)
        return found | {"timestep": self._timesteps(samples), "noise": noise}

    def _timesteps(self, samples: list[int]) -> Tensor:
        strata = self.timestep_strata
        if self.timestep_power == 1.0 and strata == 1:
            return integers(self.seed, samples, self.num_timesteps, Purpose.TIMESTEP)
        u = uniform(self.seed, samples, Purpose.TIMESTEP)
        if strata > 1:
            # Each group of samples takes each of the equal parts of [0, 1) once, in random order.
            places = [
                generator(self.seed, sample // strata, Purpose.STRATUM).permutation(strata)[
                    sample % strata
                ]
                for sample in samples
            ]
            u = (torch.tensor(places) + u) / strata
        return timesteps_of(u, self.num_timesteps, self.timestep_power)
