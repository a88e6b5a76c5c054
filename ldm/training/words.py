"""Learned words during a run: their files at each save, their norms beside the loss."""

from __future__ import annotations

import hashlib
import json
import platform
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from omegaconf import OmegaConf

from ldm.training.config import RunConfig
from ldm.training.progress import logged


def metadata(
    config: RunConfig, rate: float, images_per_step: int, pictures: list[Path]
) -> dict[str, str]:
    """Return the facts that a word's file carries besides the word.

    Args:
        config: of the run.
        rate: effective learning rate.
        images_per_step: images in one optimiser step, over all devices.
        pictures: the training images' files.
    """
    from ldm.checkpoint.loading import checkpoint_hash

    base = config.run.base_checkpoint
    parts = {"model": config.model, "data": config.data}
    plain = {
        name: _portable(OmegaConf.to_container(part, resolve=True)) for name, part in parts.items()
    }
    text = json.dumps(plain, sort_keys=True, ensure_ascii=False)
    facts = {
        "base_checkpoint": Path(base).name if base else "",
        "base_checkpoint_hash": checkpoint_hash(base) if base else "",
        "config": text,
        "config_hash": hashlib.sha256(text.encode()).hexdigest()[:16],
        "seed": str(config.run.seed),
        "learning_rate": f"{rate:.6g}",
        "images_per_step": str(images_per_step),
        "pictures": json.dumps([_hash(path) for path in pictures]),
        "versions": f"python {platform.python_version()}, torch {torch.__version__}, "
        f"pytorch-lightning {version('pytorch-lightning')}",
    }
    return {name: value for name, value in facts.items() if value}


def _portable(node: Any) -> Any:
    """Return a configuration in which paths of this machine are cut to what others can read.

    Words are passed on: an absolute path would tell where its maker works, and the same run in
    another folder would seem another configuration.
    """
    if isinstance(node, dict):
        return {name: _portable(value) for name, value in node.items()}
    if isinstance(node, list):
        return [_portable(value) for value in node]
    if isinstance(node, str) and Path(node).is_absolute():
        path = Path(node)
        return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else path.name
    return node


def _hash(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()[:16]


def save_words(trainer: pl.Trainer, module: Any, folder: Path) -> None:
    """Write `embeddings` and `embeddings_gs-<step>`, as .pt (the original's) and .safetensors."""
    manager = getattr(module, "embedding_manager", None)
    if manager is None:
        return
    for stem in ("embeddings", f"embeddings_gs-{trainer.global_step}"):
        for suffix in (".pt", ".safetensors"):
            manager.save(folder / f"{stem}{suffix}")


class WordNorms(pl.Callback):
    """Log each word's norm against the vocabulary's, where the loss is logged.

    A norm far beyond the vocabulary's drowns the rest of the prompt (Kim et al., arXiv 2512.13672).
    """

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Log the norms every `log_every_n_steps` steps."""
        manager = getattr(pl_module, "embedding_manager", None)
        if manager is not None and logged(trainer, batch_idx):
            pl_module.log_dict({f"word/{k}": float(v) for k, v in manager.norms().items()})
