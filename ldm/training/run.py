"""A run from its configuration: build, train, test."""

from __future__ import annotations

import argparse
import logging
from datetime import datetime
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from omegaconf import OmegaConf
from pytorch_lightning.loggers import TensorBoardLogger

from ldm.training.checkpoints import Checkpoints, read_step
from ldm.training.config import RunConfig, load_config
from ldm.training.csv_log import CsvLogger
from ldm.training.latents import CacheLatents
from ldm.training.progress import Progress
from ldm.util import UserError, instantiate_from_config

log = logging.getLogger(__name__)


def log_folder(options: argparse.Namespace) -> Path:
    """Return the folder of this run's logs."""
    if options.resume:
        path = Path(options.resume)
        return path if path.is_dir() else path.parent.parent
    name = options.name or Path(options.base[0]).stem
    date = datetime.now().strftime("%Y-%m-%dT%H-%M-%S")
    return Path(options.logdir) / f"{date}_{name}{options.postfix}"


def build_trainer(config: RunConfig, folder: Path, first_step: int) -> pl.Trainer:
    """Return the Lightning trainer with this run's callbacks and loggers."""
    settings: dict[str, Any] = OmegaConf.to_container(config.lightning.trainer, resolve=True)  # type: ignore[assignment]
    settings.setdefault("max_steps", 5000)
    saving = OmegaConf.select(config.lightning, "modelcheckpoint.params") or {}
    caching = {"folder": folder / "checkpoints", **(config.lightning.get("latent_cache") or {})}
    checkpoints = Checkpoints(folder / "checkpoints", **saving)
    callbacks = [checkpoints, Progress(), CacheLatents(**caching)]
    # Lightning counts batches here, not steps.
    micro = settings.get("accumulate_grad_batches", 1)
    settings.setdefault("val_check_interval", checkpoints.every * micro)
    loggers = [
        TensorBoardLogger(str(folder), name="logger", version="", purge_step=first_step or None),
        CsvLogger(folder / "logger" / "metrics.csv", first_step),
    ]
    return pl.Trainer(
        **settings,
        max_epochs=-1,
        callbacks=callbacks,
        logger=loggers,
        enable_progress_bar=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        check_val_every_n_epoch=None,
        num_sanity_val_steps=0,
    )


def set_rate(model: pl.LightningModule, config: RunConfig, trainer: pl.Trainer) -> None:
    """Set the model's learning rate and say how it came about."""
    base, batch = config.model.base_learning_rate, config.data.params.batch_size
    devices, micro = trainer.world_size, trainer.accumulate_grad_batches
    rate = base * devices * micro * batch if config.run.scale_lr else base
    model.learning_rate = rate
    formula = f"{micro} accumulated x {devices} devices x {batch} a batch"
    log.info(
        f"learning rate {rate:.3g}, from {base:.3g}"
        + (f" x {formula}" if config.run.scale_lr else " as it is")
        + f"; {micro * devices * batch} pictures a step ({formula}); {trainer.max_steps} steps"
    )


def run(options: argparse.Namespace) -> int:
    """Do what the command line asks."""
    config = load_config(options)
    if config.run.get("threads"):
        torch.set_num_threads(config.run.threads)
    pl.seed_everything(config.run.seed)
    folder = log_folder(options)
    last = folder / "checkpoints" / "last.ckpt" if options.resume else None
    if last is not None and not last.exists():
        raise UserError(f"nothing to resume at {last}")
    trainer = build_trainer(config, folder, read_step(last) if last else 0)
    model = instantiate_from_config(config.model)
    model.seed = config.run.seed
    if model.strict_loading:  # a checkpoint holds only what is trained
        model.strict_loading = False
    model.train()
    set_rate(model, config, trainer)
    data = instantiate_from_config(config.data)
    log.info(f"logs in {folder}")
    trainer.fit(model, data, ckpt_path=str(last) if last else None)
    return 0
