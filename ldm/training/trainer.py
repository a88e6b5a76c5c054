"""The Lightning trainer of a run, from options of current and of old versions of Lightning."""

from __future__ import annotations

import inspect
import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from lightning_fabric.utilities.exceptions import MisconfigurationException
from omegaconf import DictConfig, OmegaConf
from pytorch_lightning.loggers import Logger, TensorBoardLogger
from pytorch_lightning.strategies import Strategy

from ldm.training.csv_log import CsvLogger
from ldm.training.lightning_private import WatchedDDP
from ldm.training.validate import SAVING, check_names
from ldm.util import UserError, instantiate_from_config

log = logging.getLogger(__name__)

# Steps of a run whose configuration gives none. The number is the paper's.
DEFAULT_STEPS = 5000
# Options of old trainers that are accepted and ignored.
OUTDATED = {
    *("auto_select_gpus", "check_val_every_n_epoch", "checkpoint_callback"),
    *("find_unused_parameters", "flush_logs_every_n_steps", "move_metrics_to_cpu"),
    *("prepare_data_per_node", "progress_bar_refresh_rate", "replace_sampler_ddp"),
    *("resume_from_checkpoint", "terminate_on_nan", "track_grad_norm"),
    *("weights_save_path", "weights_summary"),
}
# Options that the run itself sets.
OWN: dict[str, Any] = {
    "max_epochs": -1,  # one endless epoch; `max_steps` ends it
    "check_val_every_n_epoch": None,
    "num_sanity_val_steps": 0,
    "use_distributed_sampler": False,
    "enable_progress_bar": False,
    "enable_checkpointing": False,
    "enable_model_summary": False,
}
# Options of the original's checkpoint callback that are ignored: here the last state is saved.
OUTDATED_SAVING = {"dirpath", "filename", "monitor", "save_last", "save_top_k", "verbose"}


