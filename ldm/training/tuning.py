"""What a run saves beside its checkpoint: its words, and the weight delta of tuned networks."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, TypeGuard

import pytorch_lightning as pl

from ldm.checkpoint.names import DELTA_FILE
from ldm.checkpoint.weight_delta import save_weight_delta
from ldm.training.checkpoints import Saver
from ldm.training.each_word import EachWord, is_joint
from ldm.training.words import manager_of, save_words

if TYPE_CHECKING:
    from ldm.models.diffusion.ddpm import LatentDiffusion
    from ldm.training.config import RunConfig


def save_delta(
    trainer: pl.Trainer, module: pl.LightningModule, folder: Path, *, base: str, half: bool
) -> None:
    """Write the weight delta from the checkpoint `base`; nothing if only words are trained."""
    if not tunes(module):
        return
    assert module.embedding_manager is not None
    facts = {"step": str(trainer.global_step)}
    if found := module.embedding_manager.metadata.get("config_hash"):
        facts["config_hash"] = found
    save_weight_delta(module, folder / DELTA_FILE, Path(base), half=half, facts=facts)


def tunes(module: pl.LightningModule) -> TypeGuard[LatentDiffusion]:
    """Tell whether a model's networks are trained beside its words."""
    return manager_of(module) is not None and bool(getattr(module, "trains_model", False))


def network_rates(model: LatentDiffusion) -> str:
    """Return a text with the learning rates at which the networks are tuned."""
    rate = model.model_lr if model.text_lr is None else model.text_lr
    trained = any(weight.requires_grad for weight in model.cond_stage_model.parameters())
    texts = f"text encoder's {rate:.4g}" if trained else "text encoder frozen"
    return f"U-Net's learning rate {model.model_lr:.4g}, {texts} (not scaled)"


def savers(config: RunConfig) -> tuple[Saver, ...]:
    """Return what a run writes at each save."""
    if is_joint(config):
        return (EachWord(config),)
    base, half = config.run.base_checkpoint, config.run.half_difference
    return (save_words, partial(save_delta, base=base, half=half)) if base else (save_words,)
