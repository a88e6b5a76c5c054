"""Checks of the data against the model, before weights are read."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from omegaconf import DictConfig

from ldm.models.diffusion.ddpm import LatentDiffusion
from ldm.training.config import RunConfig
from ldm.util import UserError, instantiate_from_config, quote
from ldm.words.loading import check_prompts
from ldm.words.manager import EmbeddingManager

log = logging.getLogger(__name__)

# Captions to check before training, of a set that cannot list all.
CAPTIONS_CHECKED = 64


@dataclass
class Captioned:
    """What checking captions needs of a `LatentDiffusion`."""

    embedding_manager: EmbeddingManager | None
    cond_stage_model: Any
    cond_stage_key: str
    unfreeze_model: bool = False


def check_keys(config: RunConfig, sets: Mapping[str, Any]) -> None:
    """Check that a sample holds what the model reads: its image and its condition.

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


def _of_a_file(manager: EmbeddingManager) -> str:
    """Return a hint about words of a file that replaced the configuration's."""
    own = (*manager.configured(), *manager.per_image_placeholders)
    brought = [word for word in manager.placeholders if word not in own]
    if not brought:
        return ""
    return f". --embedding_manager_ckpt holds {', '.join(brought)}: give --placeholder_string so"


def check_captions(model: Captioned | LatentDiffusion, sets: Mapping[str, Any]) -> None:
    """Check that the captions name the words to learn; otherwise training would have no effect.

    Every word must be named in the set "train". Raises UserError for a caption that names no word,
    or loses it on the way to the encoder, and for a word that no training caption names.
    """
    manager = model.embedding_manager
    for name, dataset in sets.items():
        captions, all_of_them = _captions(dataset, model.cond_stage_key)
        files = getattr(dataset, "caption_files", {})  # of captions that come from one, for errors
        if manager is None or model.unfreeze_model:
            texts = [caption for caption in captions if isinstance(caption, str)]
            check_prompts(model, texts, files)
            continue
        for caption in captions:
            if not isinstance(caption, str) or not manager.named(caption):
                kind = "training" if name == "train" else name
                raise UserError(
                    f"the {kind} caption {quote(str(caption))} names no word to learn "
                    f"({', '.join(manager.placeholders)}): check placeholder_token and the "
                    f"templates{_of_a_file(manager)}"
                )
        manager.check_prompts(captions, files)
        lasting = [p for p in manager.placeholders if p not in manager.per_image_placeholders]
        idle = set(lasting) - {p for text in captions for p in manager.named(text)}
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
    with only_errors("ldm.modules"), torch.device("meta"):  # building the model will log the rest
        embedder = instantiate_from_config(encoder)
        manager = instantiate_from_config({**words, "params": own}, embedder=embedder)
    if file:
        manager.load(file)
    key, unfrozen = params.get("cond_stage_key", "image"), params.get("unfreeze_model", False)
    check_captions(Captioned(manager, embedder, key, unfrozen), sets)
    return True


@contextmanager
def only_errors(name: str) -> Iterator[None]:
    """Return a context in which a logger passes only errors."""
    logger = logging.getLogger(name)
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)


def _captions(dataset: Any, key: str) -> tuple[list[Any], bool]:
    """Return captions of a set, and whether these are all: a set may be unable to list them."""
    if hasattr(dataset, "texts"):
        return list(dataset.texts()), True
    sample = getattr(dataset, "describe", dataset.__getitem__)
    few = range(min(len(dataset), CAPTIONS_CHECKED))
    return [sample(i).get(key) for i in few], len(dataset) <= CAPTIONS_CHECKED
