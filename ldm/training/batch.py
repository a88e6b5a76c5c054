"""Complete batches: a training step samples no random number and looks nothing up."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch.utils.data import Dataset, default_collate

from ldm.data.protocol import DescribedImages
from ldm.models.diffusion.batch_noise import BatchNoise
from ldm.training.latents import LatentCache


class Described(Dataset[dict[str, Any]]):
    """A dataset whose samples have no pixels, because their latents are cached."""

    def __init__(self, dataset: DescribedImages) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        """Return the number of samples in an epoch."""
        return len(self.dataset)

    def __getitem__(self, sample: int) -> dict[str, Any]:
        """Return a sample without its image."""
        return self.dataset.describe(sample)


@dataclass(frozen=True)
class Collate:
    """Makes a complete batch of samples.

    Attributes:
        batch_noise: samples the random numbers of a batch; None leaves them to the model.
        latents: the posteriors of the dataset; None if the batch holds images to encode.
    """

    batch_noise: BatchNoise | None = None
    latents: LatentCache | None = None

    def __call__(self, samples: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """Return the stacked entries of the samples, `moments`, and what `BatchNoise` returns."""
        return self._complete(default_collate(list(samples)))

    def _complete(self, batch: dict[str, Any]) -> dict[str, Any]:
        if "prior" in batch:
            batch["prior"] = self._complete(batch["prior"])
        if self.latents is not None:
            batch["moments"] = self.latents(batch["image_id"])
        if self.batch_noise is not None and "sample" in batch:
            batch |= self.batch_noise(batch)
        return batch