def trainer_settings(config: DictConfig) -> dict[str, Any]:
    """Return the options of `pl.Trainer` in `lightning.trainer`; UserError for one it lacks."""
    settings: dict[str, Any] = OmegaConf.to_container(config, resolve=True)  # type: ignore[assignment]
    known = set(inspect.signature(pl.Trainer.__init__).parameters) - {"self", "logger", "callbacks"}
    for old in ("distributed_backend", "accelerator"):
        if settings.get(old) in ("ddp", "ddp_spawn", "ddp_fork"):
            settings.setdefault("strategy", settings.pop(old))
    for name in [name for name in settings if name in OUTDATED]:
        log.info(f"lightning.trainer.{name} is outdated and left out")
        del settings[name]
    check_names("lightning.trainer", settings, known)
    # Lightning's "auto" would take every GPU there is, and with it change the batch.
    # Under torchrun these are known; Lightning's own processes see the same command line again.
    local = os.environ.get("LOCAL_WORLD_SIZE")
    settings.setdefault("devices", int(local or 1))
    if local:
        settings.setdefault("num_nodes", int(os.environ["WORLD_SIZE"]) // int(local))
    # A list of numbers means GPUs; for the CPU it is a count.
    if settings.get("accelerator") == "cpu" and isinstance(settings["devices"], list):
        settings["devices"] = len(settings["devices"])
    return settings


def read_devices(wanted: Any) -> int | list[int]:
    """Return a number of devices, -1 for all, or the list of their numbers; or raise UserError."""
    if wanted == "auto":
        return -1
    try:
        if isinstance(wanted, str) and "," not in wanted:
            wanted = int(wanted)
        if isinstance(wanted, str):
            wanted = [part for part in wanted.split(",") if part.strip()]
        read = [int(n) for n in wanted] if isinstance(wanted, Sequence) else int(wanted)
    except (TypeError, ValueError):
        read = 0
    if read == [] or (isinstance(read, int) and read < 1 and read != -1):
        raise UserError(
            f"--devices {wanted}: expected a number of at least 1, or GPU numbers such as 0,1"
        )
    return read


def device_count(settings: Mapping[str, Any]) -> int:
    """Return the number of processes, over all nodes, that trainer options lead to."""
    devices, accelerator = read_devices(settings["devices"]), settings.get("accelerator", "auto")
    count = len(devices) if isinstance(devices, list) else devices
    if count == -1:
        count = 1 if accelerator in ("cpu", "mps") else max(1, torch.cuda.device_count())
    return count * int(settings.get("num_nodes", 1))


def check_machine(settings: Mapping[str, Any]) -> None:
    """Raise UserError if this machine lacks the devices that are asked for."""
    wanted = settings.get("accelerator") or "auto"
    devices = read_devices(settings.get("devices", 1))
    apple = torch.backends.mps.is_available()
    if wanted == "mps" and not apple:
        raise UserError("accelerator mps asked for, but there is none: use --accelerator cpu")
    if wanted == "cpu" and not isinstance(devices, int):
        raise UserError(f"--devices {settings['devices']}: for the CPU give a number of processes")
    there = torch.cuda.device_count()
    if wanted not in ("gpu", "cuda", "auto") or (wanted == "auto" and there == 0):
        return
    if there == 0 and not (wanted == "gpu" and apple):
        raise UserError("a GPU is asked for, but torch finds none: use --accelerator cpu")
    if isinstance(devices, int) and devices > max(there, 1):
        raise UserError(f"--devices {devices}: torch finds only {max(there, 1)} GPU(s)")
    numbers = devices if isinstance(devices, list) else []
    if missing := [n for n in numbers if not 0 <= n < max(there, 1)]:
        raise UserError(f"GPU {missing[0]} is asked for, but torch finds only 0 to {there - 1}")


def accumulation(config: DictConfig, settings: Mapping[str, Any], batch: int, devices: int) -> int:
    """Return micro-batches a step: as given, or so that a step sees `images_per_step` images."""
    wanted = config.get("images_per_step")
    if "accumulate_grad_batches" in settings or wanted is None:
        return int(settings.get("accumulate_grad_batches", 1))
    if not isinstance(wanted, int) or wanted < 1:
        raise UserError(f"lightning.images_per_step: expected at least 1, got {wanted!r}")
    if wanted % (batch * devices):
        raise UserError(
            f"lightning.images_per_step {wanted} is no multiple of {batch} (batch_size) x "
            f"{devices} (devices): change batch_size, or set --accumulate_grad_batches"
        )
    return int(wanted // (batch * devices))


def saving_options(config: DictConfig) -> dict[str, Any]:
    """Return the options of `Checkpoints` from the original's section `modelcheckpoint`."""
    options = dict(OmegaConf.select(config, "modelcheckpoint.params") or {})
    for name in [name for name in options if name in OUTDATED_SAVING]:
        log.info(f"lightning.modelcheckpoint.params.{name} is left out: the last state is saved")
        del options[name]
    check_names("lightning.modelcheckpoint.params", options, SAVING)
    return options


def strategy(settings: Mapping[str, Any], devices: int, find_unused: bool) -> str | Strategy:
    """Return how processes work together.

    Buffers are the same in all processes, so they are not sent. With several words a batch may name
    only some of them, so DDP must search for the unused ones.
    """
    wanted = settings.get("strategy", "auto")
    if devices == 1 and wanted == "auto":
        return "auto"
    if wanted not in ("auto", "ddp", "ddp_spawn", "ddp_fork", "ddp_find_unused_parameters_true"):
        return str(wanted)
    methods = {"ddp_spawn": "spawn", "ddp_fork": "fork"}
    return WatchedDDP(
        start_method=methods.get(wanted, "popen"),  # type: ignore[arg-type]
        find_unused_parameters=find_unused or wanted.endswith("true"),
        broadcast_buffers=False,
    )


def loggers(config: DictConfig, folder: Path, first_step: int) -> list[Logger]:
    """Return TensorBoard's logger, the table's, and one more where the configuration names it."""
    wanted: list[Logger] = [
        TensorBoardLogger(str(folder), name="logger", version="", purge_step=first_step or None),
        CsvLogger(folder / "logger" / "metrics.csv", first_step),
    ]
    extra = config.get("logger")
    if extra and "testtube" in str(extra.get("target", "")).lower():
        log.info("lightning.logger: test-tube is not supported; see TensorBoard and metrics.csv")
    elif extra and "target" in extra:
        wanted.append(instantiate_from_config(extra))
    return wanted


def build_trainer(
    settings: Mapping[str, Any],
    callbacks: list[pl.Callback],
    logger: list[Logger],
    find_unused: bool,
    devices: int,
) -> pl.Trainer:
    """Return the trainer.

    `settings` are those of `trainer_settings`, with `max_steps`; `val_check_interval` counts steps.
    `find_unused` tells whether a batch may leave some trained weights unused. `devices` are the
    processes over all nodes.
    """
    micro = settings.get("accumulate_grad_batches", 1)
    interval = settings.get("val_check_interval")
    if not isinstance(interval, int) or interval < 1:
        raise UserError(f"val_check_interval is a number of steps, got {interval!r}")
    options = {
        **settings,
        **OWN,
        "val_check_interval": interval * micro,
        "strategy": strategy(settings, devices, find_unused),
    }
    try:
        return pl.Trainer(**options, callbacks=callbacks, logger=logger)
    except (MisconfigurationException, ValueError) as error:
        raise UserError(f"lightning.trainer: {error}") from error
