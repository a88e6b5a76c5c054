"""Checks of a run before anything expensive: one clear line each."""

from __future__ import annotations

import difflib
import inspect
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf

from ldm.training.config import RUN_DEFAULTS, RunConfig, accepts, datasets
from ldm.util import UserError, get_obj_from_str

LIGHTNING_KEYS = (
    "trainer",
    "callbacks",
    "modelcheckpoint",
    "logger",
    "latent_cache",
    "images_per_step",
    "find_unused_parameters",
)
# Parameters that a parent takes out before it builds the object.
TAKEN_BY_PARENT = {"ldm.modules.embedding_manager.EmbeddingManager": {"embedding_manager_ckpt"}}
# Parameters that a parent adds.
GIVEN_BY_PARENT = {"embedder"}
# Captions looked at before training, of a set that cannot list all.
CAPTIONS_CHECKED = 64


def _known(where: str, names: Iterable[Any], allowed: Iterable[str]) -> None:
    """Raise UserError naming the first of `names` that is not allowed, and the nearest that is."""
    allowed = list(allowed)
    for name in (str(n) for n in names):
        if name not in allowed:
            near = difflib.get_close_matches(name, allowed, 1)
            known = ", ".join(sorted(allowed))
            hint = f"did you mean {near[0]!r}?" if near else f"known are {known}"
            raise UserError(f"unknown configuration key {where}.{name}: {hint}")


def check_targets(config: Any, where: str, extra: tuple[str, ...] = ()) -> None:
    """Check every {target, params} in a tree: the target exists and takes each parameter.

    Args:
        config: a node of the configuration.
        where: its dotted name, for the message.
        extra: keys allowed beside `target` and `params`.

    Raises:
        UserError: naming the key, in full.
    """
    if not isinstance(config, DictConfig):
        return
    if "target" not in config:
        for name in config:
            check_targets(config[name], f"{where}.{name!s}")
        return
    _known(where, list(config), ("target", "params", *extra))
    params = config.get("params") or {}
    signature = inspect.signature(get_obj_from_str(config.target)).parameters
    if not any(p.kind is p.VAR_KEYWORD for p in signature.values()):
        allowed = {n for n in signature if n != "self"} | TAKEN_BY_PARENT.get(config.target, set())
        _known(f"{where}.params", list(params), allowed)
    for name, parameter in signature.items():
        named = parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)
        needed = named and parameter.default is parameter.empty and name not in GIVEN_BY_PARENT
        if needed and name not in (*params, "self", "data_root"):
            raise UserError(f"the configuration lacks {where}.params.{name}, which has no default")
    for name in params:
        check_targets(params[name], f"{where}.params.{name!s}")


def check_config(config: RunConfig) -> None:
    """Check names and what goes together.

    Raises UserError naming what is wrong and what to do.
    """
    check_targets(config.model, "model", ("base_learning_rate",))
    check_targets(config.data, "data")
    _known("lightning", config.lightning, LIGHTNING_KEYS)
    check_targets(config.lightning.callbacks, "lightning.callbacks")
    _known(
        "lightning.latent_cache", config.lightning.latent_cache, ("enabled", "folder", "batch_size")
    )
    _known("run", config.run, RUN_DEFAULTS)
    if "base_learning_rate" not in config.model:
        raise UserError("the configuration has no model.base_learning_rate")
    _check_words(config)
    base = config.run.base_checkpoint
    if base and not Path(base).is_file():
        raise UserError(
            f"--actual_resume {base}: no such file; models/ldm/text2img-large/README.md says how "
            "to get the weights"
        )
    personal = config.model.params.get("personalization_config")
    for name, dataset in datasets(config.data):
        if accepts(dataset, "data_root") and not dataset.params.get("data_root"):
            raise UserError(
                f"no pictures for data.params.{name}: give their folder, --data_root DIR"
            )
    has_weights = base or config.model.params.get("ckpt_path")
    if personal and not has_weights and not config.run.random_base:
        raise UserError(
            "a word is taught to a trained model: name its weights with --actual_resume CKPT "
            "(run.random_base=true goes without)"
        )


def _check_words(config: RunConfig) -> None:
    """Raise UserError where captions name words of single pictures that nothing learns."""
    path = "params.personalization_config.params.per_image_tokens"
    learned = OmegaConf.select(config.model, path, default=False)
    for name, dataset in datasets(config.data):
        if dataset.params.get("per_image_tokens") and not learned:
            raise UserError(
                f"data.params.{name}.params.per_image_tokens is true: set model.{path} alike"
            )


def check_devices(trainer: DictConfig) -> None:
    """Raise UserError where the GPUs asked for are not there."""
    wanted = trainer.get("accelerator", "auto")
    if wanted == "mps" and not torch.backends.mps.is_available():
        raise UserError("accelerator mps asked for, but there is none: use --accelerator cpu")
    if wanted not in ("gpu", "cuda"):
        return
    there = torch.cuda.device_count()
    devices = trainer.get("devices", 1)
    numbers = list(devices) if not isinstance(devices, int | str) else []
    missing = [n for n in numbers if int(n) >= there]
    if there == 0 and not (wanted == "gpu" and torch.backends.mps.is_available()):
        raise UserError("a GPU is asked for, but torch finds none: use --accelerator cpu")
    if missing and there:
        raise UserError(f"GPU {missing[0]} is asked for, but torch finds only 0 to {there - 1}")


def check_folder(folder: Path) -> None:
    """Raise UserError where the log folder could not be made or written to; makes nothing."""
    there = next(p for p in (folder.absolute(), *folder.absolute().parents) if p.exists())
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        raise UserError(f"cannot write to {there}, for the logs: choose another --logdir")


def make_folder(folder: Path) -> None:
    """Make the log folder.

    Raises UserError where it cannot be written to after all.
    """
    try:
        for name in ("checkpoints", "configs", "images"):
            (folder / name).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"cannot write to the log folder {folder}: {error.strerror}; choose another --logdir"
        ) from error


def check_captions(model: Any, dataset: Any) -> None:
    """Look whether the captions really name a word to learn: training must not be without effect.

    Raises UserError for a caption that names none, or loses it on the way to the encoder.
    """
    manager = getattr(model, "embedding_manager", None)
    if manager is None or getattr(model, "unfreeze_model", False):
        return
    captions = _captions(dataset, model.cond_stage_key)
    for caption in captions:
        if not isinstance(caption, str) or not any(p in caption for p in manager.placeholders):
            raise UserError(
                f"the training caption {caption!r} names no word to learn "
                f"({', '.join(manager.placeholders)}): check placeholder_token and the templates"
            )
    manager.check_prompts(captions)


def _captions(dataset: Any, key: str) -> list[Any]:
    """Return every caption of a set that can list them, else those of its first samples."""
    if hasattr(dataset, "texts"):
        return list(dataset.texts())
    loaded, dataset.with_pictures = getattr(dataset, "with_pictures", True), False
    try:
        return [dataset[i].get(key) for i in range(min(len(dataset), CAPTIONS_CHECKED))]
    finally:
        dataset.with_pictures = loaded
