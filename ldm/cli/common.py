"""What command lines share: one-line errors, where a model's files are, which device to use.

Imports nothing heavy, so that `--help` answers at once.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path

from ldm.resources import WEIGHTS, locate, weights_in
from ldm.sampling import Sampling
from ldm.util import Parser, UserError

__all__ = (
    "MINIATURE",
    "Parser",
    "add_model",
    "add_weight_delta",
    "add_words",
    "check_output_folder",
    "choose_device",
    "find_model",
    "sampling_of",
)

MINIATURE = "models/miniature"


def add_words(group: argparse._ArgumentGroup) -> None:
    """Add the option that names files of learned words."""
    group.add_argument(
        "--embedding_path",
        nargs="+",
        action="extend",
        default=[],
        metavar="[WORD=]FILE",
        help="files of learned words; with WORD= the file's one word gets that name",
    )


def add_model(
    group: argparse._ArgumentGroup, names: Sequence[str], checkpoint: str, config: str
) -> None:
    """Add the options that name a model's files, for `find_model`.

    Args:
        group: gets them.
        names: of the option for weights, the first of which names the value.
        checkpoint: weights by default.
        config: the configuration where neither an option nor the weights' folder has one.
    """
    group.add_argument(
        *names,
        metavar="PATH",
        default=checkpoint,
        help=f"weights, or a folder with them ({checkpoint})"
        + ("; models/miniature comes with the project" if checkpoint != MINIATURE else ""),
    )
    group.add_argument(
        "--config",
        metavar="YAML",
        help=f"of the model; by default config.yaml beside the weights, or else {config}",
    )


def add_weight_delta(group: argparse._ArgumentGroup) -> None:
    """Add the option that names a weight delta."""
    group.add_argument(
        "--weight_delta",
        "--difference",
        metavar="FILE",
        help="the weight delta that tuning of this model wrote (weight_delta.safetensors)",
    )


def find_model(checkpoint: str, config: str | None, default_config: str) -> tuple[Path, Path]:
    """Find a model's configuration and weights.

    Args:
        checkpoint: the weights' file, a folder that has them as model.safetensors or model.ckpt, or
            the name of a folder under models/, such as "miniature". Paths are looked up from here
            and then from the project's folder.
        config: the configuration; where none is given, config.yaml beside the weights.
        default_config: the configuration where neither is there.

    Raises:
        UserError: one of the files does not exist; says how to get weights.
    """
    weights = locate(checkpoint)
    if not weights.exists() and Path(checkpoint).name == checkpoint:
        weights = next((p for p in (locate(f"models/{checkpoint}"),) if p.is_dir()), weights)
    if weights.is_dir():
        inside = weights_in(weights)
        if inside is None:
            raise UserError(f"folder {checkpoint} has no {' or '.join(WEIGHTS)}")
        weights = inside
    if not weights.is_file():
        raise UserError(
            f"checkpoint {checkpoint} does not exist: get the published weights with "
            "scripts/download_models.sh, or give the miniature, models/miniature"
        )
    beside = weights.with_name("config.yaml")
    if config is not None:
        chosen = locate(config)
    else:
        chosen = beside if beside.is_file() else locate(default_config)
    if not chosen.is_file():
        raise UserError(f"configuration {config or default_config} does not exist")
    return chosen, weights


def sampling_of(options: argparse.Namespace, **flags: str) -> Sampling:
    """Return the sampling settings that options give.

    Args:
        options: of a command.
        flags: setting → its option, where the option has another name.

    Raises:
        UserError: a value out of range; names the option.
    """
    names = {field.name: flags.get(field.name, field.name) for field in fields(Sampling)}
    given = {name: getattr(options, flag) for name, flag in names.items() if hasattr(options, flag)}
    try:
        return Sampling(**given)
    except UserError as error:
        name, _, problem = str(error).partition(" ")
        raise UserError(f"--{names[name]} {problem}") from None


def choose_device(name: str) -> str:
    """Return the device to use; "auto" takes a GPU where there is one.

    Raises:
        UserError: an unknown device, or one that this machine does not have.
    """
    import torch

    found = "cuda" if torch.cuda.is_available() else "cpu"
    if found == "cpu" and torch.backends.mps.is_available():
        found = "mps"
    if name == "auto":
        return found
    kind, _, index = name.partition(":")
    if kind not in ("cpu", "cuda", "mps") or (index and not index.isdigit()):
        raise UserError(f"device {name!r} is unknown: give auto, cpu, cuda, cuda:1 or mps")
    if kind == "cuda" and not torch.cuda.is_available():
        raise UserError(f"device {name!r} was asked for, but this machine has no usable CUDA GPU")
    if kind == "cuda" and int(index or 0) >= torch.cuda.device_count():
        raise UserError(f"device {name!r} does not exist: there are {torch.cuda.device_count()}")
    if kind == "mps" and not torch.backends.mps.is_available():
        raise UserError("device 'mps' was asked for, but this machine has none")
    return name


def check_output_folder(path: str | Path) -> Path:
    """Check that files can be written into a folder, which need not exist yet.

    Raises:
        UserError: they cannot.
    """
    path = Path(path)
    existing = next(p for p in (path.absolute(), *path.absolute().parents) if p.exists())
    if not existing.is_dir():
        raise UserError(f"output folder {path}: {existing} is a file")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise UserError(f"output folder {path}: {existing} is not writable")
    return path
