"""The common parts of command lines: one-line errors, a model's files, the device.

Imports nothing heavy, so that `--help` answers at once.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ldm.resources import locate
from ldm.sampling import PRECISIONS, SAMPLERS, Sampling
from ldm.util import Parser as Parser
from ldm.util import UserError, at_least
from ldm.util import check_output_folder as check_output_folder

if TYPE_CHECKING:
    from ldm.models.diffusion.ddpm import LatentDiffusion

MINIATURE = "models/miniature"
PUBLISHED = "models/ldm/text2img-large/model.ckpt"
_STEPS, _ETA = "steps of the sampler, 1..1000", "DDIM's noise: 0 is deterministic, 1 is DDPM"
_WORDS = "files of learned words; with WORD= the file's one word gets that name"
_DELTA = "the weight delta that tuning of this model wrote (weight_delta.safetensors)"
_WEIGHTED = "(word:1.2), (word) and [word] are weights; prompts may be longer than the encoder"
# Options that several commands have, by their names in Python: spellings and help, for `option`.
SHARED: Mapping[str, tuple[str, str]] = {
    "steps": ("--steps --ddim_steps", _STEPS),
    "ddim_steps": ("--ddim_steps", _STEPS),
    "scale": ("--scale", "guidance scale; 1 is no guidance"),
    "seed": ("--seed", "seed of the first image; image i has seed + i"),
    "sampler": ("--sampler", "the sampler"),
    "karras": ("--karras", "space noise levels as Karras et al.: few steps"),
    "eta": ("--eta --ddim_eta", _ETA),
    "ddim_eta": ("--ddim_eta", _ETA),
    "negative_prompt": ("--negative_prompt TEXT", "text that guidance leads away from"),
    "weighted_prompts": ("--weighted_prompts", _WEIGHTED),
    "clip_skip": ("--clip_skip N", "CLIP's layer; 2 is one before"),
    "n_samples": ("--n_samples", "number of images"),
    "images": ("--images --pictures", "images of each prompt"),
    "batch_size": ("--batch_size", "images at a time; 0 takes as many as fit"),
    "device": ("--device", "auto, cpu, cuda, cuda:1, mps"),
    "precision": ("--precision", "float32, or half precision where it is safe"),
    "outdir": ("--outdir DIR", "folder of the results"),
    "output": ("--output DIR", "folder of the results"),
    "concepts": ("--concepts DIR", "a folder of images for each concept"),
    "embedding_path": ("--embedding_path [WORD=]FILE", _WORDS),
    "weight_delta": ("--weight_delta --difference FILE", _DELTA),
}
CHOICES: Mapping[str, Sequence[str]] = {"sampler": SAMPLERS, "precision": PRECISIONS}


def option(
    group: argparse._ActionsContainer, names: str, text: str, default: Any = None, **more: Any
) -> None:
    """Add an option, or an argument.

    Args:
        group: where to add it.
        names: its spellings; after them the name of its value in the help, if it needs one.
        text: its help. The default is added, unless it stands there in brackets at the end.
        default: value without the option. A number gives the type; False makes a switch; [] takes
            several values, and the option may be repeated.
        more: further arguments of `add_argument`.
    """
    first, *others = names.split()
    flags = [first, *(name for name in others if name.startswith("-"))]
    if others and others[-1] != flags[-1]:
        more["metavar"] = others[-1]
    if default is False:
        more["action"] = "store_true"
    elif default == []:
        more = {"nargs": "+", "action": "extend"} | more
    elif type(default) in (int, float):
        more["type"] = type(default)
    if type(default) in (int, float, str) and default != "" and not text.endswith(")"):
        text += f" ({default:g})" if isinstance(default, float) else f" ({default})"
    group.add_argument(*flags, default=default, help=text, **more)


def add_options(group: argparse._ActionsContainer, **defaults: Any) -> None:
    """Add options of `SHARED`, each with its default."""
    for name, default in defaults.items():
        more: dict[str, Any] = {"choices": CHOICES[name]} if name in CHOICES else {}
        option(group, *SHARED[name], default, **more)


def check_least(options: argparse.Namespace, least: float, *names: str) -> None:
    """Raise UserError for the first of the named options that is below `least`."""
    try:
        at_least(least, **{f"--{name}": getattr(options, name) for name in names})
    except ValueError as error:
        raise UserError(str(error)) from None


def split_pairs(form: str, items: Sequence[str]) -> list[tuple[str, str]]:
    """Split an option's values at "="; UserError, which begins with `form`, for another form."""
    pairs = [item.partition("=") for item in items]
    for item, (old, equals, new) in zip(items, pairs, strict=True):
        if not (old and equals and new):
            raise UserError(f"{form}, got {item!r}")
    return [(old, new) for old, _, new in pairs]


