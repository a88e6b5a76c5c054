"""The parts of a run that learns several independent words: each word's files and watch.

`ldm.training.many` makes the configuration of such a run.
"""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytorch_lightning as pl
import torch
from omegaconf import DictConfig, OmegaConf
from torch import Tensor

from ldm.training.callbacks import logged
from ldm.training.merge import WORDS
from ldm.training.options import Batch
from ldm.training.watch import Watch
from ldm.training.words import manager_of, metadata, write_forms
from ldm.util import UserError, instantiate_from_config
from ldm.words.manager import EmbeddingManager

if TYPE_CHECKING:
    from ldm.training.config import RunConfig

log = logging.getLogger(__name__)

SETS = ("train", "validation")


def is_joint(config: RunConfig) -> bool:
    """Tell whether a run learns several independent words."""
    return int(config.model.params.get("independent_words", 1)) > 1


def alone_again(config: RunConfig, name: str) -> RunConfig:
    """Return the configuration of one word of a joint run, as of a run of its own."""
    count = int(config.model.params.independent_words)
    sections = OmegaConf.create(OmegaConf.to_container(config.sections))
    assert isinstance(sections, DictConfig)
    own, params = sections.run.placeholder, sections.data.params
    place = list(params.train.params.concepts).index(name)
    words = OmegaConf.select(sections, WORDS).params
    words.placeholder_strings = [own]
    words.initializer_words = [words.initializer_words[place]]
    for split in SETS:
        if params.get(split):
            params[split] = params[split].params.concepts[name]
            params[split].params.placeholder_token = own
    params.batch_size //= count
    sections.model.params.pop("independent_words")
    if config.run.scale_lr:
        sections.model.base_learning_rate *= count
    batch = Batch(config.batch.size // count, config.batch.micro, config.batch.devices)
    return replace(config, sections=sections, batch=batch)


class EachWord:
    """Writes each word of a joint run into its own folder at each save."""

    def __init__(self, config: RunConfig) -> None:
        self.config = config
        self._facts: dict[str, dict[str, str]] = {}

    def __call__(self, trainer: pl.Trainer, module: pl.LightningModule, folder: Path) -> None:
        """Write `NAME/checkpoints/embeddings` and `embeddings_gs-<step>`, in both formats."""
        joint, dataset = manager_of(module), trainer.datamodule.datasets["train"]  # type: ignore[attr-defined]
        assert joint is not None
        tokens = joint.placeholders
        embedder: Any = joint.embedder
        names = embedder.placeholders  # the managers below set their own
        for token, (name, concept) in zip(tokens, dataset.concepts.items(), strict=True):
            own = alone_again(self.config, name)
            manager: EmbeddingManager = instantiate_from_config(
                OmegaConf.select(own.sections, WORDS), embedder=embedder
            )
            (parameter,) = manager.embedding_parameters()
            with torch.no_grad():
                parameter.copy_(joint.word(token))
            manager.set_step(trainer.global_step)
            if name not in self._facts:
                rate: Any = module.learning_rate
                files = list(concept.files())
                self._facts[name] = metadata(own, rate, own.batch.images, files)
            own_folder = folder.parent / name / "checkpoints"
            write_forms(manager, own_folder, trainer.global_step, self._facts[name])
        embedder.placeholders = names


class WatchEach(Watch):
    """Stops a word that is not finite, at its last finite value; the others continue."""

    @torch.no_grad()
    def on_batch(
        self, trainer: pl.Trainer, module: pl.LightningModule, outputs: Any, batch_idx: int
    ) -> None:
        """Keep finite words. Values are copied from a GPU only when the loss is logged."""
        pairs = zip(_words(module), self.good, strict=True)
        self.good = [torch.where(torch.isfinite(word).all(), word, good) for word, good in pairs]
        if module.device.type == "cpu" or logged(trainer, batch_idx):
            self.check(trainer, module)

    @torch.no_grad()
    def check(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
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


def _words(module: pl.LightningModule) -> list[Tensor]:
    """Return the vectors of all words, stopped ones too."""
    manager = manager_of(module)
    assert manager is not None
    return list(manager.string_to_param_dict.values())
