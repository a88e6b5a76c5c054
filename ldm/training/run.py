"""A run from its configuration: check, build, train, test; in one stage or two.

In two stages, such as pivotal tuning, the first stage learns the word, and the second stage trains
with the changes of `second_stage`. Each stage is saved and resumed as a run of its own. The second
one's log folder lies in the first one's.
"""

from __future__ import annotations

import gc
import logging
import math
import os
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from omegaconf import OmegaConf
from pytorch_lightning.utilities.model_helpers import is_overridden

from ldm.checkpoint.names import DELTA_FILE
from ldm.models.base import TrainedModel
from ldm.models.diffusion.ddpm import LatentDiffusion
from ldm.training.callbacks import CUDACallback, Progress, SetupCallback, StepSeed
from ldm.training.checkpoints import Checkpoints, network_rates, savers, tunes
from ldm.training.checks import check_captions, check_captions_early, check_keys
from ldm.training.class_images import device_of, with_class_images
from ldm.training.compiling import compile_unet
from ldm.training.config import DATE, RunConfig
from ldm.training.csv_log import CsvLogger
from ldm.training.datamodule import DataModuleFromConfig
from ldm.training.folder import working_folder
from ldm.training.latents import CacheLatents
from ldm.training.memory import cast_networks, choose, choose_checkpointing, remark, what_fits
from ldm.training.processes import FIRST_VARIABLE, FOLDER_VARIABLE, first_process
from ldm.training.resume import Saved, check_fits, read_checkpoint, warn_of_changed_images
from ldm.training.trainer import (
    DEFAULT_STEPS,
    build_trainer,
    check_machine,
    loggers,
    saving_options,
)
from ldm.training.validate import wants_class_images
from ldm.training.watch import Watch, WatchEach
from ldm.training.words import WordNorms, is_joint, manager_of, metadata
from ldm.util import UserError, check_output_folder, instantiate_from_config

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Run:
    """A run that is set up; `resume` is the checkpoint to resume from."""

    config: RunConfig
    resume: Saved | None
    model: TrainedModel
    data: DataModuleFromConfig
    trainer: pl.Trainer
    checkpoints: Checkpoints


@contextmanager
def user_errors(where: str) -> Iterator[None]:
    """Turn a ValueError about a value of the configuration into a UserError that says where."""
    try:
        yield
    except UserError:
        raise
    except ValueError as error:
        raise UserError(f"{where}: {error}") from error


def build_model(config: RunConfig, weights: torch.dtype | None = None) -> TrainedModel:
    """Return the model, with the weights of the base checkpoint if there is one.

    `weights` is the type of the frozen networks' weights; float32 by default.
    """
    base = config.run.base_checkpoint
    pl.seed_everything(config.run.seed, verbose=False)
    with user_errors("model"):
        if base:
            from ldm.checkpoint.loading import load_model

            model = load_model(OmegaConf.create({"model": config.model}), base, dtype=weights)
        else:
            model = instantiate_from_config(config.model)
    if weights is not None:
        cast_networks(model, weights)
    model.seed = config.run.seed
    model.strict_loading = False  # a run's checkpoint holds only what is trained
    return model.train()


def build_checked(
    config: RunConfig, sets: Mapping[str, Any], weights: torch.dtype | None = None
) -> TrainedModel:
    """Return the model; captions that do not fit it are found before its weights are read."""
    with user_errors("model"):
        check_keys(config, sets)
        checked = check_captions_early(config, sets)
    model = build_model(config, weights)
    if not checked and isinstance(model, LatentDiffusion):  # an autoencoder reads no captions
        check_captions(model, sets)
    return model


def build_data(config: RunConfig) -> DataModuleFromConfig:
    """Return the data module with its sets built: folders are listed and images opened."""
    with user_errors("data"):
        data = instantiate_from_config(config.data)
        data.setup()
    if config.train and "train" not in data.datasets:
        raise UserError("nothing to train on: the configuration has no data.params.train")
    return data


def _steps(config: RunConfig, data: DataModuleFromConfig) -> int:
    """Return the run's optimizer steps: `max_steps`, or `max_epochs` passes over the set."""
    if (config.trainer.get("max_steps") or -1) > 0:
        return int(config.trainer["max_steps"])
    epochs = config.trainer.get("max_epochs") or -1
    if epochs > 0:
        return math.ceil(len(data.datasets["train"]) * epochs / config.batch.images)
    log.info(f"no max_steps is given: {DEFAULT_STEPS}, as in the paper")
    return DEFAULT_STEPS


