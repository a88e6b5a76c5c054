"""A run from its configuration: check, build, train, test."""

from __future__ import annotations

import argparse
import logging
import math
import os
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from lightning_utilities.core.rank_zero import rank_zero_only
from omegaconf import OmegaConf
from pytorch_lightning.utilities.model_helpers import is_overridden

from ldm.training.callbacks import CUDACallback, SetupCallback, StepSeed
from ldm.training.checkpoints import Checkpoints, read_step
from ldm.training.checks import (
    check_captions,
    check_captions_early,
    check_config,
    check_folder,
    check_keys,
    make_folder,
)
from ldm.training.config import RunConfig, accepts, load_config, log_folder_of
from ldm.training.csv_log import CsvLogger
from ldm.training.latents import CacheLatents
from ldm.training.progress import Progress
from ldm.training.trainer import (
    DEFAULT_STEPS,
    accumulation,
    build_trainer,
    device_count,
    loggers,
    saving_options,
    trainer_settings,
)
from ldm.training.trainer_checks import check_trainer
from ldm.training.tuning import (
    DIFFERENCE,
    draw_class_images,
    network_rates,
    savers,
    tunes,
    wants_class_images,
)
from ldm.training.words import WordNorms, metadata
from ldm.util import UserError, instantiate_from_config

log = logging.getLogger(__name__)

# Tells the other processes of a run, which Lightning starts, the log folder of the first.
FOLDER_VARIABLE = "LDM_LOG_FOLDER"
DATE = "%Y-%m-%dT%H-%M-%S"


@dataclass(frozen=True)
class Run:
    """What a run consists of once it is set up.

    Attributes:
        folder: of its logs.
        resume: checkpoint to go on from.
    """

    config: RunConfig
    folder: Path
    resume: Path | None
    model: pl.LightningModule
    data: Any
    trainer: pl.Trainer
    checkpoints: Checkpoints


@dataclass(frozen=True)
class Batch:
    """How many images a step sees.

    Attributes:
        size: images in a micro-batch on one device.
        micro: micro-batches accumulated in a step.
        devices: processes over all nodes.
    """

    size: int
    micro: int
    devices: int

    @property
    def images(self) -> int:
        """Pictures in a step, over everything."""
        return self.size * self.micro * self.devices

    def __str__(self) -> str:
        return f"{self.micro} accumulated x {self.devices} devices x {self.size} in a batch"


def log_folder(options: argparse.Namespace, config: RunConfig) -> Path:
    """Return the folder of this run's logs: LOGDIR/[PROJECT/]<data><date>_<name><postfix>.

    Without --name it is that of the first configuration, and of the variant laid over it.
    """
    if FOLDER_VARIABLE in os.environ:
        return Path(os.environ[FOLDER_VARIABLE])
    if options.resume:
        return log_folder_of(options.resume)[0]
    data = config.run.data_name if options.datadir_in_name else ""
    name = options.name or (Path(options.base[0]).stem if options.base else "")
    if config.variant is not None and not options.name:
        name += f"-{config.variant.get('name', 'variant')}"
    stem = f"{data}{datetime.now():{DATE}}" + (f"_{name}" if name else "") + options.postfix
    parent = Path(options.logdir) / options.project
    folder, number = parent / stem, 2
    while folder.exists():  # two runs begun in the same second
        folder, number = parent / f"{stem}-{number}", number + 1
    return folder


@contextmanager
def mendable(where: str) -> Iterator[None]:
    """Within it a value out of range is the user's to mend: it came from the configuration."""
    try:
        yield
    except UserError:
        raise
    except ValueError as error:
        raise UserError(f"{where}: {error}") from error


def build_model(config: RunConfig) -> Any:
    """Return the model, with the base checkpoint's weights where there is one."""
    base = config.run.base_checkpoint
    pl.seed_everything(config.run.seed, verbose=False)
    with mendable("model"):
        if base:
            from ldm.checkpoint.loading import load_model

            model = load_model(OmegaConf.create({"model": config.model}), base)
        else:
            model = instantiate_from_config(config.model)
    model.seed = config.run.seed
    if model.strict_loading:  # a run's checkpoint holds only what is trained
        model.strict_loading = False
    return model.train()


