"""Resume: find a checkpoint that is not damaged, and compare it with the configuration."""

from __future__ import annotations

import json
import logging
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor

from ldm.training.checkpoints import LAST, PREVIOUS
from ldm.training.lightning_private import is_run_checkpoint
from ldm.training.words import file_hash
from ldm.util import UserError, one_line
from ldm.words.files import read_words
from ldm.words.vectors import placeholder_of

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Saved:
    """A checkpoint to resume from: its file, optimizer step, and state of what was trained."""

    path: Path
    step: int
    state: Mapping[str, Tensor]


def _read(path: Path) -> Saved:
    """Read a checkpoint whose checksums are right.

    The file is a zip archive, which holds a CRC-32 of each of its parts. torch does not check them.

    Raises ValueError for a damaged file, UserError for a file of another kind.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            if damaged := archive.testzip():
                raise zipfile.BadZipFile(f"wrong checksum of {damaged}")
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # a damaged pickle may raise anything
        raise ValueError(one_line(error) or type(error).__name__) from error
    if not is_run_checkpoint(content):
        raise UserError(
            f"--resume {path}: not a checkpoint of a run of main.py; weights to start from are "
            "given as --actual_resume"
        )
    step, state = content.get("global_step"), content.get("state_dict")
    if not isinstance(step, int) or not isinstance(state, Mapping):
        raise ValueError("it lacks its step or its state")
    return Saved(path, step, state)


def read_checkpoint(path: Path) -> Saved:
    """Read a checkpoint; if `last.ckpt` is damaged, the one before it, and say so.

    Raises UserError if no checkpoint is whole.
    """
    try:
        return _read(path)
    except UserError:
        raise
    except ValueError as error:
        problem = f"{path} is damaged ({error})"
    if path.name not in (LAST, PREVIOUS):
        raise UserError(
            f"--resume: {problem}, or not a checkpoint of a run of main.py; weights to start from "
            "are given as --actual_resume"
        )
    earlier = path.with_name(PREVIOUS)
    try:
        if path.name == PREVIOUS or not earlier.is_file():
            raise ValueError("there is none")
        saved = _read(earlier)
    except ValueError as error:
        raise UserError(
            f"--resume: {problem}, and no earlier checkpoint can be used ({error}): start a new "
            "run; words saved so far are in embeddings.safetensors beside it"
        ) from error
    log.warning(f"{problem}: resuming from {PREVIOUS}, saved at step {saved.step}")
    return saved


def check_fits(saved: Saved, module: pl.LightningModule) -> None:
    """Check that a checkpoint holds what the configured model trains, in the same shapes.

    Raises UserError for the first difference.
    """
    own: dict[str, Tensor] = {n: p for n, p in module.named_parameters() if p.requires_grad}
    kept = set(module.state_dict()) - (set(dict(module.named_parameters())) - set(own))
    remedy = (
        "resume without the flags and overrides that change what is trained, or start a new run"
    )
    for name, weight in own.items():
        there = saved.state.get(name)
        if there is None:
            raise UserError(
                f"--resume: the checkpoint has no {_plain(name)}, which the configuration trains: "
                f"{remedy}"
            )
        if there.shape != weight.shape:
            raise UserError(
                f"--resume: {_plain(name)} has shape {list(there.shape)} in the checkpoint, "
                f"{list(weight.shape)} in the configuration: {remedy}"
            )
    for name in saved.state:
        if name not in kept:
            raise UserError(
                f"--resume: the checkpoint holds a trained {_plain(name)}, which the configuration "
                f"does not train: {remedy}"
            )


def _plain(name: str) -> str:
    """Return the name of a weight for a message; that of a word is its placeholder."""
    before, found, word = name.partition("string_to_param_dict.")
    is_word = found and before.startswith("embedding_manager")
    return f"word {placeholder_of(word)!r}" if is_word else name


def warn_of_changed_images(folder: Path, images: Sequence[Path]) -> None:
    """Warn if the training images are not those with which the run began.

    The word file in the checkpoints' folder holds the images' hashes.
    """
    words = folder / "embeddings.safetensors"
    try:
        before: Any = json.loads(read_words(words).metadata["pictures"])
    except (UserError, OSError, KeyError, ValueError):
        return
    now = [file_hash(path) for path in images]
    missing, new = len(set(before) - set(now)), len(set(now) - set(before))
    if missing or new:
        log.warning(
            f"the training images changed since the run began: {missing} of {len(before)} are "
            f"missing or changed, {new} are new. The resumed run learns from the present ones"
        )
    elif before != now:
        log.warning("the training images were renamed: the resumed run meets them in another order")
