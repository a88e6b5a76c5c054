"""Data for a run, from configuration. The name `DataModuleFromConfig` is the original's."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pytorch_lightning as pl
from torch.utils.data import DataLoader, Dataset, default_collate

from ldm.data.protocol import DescribedImages
from ldm.models.diffusion.batch_noise import BatchNoise
from ldm.models.diffusion.ddpm import LatentDiffusion
from ldm.training.latents import LatentCache
from ldm.util import at_least, instantiate_from_config

# A dataset of a few images needs few processes.
MOST_WORKERS = 4


class RunSampler:
    """Yields the sample indices of rank `rank` of `world`, endlessly, from an optimizer step on.

    Element j of micro-batch m of step s on rank r is ((s·accumulate + m)·world + r)·batch + j:
    every step takes the next `accumulate·world·batch` indices, however they are shared out. So a
    run can resume anywhere. `batch` counts the samples in a micro-batch on one rank.
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
        for number in itertools.count(self.first_batch):
            start = (number * self.world + self.rank) * self.batch
            yield from range(start, start + self.batch)


class Described(Dataset[dict[str, Any]]):
    """A dataset whose samples have no pixels, because their latents are cached."""

    def __init__(self, dataset: DescribedImages) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, sample: int) -> dict[str, Any]:
        return self.dataset.describe(sample)


@dataclass(frozen=True)
class Collate:
    """Makes a complete batch of samples: a training step samples no random number.

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


class DataModuleFromConfig(pl.LightningDataModule):
    """Build datasets from configuration and serve them by sample index.

    Args:
        batch_size: samples in a micro-batch on one device.
        train: target and params of the dataset to train on.
        validation: target and params of the dataset to validate with.
        test: target and params of the dataset to test with at the end.
        predict: target and params of a dataset to predict on.
        wrap: accepted for old configurations; sets are indexed by sample, so none needs wrapping.
        num_workers: loading processes; by default one for each core, at most 4, and none if the
            latents are cached (see `LatentCache`).
        validation_samples: number of samples for validation and tests, always the first ones. More
            than the dataset has images gives several noises for each. The default is one pass.
    """

    def __init__(
        self,
        batch_size: int,
        train: Mapping[str, Any] | None = None,
        validation: Mapping[str, Any] | None = None,
        test: Mapping[str, Any] | None = None,
        predict: Mapping[str, Any] | None = None,
        wrap: bool = False,
        num_workers: int | None = None,
        validation_samples: int | None = None,
    ) -> None:
        super().__init__()
        at_least(1, batch_size=batch_size)
        at_least(0, num_workers=num_workers)
        given = {"train": train, "validation": validation, "test": test, "predict": predict}
        self.dataset_configs = {name: config for name, config in given.items() if config}
        self.batch_size, self.wrap, self.num_workers = batch_size, wrap, num_workers
        self.validation_samples = validation_samples
        self.datasets: dict[str, Any] = {}
        self.latents: dict[str, LatentCache] = {}  # of the sets that `CacheLatents` has encoded

    def setup(self, stage: str | None = None) -> None:
        """Build every dataset, once."""
        for name, config in self.dataset_configs.items():
            if name not in self.datasets:
                self.datasets[name] = instantiate_from_config(config)

    def _loader(self, name: str, sampler: Iterable[int]) -> DataLoader[Any]:
        dataset, workers = self.datasets[name], self.num_workers
        if workers is None:
            free = getattr(os, "sched_getaffinity", None)
            cores = len(free(0)) if free else os.cpu_count() or 1
            workers = 0 if name in self.latents else min(MOST_WORKERS, cores)
        accelerator = self.trainer.accelerator if self.trainer else None
        return DataLoader(
            Described(dataset) if name in self.latents else dataset,
            batch_size=self.batch_size,
            sampler=sampler,
            collate_fn=self.collate(name),
            num_workers=workers,
            persistent_workers=workers > 0,
            pin_memory=type(accelerator).__name__ == "CUDAAccelerator",
        )

    def collate(self, name: str, cached: bool = True) -> Collate:
        """Return the function that makes complete batches of a dataset for the trainer's model.

        `cached` takes latents from the cache if the dataset is in it.
        """
        model = self.trainer.lightning_module if self.trainer else None
        batch_noise = model.batch_noise() if isinstance(model, LatentDiffusion) else None
        return Collate(batch_noise, self.latents.get(name) if cached else None)

    def train_dataloader(self) -> DataLoader[Any]:
        """Return an endless loader that begins at the trainer's present step."""
        trainer = self.trainer
        assert trainer is not None
        sampler = RunSampler(
            self.batch_size,
            trainer.global_step,
            trainer.accumulate_grad_batches,
            trainer.global_rank,
            trainer.world_size,
        )
        return self._loader("train", sampler)

    def batches(self, name: str, first_step: int, count: int) -> list[dict[str, Any]]:
        """Return complete batches of a set: the first micro-batches of `count` steps.

        They do not depend on the trainer's present step or on the number of processes.
        """
        dataset, collate = self.datasets[name], self.collate(name)
        read = Described(dataset) if name in self.latents else dataset
        places, own = iter(RunSampler(self.batch_size, first_step)), range(self.batch_size)
        return [collate([read[next(places)] for _ in own]) for _ in range(count)]

    def _fixed_loader(self, name: str) -> DataLoader[Any] | list[Any]:
        """Return a loader over this rank's share of a set's first samples, in order."""
        if name not in self.datasets:
            return []
        length, trainer = self.validation_samples, self.trainer
        length = len(self.datasets[name]) if length is None else length
        rank, world = (trainer.global_rank, trainer.world_size) if trainer else (0, 1)
        return self._loader(name, range(rank, length, world))

    def val_dataloader(self) -> DataLoader[Any] | list[Any]:
        return self._fixed_loader("validation")

    def test_dataloader(self) -> DataLoader[Any] | list[Any]:
        """Return a loader over the test set, or the validation set where there is none."""
        return self._fixed_loader("test" if "test" in self.datasets else "validation")

    def predict_dataloader(self) -> DataLoader[Any] | list[Any]:
        return self._fixed_loader("predict")
