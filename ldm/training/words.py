"""Learned words during a run: their files at each save, their norms beside the loss.

A run of several independent words (`ldm.training.many`) has files for each of them.
"""

from __future__ import annotations

import hashlib
import json
import logging
import platform
from collections.abc import Mapping
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf
from pytorch_lightning import LightningModule, Trainer
from torch import Tensor

from ldm.resources import ROOT
from ldm.training.callbacks import StepCallback
from ldm.training.config import RunConfig
from ldm.training.merge import WORDS
from ldm.util import UserError, instantiate_from_config
from ldm.words.files import read_words
from ldm.words.manager import EmbeddingManager
from ldm.words.travel import write_for_tools

log = logging.getLogger(__name__)

# A word with a norm this many times the vocabulary's mean outweighs the rest of a prompt.
LARGEST_RATIO = 10.0
# Folder beside a run's checkpoints with one file for each word, for other tools.
WORDS_FOLDER = "words"
LAST_WORD = "embeddings.safetensors"
# Sets of several independent words.
SETS = ("train", "validation")


def manager_of(module: LightningModule) -> EmbeddingManager | None:
    """Return a model's words; None for a model that learns none."""
    found = getattr(module, "embedding_manager", None)
    return found if isinstance(found, EmbeddingManager) else None


def metadata(config: RunConfig, rate: float, images: list[Path]) -> dict[str, str]:
    """Return the facts that a word's file holds beside the word.

    `rate` is the effective learning rate; `images` are the training images' files.
    """
    from ldm.checkpoint.loading import checkpoint_hash

    base = config.run.base_checkpoint
    parts = {name: config.sections[name] for name in ("model", "data")}
    plain = _portable(OmegaConf.to_container(OmegaConf.create(parts), resolve=True))
    text = json.dumps(plain, sort_keys=True, ensure_ascii=False)
    facts = {
        "base_checkpoint": Path(base).name if base else "",
        "base_checkpoint_hash": checkpoint_hash(base) if base else "",
        "config": text,
        "config_hash": hashlib.sha256(text.encode()).hexdigest()[:16],
        "seed": str(config.run.seed),
        "learning_rate": f"{rate:.6g}",
        "images_per_step": str(config.batch.images),
        "pictures": json.dumps([file_hash(path) for path in images]),
        "versions": f"python {platform.python_version()}, torch {torch.__version__}, "
        f"pytorch-lightning {version('pytorch-lightning')}",
    }
    return {name: value for name, value in facts.items() if value}


def _portable(node: Any) -> Any:
    """Return a configuration without this machine's absolute paths.

    Word files are shared. An absolute path would show where their maker works, and the same run in
    another folder would seem to be another configuration.
    """
    if isinstance(node, dict):
        return {name: _portable(value) for name, value in node.items()}
    if isinstance(node, list):
        return [_portable(value) for value in node]
    if isinstance(node, str) and Path(node).is_absolute():
        path = Path(node)
        places = (place for place in (Path.cwd(), ROOT) if path.is_relative_to(place))
        return next((str(path.relative_to(place)) for place in places), path.name)
    return node


def file_hash(path: Path) -> str:
    """Return the first 16 hexadecimal digits of a file's SHA-256."""
    return hashlib.sha256(path.read_bytes()).hexdigest()[:16]


def save_words(trainer: Trainer, module: LightningModule, folder: Path) -> None:
    """Write a run's words (see `write_forms`)."""
    manager = manager_of(module)
    if manager is not None:
        write_forms(manager, folder, trainer.global_step)


def write_forms(
    manager: EmbeddingManager, folder: Path, step: int, facts: Mapping[str, str] | None = None
) -> None:
    """Write `embeddings` and `embeddings_gs-<step>`, as .pt (the original's) and .safetensors.

    The folder `words` gets the last state of each word in a file that other tools load. `facts` are
    metadata; by default the manager's own.
    """
    for stem in ("embeddings", f"embeddings_gs-{step}"):
        for suffix in (".pt", ".safetensors"):
            manager.save(folder / f"{stem}{suffix}", facts)
    try:
        words = read_words(folder / LAST_WORD)
    except UserError as error:  # no reader accepts it: huge values, for example
        log.warning(f"no file for other tools: {error}")
        return
    write_for_tools(folder / WORDS_FOLDER, words)


def is_joint(config: RunConfig) -> bool:
    """Tell whether a run learns several independent words."""
    return int(config.model.params.get("independent_words", 1)) > 1


def alone_again(config: RunConfig, name: str) -> RunConfig:
    """Return the configuration of one word of a joint run, as of a run of its own."""
    count = int(config.model.params.independent_words)
    sections = config.editable()
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
    batch = replace(config.batch, size=config.batch.size // count)
    return replace(config, sections=sections, batch=batch)


class EachWord:
    """Writes each word of a joint run into its own folder at each save."""

    def __init__(self, config: RunConfig) -> None:
        self.config = config
        self._facts: dict[str, dict[str, str]] = {}

    def __call__(self, trainer: Trainer, module: LightningModule, folder: Path) -> None:
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
                self._facts[name] = metadata(own, rate, list(concept.files()))
            own_folder = folder.parent / name / "checkpoints"
            write_forms(manager, own_folder, trainer.global_step, self._facts[name])
        embedder.placeholders = names


class WordNorms(StepCallback):
    """Log each word's norm and the vocabulary's where the loss is logged.

    A word with a much larger norm than the vocabulary's outweighs the rest of the prompt (Kim et
    al., arXiv 2512.13672). A word above `LARGEST_RATIO` times the vocabulary's mean gets one
    warning.
    """

    def __init__(self) -> None:
        self.warned: set[str] = set()

    def on_step(self, trainer: Trainer, module: LightningModule, loss: Tensor, logs: bool) -> None:
        manager = manager_of(module)
        if manager is None or not logs:
            return
        norms = manager.norms()
        module.log_dict({f"word/{k}": float(v) for k, v in norms.items()})
        for name, value in norms.items():
            kind, _, word = name.partition("/")
            if kind != "norm_ratio" or value <= LARGEST_RATIO or word in self.warned:
                continue
            self.warned.add(word)
            log.warning(
                f"step {trainer.global_step}: the word {word!r} has {value:.1f} times the "
                f"vocabulary's mean norm (more than {LARGEST_RATIO:g}), and would drown the rest "
                "of a prompt: lower model.base_learning_rate, train fewer steps, or set "
                "model.params.embedding_reg_weight"
            )
