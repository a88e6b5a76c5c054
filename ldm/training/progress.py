"""What a run says while it runs: step, loss, steps per second, remaining time."""

from __future__ import annotations

import logging
import sys
import time
from datetime import timedelta
from typing import Any

import pytorch_lightning as pl

from ldm.training.lightning_private import log_interval

log = logging.getLogger(__name__)


def logged(trainer: pl.Trainer, batch_idx: int) -> bool:
    """Tell, at a batch's end, whether it ends a step whose values the trainer logs."""
    whole = (batch_idx + 1) % trainer.accumulate_grad_batches == 0
    return whole and trainer.global_step % log_interval(trainer) == 0


class Progress(pl.Callback):
    """A line on a terminal, renewed in place; in a file or a pipe, a line now and then.

    Also logs `train/steps_per_second` beside the loss.

    Args:
        seconds: least time between two lines, on a terminal and elsewhere.
    """

    def __init__(self, seconds: tuple[float, float] = (0.5, 15.0)) -> None:
        self.terminal = sys.stderr.isatty()
        self.interval = seconds[0 if self.terminal else 1]
        self.first_step, self.start, self.shown = 0, 0.0, 0.0
        self.last = (0.0, 0)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Start the clock."""
        self.first_step, self.start = trainer.global_step, time.monotonic()
        self.last = (self.start, trainer.global_step)

    def _rate(self, trainer: pl.Trainer, now: float) -> float:
        """Steps per second since the last logged row."""
        then, step = self.last
        return (trainer.global_step - step) / max(now - then, 1e-9)

    def line(self, trainer: pl.Trainer, loss: float, now: float) -> str:
        """Return the progress line."""
        done, last = trainer.global_step, trainer.max_steps
        rate = (done - self.first_step) / max(now - self.start, 1e-9)
        left = timedelta(seconds=round((last - done) / rate)) if rate else "unknown"
        return f"step {done}/{last}  loss {loss:.4f}  {rate:.2f} steps/s  remaining {left}"

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Show the line if it is time, and log the speed where the loss is logged."""
        if (batch_idx + 1) % trainer.accumulate_grad_batches:
            return
        now, step = time.monotonic(), trainer.global_step
        if logged(trainer, batch_idx):
            # One based: the row of step n holds the state after n steps.
            pl_module.log("step", float(step))
            pl_module.log("train/steps_per_second", self._rate(trainer, now))
            self.last = (now, step)
        if not trainer.is_global_zero:
            return
        if now - self.shown >= self.interval or step == trainer.max_steps:
            self.shown = now
            self._show(self.line(trainer, float(outputs["loss"]), now))

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Put the validation's values in the row of the last step."""
        pl_module.log("step", float(trainer.global_step))

    def _show(self, line: str) -> None:
        if self.terminal:
            sys.stderr.write(f"\r{line:<78}")
            sys.stderr.flush()
        else:
            log.info(line)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Leave the last line standing."""
        if self.terminal and trainer.is_global_zero:
            sys.stderr.write("\n")
