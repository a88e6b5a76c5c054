"""At the end of a run, the word with the lowest loss on noise that training has not seen."""

from __future__ import annotations

import logging
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor

from ldm.training.fixed_loss import FixedLoss
from ldm.training.words import manager_of

log = logging.getLogger(__name__)

# Samples that no run reaches, so that their noise is not trained on.
HELD_OUT = 2**40


class KeepBest(pl.Callback):
    """Set the words to the best of their late states when the last step is done.

    The states are those of every `every`-th step from `start` on, and the mean of all states from
    `start` on (Polyak & Juditsky 1992). The best has the lowest loss on a fixed batch of the
    validation set, whose noise no training sample has. The best so far is part of `last.ckpt`. A
    run that a signal stops keeps its present word.

    Args:
        start: share of the run after which states count, in [0, 1).
        every: optimizer steps between states, at least 1.
        samples: images in the batch, at least 1.
        average: let the mean take part.

    Raises:
        ValueError: an argument out of range.
    """

    def __init__(
        self, start: float = 0.5, every: int = 10, samples: int = 32, average: bool = True
    ) -> None:
        if every < 1 or samples < 1:
            raise ValueError(f"every and samples must be at least 1, got {every} and {samples}")
        if not 0 <= start < 1:
            raise ValueError(f"start must lie in [0, 1), got {start}")
        self.start, self.every, self.samples, self.average = start, every, samples, average
        self.best: tuple[float, str, list[Tensor]] | None = None
        self.mean: tuple[int, list[Tensor]] = (0, [])
        self._loss: FixedLoss | None = None

    def state_dict(self) -> dict[str, Any]:
        """Return what `last.ckpt` keeps."""
        return {"best": self.best, "mean": self.mean}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take the states of the run that is resumed."""
        self.best, self.mean = state_dict["best"], state_dict["mean"]

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Fix the batch."""
        self._loss = FixedLoss(trainer, pl_module, self.samples, HELD_OUT)

    @torch.no_grad()
    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """After a step, count its state; after the last one, set the words to the best."""
        manager, step = manager_of(pl_module), trainer.global_step
        whole = (batch_idx + 1) % trainer.accumulate_grad_batches == 0
        if manager is None or not whole or step < self.start * trainer.max_steps:
            return
        words = [word.detach() for word in manager.embedding_parameters()]
        if self.average:
            count, mean = self.mean
            pairs = zip(mean or words, words, strict=True)
            self.mean = (count + 1, [m + (w - m) / (count + 1) for m, w in pairs])
        last = step == trainer.max_steps
        if last or step % self.every == 0:
            self._compare(pl_module, f"step {step}", words, words)
        if last and self.average:
            self._compare(pl_module, f"the mean of {self.mean[0]} steps", words, self.mean[1])
        if last and self.best is not None:
            loss, name, best = self.best
            for word, value in zip(words, best, strict=True):
                word.copy_(value)
            log.info(f"the word is that of {name}: loss {loss:.5f} on held-out noise")

    def _compare(
        self, module: pl.LightningModule, name: str, words: list[Tensor], state: list[Tensor]
    ) -> None:
        """Keep a state if its loss is the lowest; the words stay as they are."""
        assert self._loss is not None
        before = [word.clone() for word in words]
        for word, value in zip(words, state, strict=True):
            word.copy_(value)
        loss = self._loss(module)
        if self.best is None or loss < self.best[0]:
            self.best = (loss, name, [word.clone() for word in words])
        for word, value in zip(words, before, strict=True):
            word.copy_(value)
