"""Checks of a run before anything expensive: one clear line each."""

from __future__ import annotations

import difflib
import logging
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf

from ldm.models.autoencoder import Autoencoder
from ldm.modules.diffusionmodules.model import Decoder
from ldm.training.config import RUN_DEFAULTS, RunConfig, accepts, datasets
from ldm.util import (
    UserError,
    get_obj_from_str,
    instantiate_from_config,
    known_parameters,
    parameters,
)
from ldm.words.directional import ALONE, DirectionalEmbeddingManager
from ldm.words.manager import EmbeddingManager
from ldm.words.placeholders import occurrences

log = logging.getLogger(__name__)

LIGHTNING_KEYS = (
    "trainer",
    "callbacks",
    "modelcheckpoint",
    "logger",
    "latent_cache",
    "images_per_step",
    "find_unused_parameters",
)
# Parameters of the words that the model takes out before it builds them.
TAKEN_BY_MODEL = {"embedding_manager_ckpt"}
# Annotations of parameters whose values are looked at, and what serves.
KINDS: dict[str, tuple[type, ...]] = {
    "int": (int,),
    "float": (int, float),
    "bool": (bool,),
    "str": (str,),
    "Path": (str,),
    "Sequence": (Sequence,),
    "Mapping": (Mapping,),
}
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
    target = get_obj_from_str(config.target)
    if not callable(target) or not isinstance(params, Mapping):
        raise UserError(f"{where}: expected target, a class, and params, a mapping; got {config}")
    signature, complete = parameters(target)
    if complete:
        words = isinstance(target, type) and issubclass(target, EmbeddingManager)
        _known(f"{where}.params", params, {*signature, *(TAKEN_BY_MODEL if words else ())})
    if isinstance(target, type) and issubclass(target, Autoencoder):
        networks = params.get("ddconfig")
        if isinstance(networks, Mapping):
            _known(f"{where}.params.ddconfig", networks, known_parameters(Decoder) or ())
    for name, parameter in signature.items():
        needed = parameter.default is parameter.empty and name not in GIVEN_BY_PARENT
        if needed and name not in (*params, "data_root"):
            raise UserError(f"the configuration lacks {where}.params.{name}, which has no default")
        if name in params:
            _check_kind(f"{where}.params.{name}", params[name], str(parameter.annotation))
    for name in params:
        check_targets(params[name], f"{where}.params.{name!s}")


def _check_kind(where: str, value: Any, annotation: str) -> None:
    """Raise UserError where a plain parameter has a value of another kind; None is left alone."""
    names = [name.partition("[")[0] for name in annotation.split(" | ") if name != "None"]
    if value is None or not set(names) <= set(KINDS):
        return
    fits = isinstance(value, tuple(kind for name in names for kind in KINDS[name]))
    if not fits or (isinstance(value, str) and not {"str", "Path"} & set(names)):
        raise UserError(f"{where}: expected {' or '.join(names)}, got {value!r}")


def check_config(config: RunConfig) -> None:
    """Check names and what goes together.

    Raises UserError naming what is wrong and what to do.
    """
    _known("run", config.run, RUN_DEFAULTS)
    kinds = {"seed": "int", "threads": "int"}
    kinds |= dict.fromkeys(("scale_lr", "tf32", "half_difference"), "bool")
    for name, kind in kinds.items():
        _check_kind(f"run.{name}", config.run[name], kind)
    if not 0 <= config.run.seed < 2**32:
        raise UserError(f"--seed {config.run.seed}: expected a number from 0 to {2**32 - 1}")
    if config.run.threads is not None and config.run.threads < 1:
        raise UserError(f"--threads {config.run.threads}: expected a number of at least 1")
    check_targets(config.model, "model", ("base_learning_rate",))
    check_targets(config.data, "data")
    _known("lightning", config.lightning, LIGHTNING_KEYS)
    check_targets(config.lightning.callbacks, "lightning.callbacks")
    _known(
        "lightning.latent_cache", config.lightning.latent_cache, ("enabled", "folder", "batch_size")
    )
    if "base_learning_rate" not in config.model:
        raise UserError("the configuration has no model.base_learning_rate")
    _check_kind("model.base_learning_rate", config.model.base_learning_rate, "float")
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
            raise UserError(f"no images for data.params.{name}: give their folder, --data_root DIR")
    has_weights = base or config.model.params.get("ckpt_path")
    if personal and not has_weights and not config.run.random_base:
        raise UserError(
            "a word is taught to a trained model: name its weights with --actual_resume CKPT "
            "(run.random_base=true goes without)"
        )


