"""What command lines share: one-line errors, where a model's files are, which device to use.

Imports nothing heavy, so that `--help` answers at once.
"""

from __future__ import annotations

import argparse
import os
from dataclasses import fields
from pathlib import Path
from typing import Any

from ldm.resources import locate
from ldm.sampling import Sampling
from ldm.util import Parser, UserError

__all__ = (
    "MINIATURE",
    "Once",
    "Parser",
    "add_difference",
    "add_model",
    "add_words",
    "check_output_folder",
    "choose_device",
    "find_model",
    "sampling_of",
)

MINIATURE = "models/miniature"


class Once(argparse.Action):
    """An option whose second mention is an error; argparse would forget the first one."""

    def __call__(self, _: Any, namespace: argparse.Namespace, values: Any, *__: Any) -> None:
        """Store the value."""
        if getattr(namespace, self.dest) is not self.default:
            raise argparse.ArgumentError(self, "is given twice: this command takes one")
        setattr(namespace, self.dest, values)


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


def add_model(group: argparse._ArgumentGroup, checkpoint: str) -> None:
    """Add the options that name a model, for `find_model`.

    Args:
        group: gets them.
        checkpoint: the model by default.
    """
    ships = "; models/miniature ships with the project" if checkpoint != MINIATURE else ""
    group.add_argument(
        *("--model", "--ckpt_path", "--ckpt"),
        dest="model",
        metavar="MODEL",
        default=checkpoint,
        help=f"a .ckpt or .safetensors file, a folder of diffusers, or a Hub name ({checkpoint})"
        + ships,
    )
    group.add_argument(
        "--config",
        metavar="YAML",
        help="of the model; by default the one beside its weights, or that of its family",
    )


def add_difference(group: argparse._ArgumentGroup) -> None:
    """Add the option that names what tuning moved a model's weights by."""
    group.add_argument(
        "--difference",
        metavar="FILE",
        help="what tuning moved these weights by, as main.py left it in weight_delta.safetensors",
    )


def find_model(model: str, config: str | None) -> tuple[Path | None, Path]:
    """Find a model's configuration and weights; a Hub name is downloaded.

    Args:
        model: as `ldm.checkpoint.hub.locate_base` takes it: a file, a folder or a Hub name.
        config: the configuration; where none is given, the one beside the weights.

    Returns:
        The configuration and the weights. The configuration is None where the loader takes that of
        the family that the weights belong to.

    Raises:
        UserError: one of the files does not exist; says how to get weights.
    """
    from ldm.checkpoint.hub import config_beside, locate_base

    weights = locate_base(model)
    if config is None:
        return None if weights.is_dir() else config_beside(weights), weights
    if not locate(config).is_file():
        raise UserError(f"configuration {config} does not exist")
    return locate(config), weights


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
    """Return the device to draw on; "auto" takes a GPU where there is one.

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
