"""What scripts/edit.py and scripts/invert.py share: an image, words, a model."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ldm.cli.common import add_difference, add_model, add_words, find_model
from ldm.cli.txt2img import split_word
from ldm.cli.txt2img_options import LATENT_DIFFUSION
from ldm.util import UserError
from ldm.words.placeholders import DEFAULT_PLACEHOLDER, occurrences

Words = Sequence[tuple[str | None, str]]  # the name asked for, the file


def add_painter(parser: argparse.ArgumentParser) -> None:
    """Add the options that say what draws."""
    group = parser.add_argument_group("the model")
    names = ("--ckpt_path", "--ckpt")
    add_model(group, names, LATENT_DIFFUSION.checkpoint, LATENT_DIFFUSION.config)
    add_words(group)
    add_difference(group)
    group.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, mps")


def check_words(items: Sequence[str], prompts: Sequence[str]) -> Words:
    """Return the words' files, each of which holds words, and check that prompts go with them.

    Raises:
        UserError: an unreadable file; a prompt that names the usual placeholder without a file; no
            prompt that names a word of the files.
    """
    from ldm.words.files import read_words

    words = [split_word(item) for item in items]
    held: list[str] = []
    for name, path in words:
        inside = list(read_words(path).words)
        if name is not None and len(inside) != 1:
            raise UserError(f"{name}={path}: the file holds {len(inside)} words: {inside}")
        held += inside if name is None else [name]
    for prompt in prompts:
        if not held and occurrences(prompt, DEFAULT_PLACEHOLDER):
            raise UserError(
                f"prompt {prompt!r} names {DEFAULT_PLACEHOLDER!r}, but no word is loaded: give its "
                "file as --embedding_path"
            )
        if held and not any(occurrences(prompt, word) for word in held):
            raise UserError(
                f"prompt {prompt!r} names no loaded word ({' '.join(held)}): put one in, or leave "
                "--embedding_path out"
            )
    return words


def find_files(options: argparse.Namespace) -> tuple[Path, Path]:
    """Return configuration and weights; see `ldm.cli.common.find_model`."""
    return find_model(options.ckpt_path, options.config, LATENT_DIFFUSION.config)


def load(options: argparse.Namespace, words: Words, prompts: Sequence[str]) -> Any:
    """Load the model with its words, on the CPU, where its weights lie unread until they are used.

    Raises:
        UserError: files of another architecture, or a prompt that would lose a word.
    """
    from ldm.inference import load_model, load_words
    from ldm.words.files import read_words

    config, weights = find_files(options)
    model = load_model(config, weights, difference=options.difference)
    if model.embedding_manager is not None:
        model.embedding_manager.clear()  # the configuration's own were never learned
    for name, path in words:
        rename = None if name is None else dict.fromkeys(read_words(path).words, name)
        load_words(model, path, rename=rename)
    if words:
        model.embedding_manager.check_prompts(list(prompts))
    return model


def facts(options: argparse.Namespace) -> dict[str, str]:
    """Return which files decided an image."""
    from ldm.checkpoint.loading import checkpoint_hash

    _, weights = find_files(options)
    found = {
        "image": Path(options.image).name,
        "image_hash": checkpoint_hash(options.image),
        "checkpoint": weights.name,
        "checkpoint_hash": checkpoint_hash(weights),
        "embeddings": " ".join(options.embedding_path),
    }
    if options.difference:
        found["difference"] = options.difference
    return found
