"""Small callbacks of a run: configuration, seeds, progress, time and memory.

`SetupCallback` and `CUDACallback` are the original's names.
"""

from __future__ import annotations

import logging
import sys
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from torch import Tensor

from ldm.training.config import RunConfig
from ldm.training.lightning_private import log_interval

log = logging.getLogger(__name__)


def ends_step(trainer: Trainer, batch_idx: int) -> bool:
    """Tell, at a micro-batch's end, whether it ends an optimizer step."""
    return (batch_idx + 1) % trainer.accumulate_grad_batches == 0


def is_logged(trainer: Trainer, batch_idx: int) -> bool:
    """Tell, at a micro-batch's end, whether it ends a step whose values the trainer logs."""
    return ends_step(trainer, batch_idx) and trainer.global_step % log_interval(trainer) == 0


class StepCallback(Callback):
    """A callback that acts at the end of optimizer steps, and not of each micro-batch."""

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if ends_step(trainer, batch_idx):
            self.on_step(trainer, pl_module, outputs["loss"], is_logged(trainer, batch_idx))

    def on_step(self, trainer: Trainer, module: LightningModule, loss: Tensor, logs: bool) -> None:
        """Act after a step; `logs` tells whether the trainer logs its values."""
        raise NotImplementedError


class Progress(StepCallback):
    """Shows progress: one line that is rewritten on a terminal, a line at intervals in a file.

    Also logs `train/steps_per_second` beside the loss.
    """

    def __init__(self) -> None:
        self.terminal = sys.stderr.isatty()
        self.interval = 0.5 if self.terminal else 15.0  # seconds between two lines, at least
        self.first_step, self.start, self.shown = 0, 0.0, 0.0
        self.last = (0.0, 0)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.first_step, self.start = trainer.global_step, time.monotonic()
        self.last = (self.start, trainer.global_step)

    def line(self, trainer: Trainer, loss: float, now: float) -> str:
        done, last = trainer.global_step, trainer.max_steps
        rate = (done - self.first_step) / max(now - self.start, 1e-9)
        left = timedelta(seconds=round((last - done) / rate)) if rate else "unknown"
        return f"step {done}/{last}  loss {loss:.4f}  {rate:.2f} steps/s  remaining {left}"

    def on_step(self, trainer: Trainer, module: LightningModule, loss: Tensor, logs: bool) -> None:
        """Show the line if it is due, and log the speed when the loss is logged."""
        now, step = time.monotonic(), trainer.global_step
        if logs:
            then, before = self.last
            # One based: the row of step n holds the state after n steps.
            module.log("step", float(step))
            module.log("train/steps_per_second", (step - before) / max(now - then, 1e-9))
            self.last = (now, step)
        due = now - self.shown >= self.interval or step == trainer.max_steps
        if due and trainer.is_global_zero:
            self.shown = now
            line = self.line(trainer, float(loss), now)
            if self.terminal:
                sys.stderr.write(f"\r{line:<78}")
                sys.stderr.flush()
            else:
                log.info(line)

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Put the validation's values in the row of the last step."""
        pl_module.log("step", float(trainer.global_step))

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.terminal and trainer.is_global_zero:
            sys.stderr.write("\n")


class SetupCallback(Callback):
    """Store the run's configuration in its log folder when training begins or continues.

    The parameters are the original's; `now` is the date at the start of the files' names. Earlier
    configurations of a resumed run stay beside the new ones.
    """

    def __init__(
        self, resume: bool, now: str, logdir: Path, ckptdir: Path, cfgdir: Path, config: RunConfig
    ) -> None:
        self.resume, self.now, self.config = resume, now, config
        self.logdir, self.ckptdir, self.cfgdir = Path(logdir), Path(ckptdir), Path(cfgdir)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the configurations, on the first process only.

        A checkpoint to resume from has been read by now, so it fits the configuration.
        """
        if trainer.is_global_zero:
            self.ckptdir.mkdir(parents=True, exist_ok=True)
            self.config.save(self.cfgdir, self.now)


class StepSeed(Callback):
    """Seed torch's own generator for each micro-batch, from (the run's seed, batch, rank).

    Dropout and models without sample indices use it. They get the same numbers however often images
    are logged, and wherever a run was interrupted.
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        place = batch_idx * trainer.world_size + trainer.global_rank
        # Knuth's multiplicative constant keeps runs with neighbouring seeds apart.
        seed = (self.seed * 2654435761 + place) % 2**63
        # torch.manual_seed would look for every kind of device.
        torch.default_generator.manual_seed(seed)
        if pl_module.device.type == "cuda":
            torch.cuda.manual_seed(seed)
        elif pl_module.device.type == "mps":
            torch.mps.manual_seed(seed)


class CUDACallback(Callback):
    """Report at the end how long training took and how much GPU memory it needed."""

    def __init__(self) -> None:
        self.start = 0.0
        self.first_step = 0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.start, self.first_step = time.monotonic(), trainer.global_step
        if pl_module.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(pl_module.device)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        seconds, steps = time.monotonic() - self.start, trainer.global_step - self.first_step
        line = f"{steps} steps in {seconds:.1f} s"
        if pl_module.device.type == "cuda":
            peak = torch.cuda.max_memory_allocated(pl_module.device) / 2**20
            line += f", at most {peak:.0f} MiB of GPU memory"
        log.info(line)