def check_free(paths: Iterable[Path], option: str, force: bool) -> None:
    """Raise UserError for the first path that exists; `option` names it. `force` replaces it."""
    for path in paths:
        if path.exists() and not force:
            raise UserError(f"{path} exists: give another {option}, or --force to replace it")


class Once(argparse.Action):
    """An option that may be given only once; argparse alone would use the last value."""

    def __call__(self, _: Any, namespace: argparse.Namespace, values: Any, *__: Any) -> None:
        """Store the value."""
        if getattr(namespace, self.dest) is not self.default:
            raise argparse.ArgumentError(self, "is given twice: this command takes one")
        setattr(namespace, self.dest, values)


def add_base(group: argparse._ActionsContainer, default: str | None, text: str) -> None:
    """Add the option that names a base, as `locate_base` takes it; `text` says the default."""
    text = f"a .ckpt or .safetensors file, a folder of diffusers, or a Hub name ({text})"
    option(group, "--model --ckpt_path --ckpt MODEL", text, default)


def add_model(group: argparse._ActionsContainer, checkpoint: str) -> None:
    """Add the options that name a model, for `find_model`; `checkpoint` is the default one."""
    ships = "; models/miniature ships with the project" if checkpoint != MINIATURE else ""
    add_base(group, checkpoint, f"{checkpoint}{ships}")
    text = "configuration of the model; by default the one beside its weights, or its family's"
    option(group, "--config YAML", text)


def add_generation(parser: argparse.ArgumentParser) -> None:
    """Add the options of a model that generates, and its words."""
    group = parser.add_argument_group("the model")
    add_model(group, PUBLISHED)
    add_options(group, embedding_path=[], weight_delta=None, device="auto")


def find_model(model: str, config: str | None) -> tuple[Path | None, Path]:
    """Find a model's configuration and weights; a Hub name is downloaded.

    Args:
        model: as `ldm.checkpoint.hub.locate_base` takes it: a file, a folder or a Hub name.
        config: the configuration; by default the one beside the weights, or None where the loader
            takes that of the family that the weights belong to.

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


def load(options: argparse.Namespace, prompts: Sequence[str]) -> LatentDiffusion:
    """Load the model with its words, on the CPU, where its weights lie unread until they are used.

    Raises UserError for files of another architecture, or a prompt that would lose a word. Weighted
    prompts have no end that could be cut off.
    """
    from ldm.inference import load_model, load_words
    from ldm.words.loading import check_words

    config, weights = find_model(options.model, options.config)
    check_words(options.embedding_path, prompts)
    model = load_model(config, weights, weight_delta=options.weight_delta)
    weighted = getattr(options, "weighted_prompts", False)
    load_words(model, options.embedding_path, () if weighted else prompts)
    return model


def image_facts(options: argparse.Namespace) -> dict[str, Any]:
    """Return the files that decided an image that was made from another one."""
    from ldm.checkpoint.loading import checkpoint_hash

    _, weights = find_model(options.model, options.config)
    return {
        "image": Path(options.image).name,
        "image_hash": checkpoint_hash(options.image),
        **model_facts(weights, options),
        "embeddings": " ".join(options.embedding_path),
    }


def model_facts(weights: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Return what an image's metadata say about its model."""
    from ldm.checkpoint.loading import checkpoint_hash

    facts = {"checkpoint": weights.name, "checkpoint_hash": checkpoint_hash(weights)}
    return facts | ({"weight_delta": options.weight_delta} if options.weight_delta else {})


def sampling_of(options: argparse.Namespace, **flags: str) -> Sampling:
    """Return the sampling settings that options give; UserError for one out of range.

    `flags` maps a setting to its option, where the option has another name.
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

    Raises UserError for an unknown device, or one that this machine does not have.
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