def _describe(
    config: RunConfig, model: TrainedModel, data: DataModuleFromConfig, resumed: bool
) -> None:
    """Set and log the learning rate, and set the facts that the words' files hold."""
    base, batch = config.model.base_learning_rate, config.batch
    model.learning_rate = base * (batch.images if config.run.scale_lr else 1)
    origin = f"{base:g} x {batch}" if config.run.scale_lr else "not scaled"
    log.info(f"effective learning rate {model.learning_rate:.4g} ({origin})")
    if tunes(model):
        log.info(network_rates(model))
    log.info(f"{batch.images} images a step ({batch})")
    manager = manager_of(model)
    if manager is None:
        return
    images = list(getattr(data.datasets.get("train"), "files", tuple)())
    manager.metadata.update(metadata(config, model.learning_rate, images))
    if not resumed:
        for line in manager.origins():
            log.info(line)
    elif first_process():
        warn_of_changed_images(config.folder / "checkpoints", images)


def _callbacks(config: RunConfig, first_step: int) -> list[pl.Callback]:
    """Return the run's callbacks, the configuration's own last."""
    folder = config.folder / "checkpoints"
    kind = WatchEach if is_joint(config) else Watch
    watch, now = kind(folder, first_step), datetime.now().strftime(DATE)
    options = {"savers": savers(config), "watch": watch, **saving_options(config.lightning)}
    with user_errors("lightning"):
        return [
            SetupCallback(
                first_step > 0, now, config.folder, folder, config.folder / "configs", config
            ),
            StepSeed(config.run.seed),
            CacheLatents(**{"folder": folder, **config.lightning.latent_cache}),
            WordNorms(),
            watch,
            Progress(),
            Checkpoints(folder, **options),
            CUDACallback(),
            *_own_callbacks(config),
        ]


def _own_callbacks(config: RunConfig) -> Iterator[pl.Callback]:
    """Build the callbacks that the configuration names; an error names its entry."""
    for name, callback in config.lightning.callbacks.items():
        if callback:
            with user_errors(f"lightning.callbacks.{name}.params"):
                yield instantiate_from_config(callback)


def set_up(config: RunConfig) -> Run:
    """Check what can be checked cheaply, then build.

    Raises UserError for whatever the user can change.
    """
    check_machine(config.trainer)
    if config.run.threads:
        torch.set_num_threads(config.run.threads)
    torch.set_float32_matmul_precision("high" if config.run.tf32 else "highest")
    device = device_of(config)
    precision = choose(config, device)
    saved = read_checkpoint(config.resume) if config.resume else None
    first_step = saved.step if saved else 0
    check_output_folder(config.folder, "log folder")
    callbacks = _callbacks(config, first_step)
    if wants_class_images(config.sections):
        config = with_class_images(config, config.folder / "class")
        callbacks[0] = _callbacks(config, first_step)[0]
    data = build_data(config)
    steps = _steps(config, data)
    model = build_checked(config, data.datasets, precision.weights)
    if line := remark(model, precision, device):
        log.info(line)
    choose_checkpointing(model, config.batch.size, device)
    if config.run.compile:
        compile_unet(model, device)
    if saved:
        check_fits(saved, model)
    _describe(config, model, data, saved is not None)
    saving = next(callback for callback in callbacks if isinstance(callback, Checkpoints))
    # With one word every batch uses all that is trained.
    trained = sum(weight.requires_grad for weight in model.parameters())
    several = manager_of(model) is not None and trained > 1
    lightning = {} if precision.trainer is None else {"precision": precision.trainer}
    trainer = build_trainer(
        {"val_check_interval": saving.every, **config.trainer, "max_steps": steps, **lightning},
        callbacks,
        loggers(config.lightning, config.folder, first_step),
        config.lightning.get("find_unused_parameters", several),
        config.batch.devices,
    )
    return Run(config, saved, model, data, trainer, saving)