def build_checked(config: RunConfig, sets: Mapping[str, Any]) -> Any:
    """Return the model; captions that do not serve it show before its weights are read."""
    with mendable("model"):
        check_keys(config, sets)
        checked = check_captions_early(config, sets)
    model = build_model(config)
    if not checked:
        check_captions(model, sets)
    return model


def build_data(config: RunConfig, training: bool) -> Any:
    """Return the data module with its sets built: folders are listed and images opened."""
    with mendable("data"):
        data = instantiate_from_config(config.data)
        data.setup()
    if training and "train" not in data.datasets:
        raise UserError("nothing to train on: the configuration has no data.params.train")
    return data


def _steps(settings: dict[str, Any], data: Any, batch: Batch) -> int:
    """Return the run's optimiser steps: `max_steps`, or `max_epochs` passes over the set."""
    if (settings.get("max_steps") or -1) > 0:
        return int(settings["max_steps"])
    epochs = settings.get("max_epochs") or -1
    if epochs > 0:
        return math.ceil(len(data.datasets["train"]) * epochs / batch.images)
    log.info(f"no max_steps is given: {DEFAULT_STEPS}, as in the paper")
    return DEFAULT_STEPS


def _set_rate(model: Any, config: RunConfig, batch: Batch) -> None:
    """Set the model's learning rate and say how it came about."""
    base = config.model.base_learning_rate
    model.learning_rate = base * (batch.images if config.run.scale_lr else 1)
    origin = f"{base:g} x {batch}" if config.run.scale_lr else "not scaled"
    log.info(f"effective learning rate {model.learning_rate:.4g} ({origin})")
    if tunes(model):
        log.info(network_rates(model))
    log.info(f"{batch.images} images a step ({batch})")


def _label_words(model: Any, config: RunConfig, batch: Batch, data: Any) -> None:
    """Let the words' files say where they come from."""
    manager = getattr(model, "embedding_manager", None)
    if manager is not None:
        pictures = list(getattr(data.datasets.get("train"), "files", tuple)())
        manager.metadata.update(metadata(config, model.learning_rate, batch.images, pictures))


def _callbacks(config: RunConfig, folder: Path, saving: Checkpoints, first_step: int) -> list[Any]:
    """Return the run's callbacks, the configuration's own last."""
    own = OmegaConf.create(config.lightning.callbacks)
    if "seed" not in own.image_logger.params and accepts(own.image_logger, "seed"):
        own.image_logger.params.seed = config.run.seed
    now = datetime.now().strftime(DATE)
    caching = {"folder": folder / "checkpoints", **config.lightning.latent_cache}
    return [
        SetupCallback(
            first_step > 0, now, folder, folder / "checkpoints", folder / "configs", config
        ),
        StepSeed(config.run.seed),
        CacheLatents(**caching),
        WordNorms(),
        Progress(),
        saving,
        CUDACallback(),
        *(instantiate_from_config(settings) for settings in own.values()),
    ]


