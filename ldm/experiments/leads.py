"""Ideas for fewer steps that `--variant fast` does not use: callbacks of a run.

`configs/protocol/fast.yaml` measures them beside the parts of `fast`, and docs/performance.md has
the results.
"""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from torch import Tensor

from ldm.models.diffusion.ddpm import LatentDiffusion
from ldm.training.callbacks import StepCallback
from ldm.training.words import manager_of
from ldm.util import at_least
from ldm.words.manager import EmbeddingManager


def _words(module: LightningModule) -> EmbeddingManager:
    manager = manager_of(module)
    assert manager is not None
    return manager


class CrossInitialization(Callback):
    """Start each word at the text encoder's output for its initializer word (Pang et al. 2023).

    The output is that at the word's own place, of a text of this word alone. The encoder's output
    must be as wide as its token vectors.
    """

    @torch.no_grad()
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.global_step:
            return
        words = _words(pl_module)
        encoder: Any = words.embedder
        for placeholder, initializer in words.initializer_words.items():
            ids = encoder.tokenize([initializer])
            places = ids[0] == encoder.word_ids(initializer)[0]
            words.string_to_param_dict[placeholder].copy_(encoder(ids)[0][places][:1])


class MeanOfLate(StepCallback):
    """End at the mean of each word over the last `steps` steps (Polyak and Juditsky 1992)."""

    def __init__(self, steps: int) -> None:
        at_least(1, steps=steps)
        self.steps = steps
        self.sums: list[Tensor] = []

    def state_dict(self) -> dict[str, Any]:
        return {"sums": self.sums}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.sums = state_dict["sums"]

    @torch.no_grad()
    def on_step(self, trainer: Trainer, module: LightningModule, loss: Tensor, logs: bool) -> None:
        if trainer.global_step <= trainer.max_steps - self.steps:
            return
        words = list(_words(module).embedding_parameters())
        self.sums = self.sums or [torch.zeros_like(word) for word in words]
        for total, word in zip(self.sums, words, strict=True):
            total += word
            if trainer.global_step == trainer.max_steps:
                word.copy_(total / self.steps)


class FixedNorm(StepCallback):
    """Scale each vector to its initializer word's norm after each step."""

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        words = _words(pl_module).embedding_parameters()
        self.norms = [word.detach().norm(dim=-1, keepdim=True) for word in words]

    @torch.no_grad()
    def on_step(self, trainer: Trainer, module: LightningModule, loss: Tensor, logs: bool) -> None:
        words = _words(module).embedding_parameters()
        for word, norm in zip(words, self.norms, strict=True):
            word.mul_(norm / word.norm(dim=-1, keepdim=True))


class BestStep(StepCallback):
    """End at the value of each word that has the lowest loss on samples that no step has.

    Every `every` steps of the second half, the loss is computed on the `batches` batches that would
    follow the last step.
    """

    def __init__(self, every: int, batches: int) -> None:
        at_least(1, every=every, batches=batches)
        self.every, self.batches = every, batches
        self.best: dict[str, tuple[float, Tensor]] = {}

    def state_dict(self) -> dict[str, Any]:
        return {"best": self.best}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.best = state_dict["best"]

    @torch.no_grad()
    def on_step(self, trainer: Trainer, module: LightningModule, loss: Tensor, logs: bool) -> None:
        assert isinstance(module, LatentDiffusion)
        step, last = trainer.global_step, trainer.max_steps
        if step <= last // 2 or (step % self.every and step != last):
            return
        words, data = _words(module), trainer.datamodule  # type: ignore[attr-defined]
        losses: dict[str, float] = defaultdict(float)
        for batch in data.batches("train", last, self.batches):
            found = module.sample_losses(batch, words).tolist()
            for caption, own in zip(batch[module.cond_stage_key], found, strict=True):
                for placeholder in words.named(caption):
                    losses[placeholder] += own
        for placeholder, total in losses.items():
            word = words.string_to_param_dict[placeholder]
            if placeholder not in self.best or total < self.best[placeholder][0]:
                self.best[placeholder] = total, word.detach().clone()
            if step == last:
                word.copy_(self.best[placeholder][1])