def _check_words(config: RunConfig) -> None:
    """Raise UserError where words and what goes with them do not fit.

    Words of single images must be both learned and named; directional words want a frozen model.
    """
    personal = config.model.params.get("personalization_config")
    target = get_obj_from_str(personal.target) if personal else None
    directional = isinstance(target, type) and issubclass(target, DirectionalEmbeddingManager)
    if directional and config.model.params.get("unfreeze_model"):
        raise UserError(ALONE)
    path = "params.personalization_config.params.per_image_tokens"
    learned = bool(OmegaConf.select(config.model, path, default=False))
    for name, dataset in datasets(config.data):
        if not accepts(dataset, "per_image_tokens"):
            continue
        named = bool(dataset.params.get("per_image_tokens"))
        if named and not learned:
            raise UserError(
                f"data.params.{name}.params.per_image_tokens is true: set model.{path} alike"
            )
        if learned and not named and name == "train":
            raise UserError(
                f"model.{path} is true, but no caption would name these words: set "
                f"data.params.{name}.params.per_image_tokens alike"
            )


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


def check_keys(config: RunConfig, sets: Mapping[str, Any]) -> None:
    """Look whether a sample holds what the model reads: its image and its condition.

    Raises UserError naming the key and what there is instead.
    """
    params = config.model.params
    for name in ("first_stage_key", "cond_stage_key"):
        key = params.get(name)
        for split, dataset in sets.items():
            sample = dataset[0]
            if key and isinstance(sample, Mapping) and key not in sample:
                raise UserError(
                    f"model.params.{name} is {key!r}, but samples of data.params.{split} hold "
                    f"{', '.join(map(str, sample))}: name one of these"
                )


def check_captions(model: Any, sets: Mapping[str, Any]) -> None:
    """Look whether the captions really name the words to learn: training must not be in vain.

    Args:
        model: has `embedding_manager`, `cond_stage_key` and perhaps `unfreeze_model`.
        sets: the data by name; every word must be named in "train".

    Raises UserError for a caption that names none, or loses it on the way to the encoder; for a
    word that no training caption names.
    """
    manager = getattr(model, "embedding_manager", None)
    if manager is None or getattr(model, "unfreeze_model", False):
        return
    for name, dataset in sets.items():
        captions, all_of_them = _captions(dataset, model.cond_stage_key)
        for caption in captions:
            if not isinstance(caption, str) or not _named(caption, manager.placeholders):
                raise UserError(
                    f"the training caption {caption!r} names no word to learn "
                    f"({', '.join(manager.placeholders)}): check placeholder_token and the "
                    "templates"
                )
        manager.check_prompts(captions)
        lasting = [p for p in manager.placeholders if p not in manager.per_image_placeholders]
        idle = set(lasting) - {p for text in captions for p in _named(text, lasting)}
        if name == "train" and idle and all_of_them:
            raise UserError(
                f"no training caption names {', '.join(sorted(idle))}, which would stay "
                "untrained: name every word of placeholder_strings in templates or captions"
            )
        if name == "train" and idle:
            log.warning(f"the first {len(captions)} captions do not name {sorted(idle)}")


def check_captions_early(config: RunConfig, sets: Mapping[str, Any]) -> bool:
    """Do `check_captions` without the model: only its vocabulary is read, not its weights.

    Returns false where that cannot be done: without a base checkpoint, or with another conditioner
    than a text encoder. The check is then to be made with the model.
    """
    params = config.model.params
    words, encoder = params.get("personalization_config"), params.get("cond_stage_config")
    if not (config.run.base_checkpoint and words and isinstance(encoder, DictConfig)):
        return False
    own = dict(words.get("params") or {})
    file = own.pop("embedding_manager_ckpt", None)
    with _only_errors("ldm.modules"), torch.device("meta"):  # the model will say the rest
        embedder = instantiate_from_config(encoder)
        manager = instantiate_from_config({**words, "params": own}, embedder=embedder)
    if file:
        manager.load(file)
    key, unfrozen = params.get("cond_stage_key", "image"), params.get("unfreeze_model", False)
    model = SimpleNamespace(embedding_manager=manager, cond_stage_key=key, unfreeze_model=unfrozen)
    check_captions(model, sets)
    return True


@contextmanager
def _only_errors(name: str) -> Iterator[None]:
    logger = logging.getLogger(name)
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)


def _named(text: str, placeholders: Iterable[str]) -> list[str]:
    return [p for p in placeholders if occurrences(text, p)]


def _captions(dataset: Any, key: str) -> tuple[list[Any], bool]:
    """Return captions of a set, and whether these are all: a set may be unable to list them."""
    if hasattr(dataset, "texts"):
        return list(dataset.texts()), True
    loaded = getattr(dataset, "with_pictures", None)  # None: it cannot do without
    if loaded is not None:
        dataset.with_pictures = False
    try:
        few = range(min(len(dataset), CAPTIONS_CHECKED))
        return [dataset[i].get(key) for i in few], len(dataset) <= CAPTIONS_CHECKED
    finally:
        if loaded is not None:
            dataset.with_pictures = loaded