def set_up(
    options: argparse.Namespace, config: RunConfig | None = None, folder: Path | None = None
) -> Run:
    """Check everything that can be checked cheaply, then build.

    Args:
        options: the command line.
        config: what `load_config` made of it, if that is known already.
        folder: of the logs, where it is known already.

    Raises UserError for whatever the user can mend.
    """
    config = config or load_config(options)
    check_config(config)
    settings = trainer_settings(config.lightning.trainer)
    check_trainer(settings)
    if config.run.threads:
        torch.set_num_threads(config.run.threads)
    torch.set_float32_matmul_precision("high" if config.run.tf32 else "highest")
    resume = log_folder_of(options.resume)[1] if options.resume else None
    first_step = read_step(resume) if resume else 0
    folder = folder or log_folder(options, config)
    check_folder(folder)
    if wants_class_images(config):
        draw_class_images(config, folder / "class")
    data = build_data(config, options.train)
    size, devices = config.data.params.batch_size, device_count(settings)
    batch = Batch(size, accumulation(config.lightning, settings, size, devices), devices)
    settings["accumulate_grad_batches"] = batch.micro
    settings["max_steps"] = _steps(settings, data, batch)
    model = build_checked(config, data.datasets)
    if first_process():
        make_folder(folder)
    _set_rate(model, config, batch)
    _label_words(model, config, batch, data)
    with mendable("lightning"):
        saving = Checkpoints(
            folder / "checkpoints", savers=savers(config), **saving_options(config.lightning)
        )
        callbacks = _callbacks(config, folder, saving, first_step)
    settings.setdefault("val_check_interval", saving.every)
    several = getattr(model, "embedding_manager", None) is not None
    trainer = build_trainer(
        settings,
        callbacks,
        loggers(config.lightning, folder, first_step),
        config.lightning.get("find_unused_parameters", several),
        devices,
    )
    return Run(config, folder, resume, model, data, trainer, saving)


def first_process() -> bool:
    """Tell whether this is the first of a run's processes, or the only one."""
    return getattr(rank_zero_only, "rank", 0) == 0


def quiet() -> None:
    """Leave out what Lightning says that is untrue or of no use here."""
    if not first_process():
        logging.getLogger().setLevel(logging.WARNING)
    for name in ("pytorch_lightning.utilities.rank_zero", "pytorch_lightning.accelerators.cuda"):
        logging.getLogger(name).setLevel(logging.WARNING)
    for text in (
        ".*in eval mode at the start of training.*",  # frozen parts belong there
        ".*Total length of `list` across ranks is zero.*",
        ".*does not have many workers.*",
        ".*isinstance.treespec, LeafSpec.*",
    ):
        warnings.filterwarnings("ignore", text)


def report(this: Run) -> None:
    """Say what training left behind."""
    monitor = getattr(this.model, "monitor", None)
    for logger in this.trainer.loggers:
        if isinstance(logger, CsvLogger) and monitor and (lowest := logger.lowest(monitor)):
            log.info(f"{monitor} was lowest, {lowest[1]:.5f}, at step {lowest[0]}")
    words = this.folder / "checkpoints" / "embeddings.pt"
    if words.exists():
        log.info(f"learned: {words}, and .safetensors beside it")
    difference = this.folder / "checkpoints" / DIFFERENCE
    if difference.exists():
        log.info(f"tuned: {difference}: draw with it by scripts/txt2img.py --difference")


def run(
    options: argparse.Namespace, config: RunConfig | None = None, folder: Path | None = None
) -> int:
    """Do what the command line asks, in one stage; arguments as `set_up`'s, result: exit status."""
    quiet()
    this = set_up(options, config, folder)
    testable = this.data.test_dataloader() and is_overridden("test_step", this.model)
    testing = bool(testable) and not options.no_test
    if not options.train and not testing:
        raise UserError("nothing to do: give -t to train")
    log.info(f"logs in {this.folder}")
    if options.train:
        os.environ[FOLDER_VARIABLE] = str(this.folder)
        try:
            checkpoint = str(this.resume) if this.resume else None
            this.trainer.fit(this.model, this.data, ckpt_path=checkpoint)
        finally:
            os.environ.pop(FOLDER_VARIABLE, None)
        if this.checkpoints.signal is not None:
            log.info(
                f"stopped at step {this.trainer.global_step}; go on with: "
                f"python main.py -t --resume {this.folder}"
            )
            return 128 + this.checkpoints.signal
        report(this)
    if testing:
        checkpoint = str(this.resume) if this.resume and not options.train else None
        this.trainer.test(this.model, this.data, ckpt_path=checkpoint, verbose=False)
        for name, value in this.trainer.callback_metrics.items():
            if name.startswith("test/"):
                log.info(f"{name} {float(value):.5f}")
    return 0
