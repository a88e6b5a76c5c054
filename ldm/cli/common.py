"""The common parts of command lines: one-line errors, a model's files, the device.

Imports nothing heavy, so that `--help` answers at once.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
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
# An option that takes several values, and may be repeated.
SEVERAL: Mapping[str, Any] = {"nargs": "+", "action": "extend", "default": []}
_STEPS = {"type": int, "help": "steps of the sampler, 1..1000"}
_ETA = {"type": float, "help": "DDIM's noise: 0 is deterministic, 1 is DDPM"}
# Options that several commands have, by their names in Python: arguments of `add_argument`, and
# under `flags` other spellings.
SHARED: Mapping[str, Mapping[str, Any]] = {
    "steps": {**_STEPS, "flags": ("--steps", "--ddim_steps")},
    "ddim_steps": _STEPS,
    "scale": {"type": float, "help": "guidance scale; 1 is no guidance"},
    "seed": {"type": int, "help": "seed of the first image; image i has seed + i"},
    "sampler": {"choices": SAMPLERS, "help": "the sampler"},
    "karras": {"action": "store_true", "help": "space noise levels as Karras et al.: few steps"},
    "eta": {**_ETA, "flags": ("--eta", "--ddim_eta")},
    "ddim_eta": _ETA,
    "negative_prompt": {"metavar": "TEXT", "help": "text that guidance leads away from"},
    "weighted_prompts": {
        "action": "store_true",
        "help": "(word:1.2), (word) and [word] are weights; prompts may be longer than the encoder",
    },
    "clip_skip": {"type": int, "metavar": "N", "help": "CLIP's layer; 2 is one before"},
    "n_samples": {"type": int, "help": "number of images"},
    "images": {"type": int, "help": "images of each prompt", "flags": ("--images", "--pictures")},
    "batch_size": {"type": int, "help": "images at a time; 0 takes as many as fit"},
    "device": {"help": "auto, cpu, cuda, cuda:1, mps"},
    "precision": {"choices": PRECISIONS, "help": "float32, or half precision where it is safe"},
    "outdir": {"metavar": "DIR", "help": "folder of the results"},
    "output": {"metavar": "DIR", "help": "folder of the results"},
    "concepts": {"metavar": "DIR", "help": "a folder of images for each concept"},
}


def add_options(group: argparse._ActionsContainer, **defaults: Any) -> None:
    """Add options of `SHARED`, each with its default, which the help names."""
    for name, default in defaults.items():
        options = dict(SHARED[name])
        if default is not None and not isinstance(default, bool) and default != "":
            options["help"] += f" ({default})"
        group.add_argument(*options.pop("flags", (f"--{name}",)), default=default, **options)


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


class Once(argparse.Action):
    """An option that may be given only once; argparse alone would use the last value."""

    def __call__(self, _: Any, namespace: argparse.Namespace, values: Any, *__: Any) -> None:
        """Store the value."""
        if getattr(namespace, self.dest) is not self.default:
            raise argparse.ArgumentError(self, "is given twice: this command takes one")
        setattr(namespace, self.dest, values)


def add_words(group: argparse._ActionsContainer) -> None:
    """Add the option that names files of learned words."""
    text = "files of learned words; with WORD= the file's one word gets that name"
    group.add_argument("--embedding_path", **SEVERAL, metavar="[WORD=]FILE", help=text)


def add_base(group: argparse._ActionsContainer, default: str | None, text: str) -> None:
    """Add the option that names a base, as `locate_base` takes it; `text` says the default."""
    group.add_argument(
        *("--model", "--ckpt_path", "--ckpt"),
        dest="model",
        metavar="MODEL",
        default=default,
        help=f"a .ckpt or .safetensors file, a folder of diffusers, or a Hub name ({text})",
    )


def add_model(group: argparse._ActionsContainer, checkpoint: str) -> None:
    """Add the options that name a model, for `find_model`; `checkpoint` is the default one."""
    ships = "; models/miniature ships with the project" if checkpoint != MINIATURE else ""
    add_base(group, checkpoint, f"{checkpoint}{ships}")
    group.add_argument(
        "--config",
        metavar="YAML",
        help="configuration of the model; by default the one beside its weights, or its family's",
    )


def add_weight_delta(group: argparse._ActionsContainer) -> None:
    """Add the option that names a weight delta."""
    group.add_argument(
        "--weight_delta",
        "--difference",
        metavar="FILE",
        help="the weight delta that tuning of this model wrote (weight_delta.safetensors)",
    )


def add_generation(parser: argparse.ArgumentParser) -> None:
    """Add the options of a model that generates, and its words."""
    group = parser.add_argument_group("the model")
    add_model(group, PUBLISHED)
    add_words(group)
    add_weight_delta(group)
    add_options(group, device="auto")


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
