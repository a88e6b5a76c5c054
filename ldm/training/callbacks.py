"""Small callbacks of a run. `SetupCallback` and `CUDACallback` are the original's names."""

from __future__ import annotations

import logging
import time
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch

from ldm.training.config import RunConfig

log = logging.getLogger(__name__)


class SetupCallback(pl.Callback):
    """Store the run's configuration in its log folder when training begins or continues.

    The parameters are the original's; `now` is the date at the start of the files' names. Earlier
    configurations of a resumed run stay beside the new ones.
    """

    def __init__(
        self, resume: bool, now: str, logdir: Path, ckptdir: Path, cfgdir: Path, config: RunConfig
    ) -> None:
        self.resume, self.now, self.config = resume, now, config
        self.logdir, self.ckptdir, self.cfgdir = Path(logdir), Path(ckptdir), Path(cfgdir)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write the configurations, on the first process only.

        A checkpoint to resume from has been read by now, so it fits the configuration.
        """
        if trainer.is_global_zero:
            self.ckptdir.mkdir(parents=True, exist_ok=True)
            self.config.save(self.cfgdir, self.now)


class StepSeed(pl.Callback):
    """Seed torch's own generator for each micro-batch, from (the run's seed, batch, rank).

    Dropout and models without sample indices use it. They get the same numbers however often images
    are logged, and wherever a run was interrupted.
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        place = batch_idx * trainer.world_size + trainer.global_rank
        # Knuth's multiplicative constant keeps runs with neighbouring seeds apart.
        seed = (self.seed * 2654435761 + place) % 2**63
        # Not torch.manual_seed, which goes through every kind of device there might be.
        torch.default_generator.manual_seed(seed)
        if pl_module.device.type == "cuda":
            torch.cuda.manual_seed(seed)
        elif pl_module.device.type == "mps":
            torch.mps.manual_seed(seed)


class CUDACallback(pl.Callback):
    """Report at the end how long training took and how much GPU memory it needed."""

    def __init__(self) -> None:
        self.start = 0.0
        self.first_step = 0

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.start, self.first_step = time.monotonic(), trainer.global_step
        if pl_module.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(pl_module.device)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        seconds, steps = time.monotonic() - self.start, trainer.global_step - self.first_step
        line = f"{steps} steps in {seconds:.1f} s"
        if pl_module.device.type == "cuda":
            peak = torch.cuda.max_memory_allocated(pl_module.device) / 2**20
            line += f", at most {peak:.0f} MiB of GPU memory"
        log.info(line)