def quiet() -> None:
    """Suppress messages of Lightning that are wrong or useless here."""
    if not first_process():
        logging.getLogger().setLevel(logging.WARNING)
    for name in ("pytorch_lightning.utilities.rank_zero", "pytorch_lightning.accelerators.cuda"):
        logging.getLogger(name).setLevel(logging.WARNING)
    for text in (
        ".*in eval mode at the start of training.*",  # frozen parts are, on purpose
        ".*Total length of `list` across ranks is zero.*",
        ".*does not have many workers.*",
        ".*isinstance.treespec, LeafSpec.*",
        ".*`broadcast_buffers` is deprecated.*",  # its successor is not in all supported versions
        ".*use `self.log.'step', ..., sync_dist=True.`.*",  # the step is the same in all processes
    ):
        warnings.filterwarnings("ignore", text)


def report(this: Run) -> None:
    """Log where the results of training are."""
    monitor = getattr(this.model, "monitor", None)
    for logger in this.trainer.loggers:
        if isinstance(logger, CsvLogger) and monitor and (lowest := logger.lowest(monitor)):
            log.info(f"{monitor} was lowest, {lowest[1]:.5f}, at step {lowest[0]}")
    words = this.config.folder / "checkpoints" / "embeddings.pt"
    if words.exists():
        log.info(f"learned: {words}, and .safetensors beside it")
    delta = this.config.folder / "checkpoints" / DELTA_FILE
    if delta.exists():
        log.info(f"tuned: {delta}: generate with it by scripts/txt2img.py --weight_delta")


def train(this: Run) -> int:
    """Train to the last step, or until a signal; return the exit status."""
    trainer, saving, folder = this.trainer, this.checkpoints, this.config.folder
    if this.resume and this.resume.step >= trainer.max_steps:
        log.info(
            f"finished at step {this.resume.step} of {trainer.max_steps}: nothing is left to "
            "train; a larger --max_steps trains further"
        )
        return 0
    os.environ[FOLDER_VARIABLE] = str(folder)
    os.environ.setdefault(FIRST_VARIABLE, str(os.getpid()))
    try:
        trainer.fit(this.model, this.data, ckpt_path=this.resume.path if this.resume else None)
    except torch.OutOfMemoryError as error:
        size, device = this.config.batch.size, device_of(this.config)
        advice = what_fits(this.model, size, device)
        raise UserError(f"out of memory with {size} images at a time: {advice}") from error
    except SystemExit as error:  # Lightning's answer to Ctrl-C
        raise KeyboardInterrupt from error
    finally:
        for name in (FOLDER_VARIABLE, FIRST_VARIABLE):
            os.environ.pop(name, None)
    if saving.signal is not None:
        log.info(
            f"stopped at step {trainer.global_step}; resume with: "
            f"python main.py -t --resume {folder}"
        )
        return 128 + saving.signal
    # A callback such as DVAR may stop a resumed run before its first step.
    if not trainer.should_stop and trainer.global_step <= (this.resume.step if this.resume else 0):
        raise UserError(
            "no step was trained: check limit_train_batches and the other limits in "
            "lightning.trainer"
        )
    report(this)
    return 0


def run(config: RunConfig, exclusive: bool = True) -> tuple[int, Path]:
    """Train and test as the configuration says, in one stage; return (exit status, log folder).

    With `exclusive`, a run that is not resumed gets a log folder that no other run has.
    """
    quiet()
    with working_folder(config.folder, exclusive and config.resume is None) as folder:
        this = set_up(replace(config, folder=folder))
        testable = this.data.test_dataloader() and is_overridden("test_step", this.model)
        testing = bool(testable) and config.test
        if not config.train and not testing:
            raise UserError("nothing to do: give -t to train")
        log.info(f"logs in {folder}")
        if config.train and (status := train(this)):
            return status, folder
        if testing:
            untrained = this.trainer.global_step == 0
            checkpoint = this.resume.path if this.resume and untrained else None
            this.trainer.test(this.model, this.data, ckpt_path=checkpoint, verbose=False)
            for name, value in this.trainer.callback_metrics.items():
                if name.startswith("test/"):
                    log.info(f"{name} {float(value):.5f}")
        return 0, folder


def run_stages(config: RunConfig) -> int:
    """Do what the configuration says, in one stage or two; return the exit status.

    A resumed run continues in the stage that was interrupted.

    Raises UserError for whatever the user can change.
    """
    if config.second is None:
        return run(config)[0]
    second = config.second_after(config.folder)
    if second.resume is None:
        status, folder = run(config)
        if status or not config.train:
            return status
        gc.collect()  # the first stage's model, before the second one's is read
        second = config.second_after(folder)
        log.info(f"second stage, in {second.folder}")
    return run(second, exclusive=False)[0]
