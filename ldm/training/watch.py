"""End a run whose numbers are not finite, and report words that do not move."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from torch import Tensor

from ldm.training.callbacks import is_logged
from ldm.training.words import manager_of
from ldm.util import UserError

log = logging.getLogger(__name__)

# Precisions whose range or rounding explains numbers that are not finite.
HALF = ("16", "bf16", "transformer-engine")


class Watch(Callback):
    """Stop at the first loss or trained word that is not finite; keep the last finite word.

    The check of each step stays on the device. The result is read after each step on a CPU; on
    other devices where the loss is logged, and before each save. The error names the first step at
    which a number was not finite. In several processes each sees the same words.

    Args:
        folder: where the last finite word is written, as `embeddings` of the step before.
        first_step: optimizer step from which the run is resumed.
    """

    def __init__(self, folder: Path, first_step: int = 0) -> None:
        self.folder, self.first_step = folder, first_step
        self.good: list[Tensor] = []
        self.start: list[Tensor] = []
        self.bad_at = torch.zeros((), dtype=torch.int64)
        self.loss_bad = torch.zeros((), dtype=torch.bool)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Remember the words as they are."""
        self.good = [word.detach().clone() for word in _trained(pl_module)]
        self.start = [word.clone() for word in self.good]
        self.bad_at = self.bad_at.to(pl_module.device)
        self.loss_bad = self.loss_bad.to(pl_module.device)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Check the loss and the words. Results are copied from the device only at times."""
        self.note(pl_module, outputs["loss"].detach(), trainer.global_step)
        if pl_module.device.type == "cpu" or is_logged(trainer, batch_idx):
            self.check(trainer, pl_module)

    @torch.no_grad()
    def note(self, module: LightningModule, loss: Tensor, step: int) -> None:
        """Note the first step with a number that is not finite, and the words before it."""
        words, loss_ok = _trained(module), torch.isfinite(loss).all()
        ok = loss_ok
        for word in words:
            ok = ok & torch.isfinite(word).all()
        first = (self.bad_at == 0) & ~ok
        self.loss_bad = torch.where(first, ~loss_ok, self.loss_bad)
        self.bad_at = torch.where(first, step, self.bad_at)
        fine = self.bad_at == 0
        pairs = zip(words, self.good, strict=True)
        self.good = [torch.where(fine, word, good) for word, good in pairs]

    def check(self, trainer: Trainer, module: LightningModule) -> None:
        """Raise UserError if a step so far gave a number that is not finite."""
        bad = int(self.bad_at)
        if trainer.world_size > 1 and trainer.strategy.reduce_boolean_decision(bad > 0, all=False):
            bad = bad or trainer.global_step
        if not bad:
            return
        what = "the loss" if bool(self.loss_bad) else "a word"
        kept = self._keep(trainer, module, bad - 1)
        raise UserError(f"stopped at step {bad}: {what} is not finite. {_cause(trainer)}. {kept}")

    def check_networks(self, trainer: Trainer, module: LightningModule) -> None:
        """Raise UserError if a network's trained weight is not finite.

        The loss shows it only in the next step.
        """
        words = {id(word) for word in _trained(module)}
        for name, weight in module.named_parameters():
            network = weight.requires_grad and id(weight) not in words
            if network and not torch.isfinite(weight).all():
                raise UserError(
                    f"stopped at step {trainer.global_step}: {name} is not finite. "
                    f"{_cause(trainer)}. The checkpoints in {self.folder} are of the last save"
                )

    def _keep(self, trainer: Trainer, module: LightningModule, step: int) -> str:
        """Write the last finite words; return a sentence that says where."""
        manager = manager_of(module)
        if manager is None or not trainer.is_global_zero:
            return f"The checkpoints in {self.folder} are those of the last save"
        with torch.no_grad():
            for word, good in zip(_trained(module), self.good, strict=True):
                word.copy_(good)
        manager.set_step(step)
        for suffix in (".pt", ".safetensors"):
            manager.save(self.folder / f"embeddings{suffix}")
        return f"The last finite word, of step {step}, is {self.folder / 'embeddings.safetensors'}"

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Warn of words that did not move."""
        words = _trained(pl_module)
        steps = trainer.global_step - self.first_step
        if steps < 1 or not words or not trainer.is_global_zero:
            return
        if all(torch.equal(word, start) for word, start in zip(words, self.start, strict=True)):
            log.warning(
                f"nothing was learned: no word moved in {steps} steps. Raise "
                "model.base_learning_rate, or check scheduler_config"
            )


class WatchEach(Watch):
    """Stops a word that is not finite, at its last finite value; the others continue."""

    @torch.no_grad()
    def note(self, module: LightningModule, loss: Tensor, step: int) -> None:
        """Keep finite words."""
        pairs = zip(_words(module), self.good, strict=True)
        self.good = [torch.where(torch.isfinite(word).all(), word, good) for word, good in pairs]

    @torch.no_grad()
    def check(self, trainer: Trainer, module: LightningModule) -> None:
        """Reset and stop words that are not finite. Raise UserError if no word is left."""
        words = _words(module)
        names = list(trainer.datamodule.datasets["train"].concepts)  # type: ignore[attr-defined]
        for name, word, good in zip(names, words, self.good, strict=True):
            if not bool(torch.isfinite(word).all()):
                word.copy_(good)
                word.requires_grad_(False)
                log.error(f"{name}: stopped at step {trainer.global_step}: its word is not finite")
        if not any(word.requires_grad for word in words):
            raise UserError(f"stopped at step {trainer.global_step}: no word is finite any more")


def _words(module: LightningModule) -> list[Tensor]:
    """Return the vectors of all words, stopped ones too."""
    manager = manager_of(module)
    assert manager is not None
    return list(manager.string_to_param_dict.values())


def _trained(module: LightningModule) -> list[Tensor]:
    """Return the words' trained vectors; an empty list for a model without words."""
    manager = manager_of(module)
    return [p for p in manager.parameters() if p.requires_grad] if manager is not None else []


def _cause(trainer: Trainer) -> str:
    """Return the likely cause as a sentence."""
    if str(trainer.precision).startswith(HALF):
        return (
            f"Half precision ({trainer.precision}) is the likely cause: train with --precision 32, "
            "or bf16-mixed where the GPU has it"
        )
    rates = [group["lr"] for optimizer in trainer.optimizers for group in optimizer.param_groups]
    return (
        f"The learning rate ({max(rates, default=0.0):.3g}) is probably too high: lower "
        "model.base_learning_rate"
    )
