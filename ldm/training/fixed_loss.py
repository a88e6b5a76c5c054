"""The loss of a model on a fixed batch: images, timesteps and noise stay the same in a run."""

from __future__ import annotations

from typing import Any

import pytorch_lightning as pl
import torch

from ldm.training.image_logger import quietly


class FixedLoss:
    """Computes the loss of the present word on a batch of the validation set.

    Each image has one noise, and the timesteps are spread evenly over the schedule.

    Args:
        trainer: of a run whose data are set up.
        module: a `LatentDiffusion`.
        samples: images in the batch, at least 1.
        first: index of the first sample. Samples that training reaches share their noise with it.
    """

    def __init__(self, trainer: pl.Trainer, module: Any, samples: int, first: int = 0) -> None:
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        name = "validation" if "validation" in data.datasets else "train"
        with quietly(module):
            items = [data.datasets[name][sample] for sample in range(first, first + samples)]
            batch = data.collate(name, cached=False)(items)
            # The middle of each of `samples` equal parts of the schedule.
            places = (torch.arange(samples, device=module.device) + 0.5) / samples
            self.timesteps = (places * module.num_timesteps).long()
            self.latents = module.latents(batch)
        self.captions = [item[module.cond_stage_key] for item in items]
        self.noises = batch["noise"].to(self.latents)

    def __call__(self, module: Any) -> float:
        """Return the loss without weights of timesteps."""
        with quietly(module):
            condition = module.get_learned_conditioning(self.captions)
            terms = module.p_losses(self.latents, condition, self.timesteps, self.noises).terms
        return float(terms["loss_simple"])
