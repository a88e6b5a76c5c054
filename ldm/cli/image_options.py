"""What scripts/edit.py and scripts/invert.py share: an image, words, a model."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ldm.cli import common
from ldm.cli.txt2img import LATENT_DIFFUSION

if TYPE_CHECKING:
    from ldm.models.diffusion.ddpm import LatentDiffusion


def add_generation(parser: argparse.ArgumentParser) -> None:
    """Add the options of the model that generates."""
    group = parser.add_argument_group("the model")
    common.add_model(group, LATENT_DIFFUSION.checkpoint)
    common.add_words(group)
    common.add_weight_delta(group)
    common.add_options(group, device="auto")


def load(options: argparse.Namespace, prompts: Sequence[str]) -> LatentDiffusion:
    """Load the model with its words, on the CPU, where its weights lie unread until they are used.

    Raises UserError for files of another architecture, or a prompt that would lose a word.
    """
    from ldm.inference import load_model, load_words

    config, weights = common.find_model(options.model, options.config)
    model = load_model(config, weights, weight_delta=options.weight_delta)
    load_words(model, options.embedding_path, prompts)
    return model


def facts(options: argparse.Namespace) -> dict[str, str]:
    """Return which files decided an image."""
    from ldm.checkpoint.loading import checkpoint_hash

    _, weights = common.find_model(options.model, options.config)
    return {
        "image": Path(options.image).name,
        "image_hash": checkpoint_hash(options.image),
        **common.model_facts(weights, options),
        "embeddings": " ".join(options.embedding_path),
    }
