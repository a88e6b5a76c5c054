"""Builds the page of YAML keys from the signatures and docstrings of the classes.

A class comes once, under the name by which YAML files target it. The parameters of its parents are
among its own, unless a parent has a section too.
"""

from __future__ import annotations

import ast
import inspect
import json
import re
from collections.abc import Iterable, Mapping
from typing import Any

import pytorch_lightning as pl

from ldm.experiments.protocol import spec
from ldm.training.config import RunOptions
from ldm.training.latents import CacheLatents
from ldm.training.trainer import OUTDATED, OUTDATED_SAVING
from ldm.training.validate import CACHE, GIVEN_BY_PARENT, LIGHTNING_KEYS
from ldm.util import get_obj_from_str, parameters

# Title of a group → names of its classes.
GROUPS: Mapping[str, tuple[str, ...]] = {
    "Models": (
        "ldm.models.diffusion.ddpm.LatentDiffusion",
        "ldm.models.autoencoder.AutoencoderKL",
        "ldm.models.autoencoder.VQModel",
        "ldm.models.autoencoder.VQModelInterface",
    ),
    "Words": (
        "ldm.words.manager.EmbeddingManager",
        "ldm.words.directional.DirectionalEmbeddingManager",
    ),
    "Networks": (
        "ldm.modules.diffusionmodules.openaimodel.UNetModel",
        "ldm.modules.diffusionmodules.model.Encoder",
    ),
    "Conditioners": (
        "ldm.modules.encoders.modules.BERTEmbedder",
        "ldm.modules.encoders.modules.FrozenCLIPEmbedder",
        "ldm.modules.encoders.modules.FrozenOpenCLIPEmbedder",
        "ldm.modules.encoders.modules.FrozenXLEmbedder",
        "ldm.modules.encoders.modules.ClassEmbedder",
        "ldm.modules.encoders.modules.SpatialRescaler",
    ),
    "Data": (
        "main.DataModuleFromConfig",
        "ldm.data.personalized.PersonalizedBase",
        "ldm.data.personalized_style.PersonalizedBase",
        "ldm.data.personalized_prior.PersonalizedWithPrior",
        "ldm.data.joint.JointConcepts",
        "ldm.data.many.ManyConcepts",
        "ldm.data.miniature.MiniatureWorld",
    ),
    "Losses of autoencoders": (
        "ldm.modules.losses.KLReconstruction",
        "ldm.modules.losses.LPIPSWithDiscriminator",
    ),
    "Schedules of the learning rate": (
        "ldm.lr_scheduler.LambdaWarmUpCosineScheduler",
        "ldm.lr_scheduler.LambdaWarmUpCosineScheduler2",
        "ldm.lr_scheduler.LambdaLinearScheduler",
        "ldm.lr_scheduler.LambdaWarmUpStableDecayScheduler",
    ),
    "Callbacks": (
        "main.ImageLogger",
        "ldm.training.short_starts.ShortStarts",
        "ldm.training.dvar.DVAR",
    ),
}
CLASSES: Mapping[type, str] = {
    get_obj_from_str(name): name for names in GROUPS.values() for name in names
}


def described(kind: type) -> dict[str, str]:
    """Return the descriptions in the Args or Attributes of a class's own docstring, by name."""
    found: dict[str, str] = {}
    text = inspect.cleandoc(vars(kind).get("__doc__") or "") + "\n"
    for block in re.findall(r"^(?:Args|Attributes):\n((?:    .*\n|\n)+)", text, re.MULTILINE):
        for entry in re.split(r"^    (?=\S)", block, flags=re.MULTILINE)[1:]:
            names, _, about = entry.partition(":")
            found |= {name.strip(): " ".join(about.split()) for name in names.split(",")}
    return found


def parent_of(kind: type) -> type | None:
    """Return the nearest parent with a section whose keys a class takes too."""
    taken = set(parameters(kind)[0])
    for parent in kind.__mro__[1:]:
        if parent in CLASSES and set(parameters(parent)[0]) <= taken:
            return parent
    return None


def keys_of(kind: type) -> list[tuple[inspect.Parameter, str]]:
    """Return the parameters of a class that its section lists, and their descriptions."""
    texts: dict[str, str] = {}
    for owner in kind.__mro__:
        texts = described(owner) | texts
    parent = parent_of(kind)
    inherited = set(parameters(parent)[0]) - set(described(kind)) if parent else set()
    return [
        (parameter, texts.get(name, ""))
        for name, parameter in parameters(kind)[0].items()
        if name not in GIVEN_BY_PARENT and name not in inherited
    ]


def prose(text: str) -> str:
    """Write a text so that Markdown reads no marks in it but those of code."""
    parts = re.split(r"(`[^`]*`)", " ".join(text.split()))
    return "".join(p if p.startswith("`") else re.sub(r"([*<_|])", r"\\\1", p) for p in parts)


def table(rows: Iterable[tuple[str, str, str, str]]) -> str:
    """Write rows of key, type, default and description as a table."""
    lines = ["| key | type | default | what |", "|---|---|---|---|"]
    for *codes, about in rows:
        # A bar would end the cell; the site shows a backslash before it.
        cells = [f"`{code}`".replace(" | ", " or ") if code else "" for code in codes]
        lines.append(f"| {' | '.join([*cells, prose(about)])} |")
    return "\n".join(lines)


def written(value: Any) -> str:
    """Write a value as YAML has it."""
    return json.dumps(value, ensure_ascii=False)


def keys(kind: type) -> str:
    """Write the table of a class's keys."""
    return table(
        (p.name, str(p.annotation), "" if p.default is p.empty else written(p.default), about)
        for p, about in keys_of(kind)
    )


def section(name: str) -> list[str]:
    """Write the section of a class: its summary, its keys, and whose keys it takes too."""
    kind: type = get_obj_from_str(name)
    own, parent = keys_of(kind), parent_of(kind)
    parts = [f"### `{name}`", prose(inspect.cleandoc(kind.__doc__ or "").split("\n\n")[0])]
    if own:
        parts.append(keys(kind))
    if parent:
        parts.append(f"It takes {'also ' if own else ''}the keys of `{CLASSES[parent]}`.")
    return parts


def names(values: Iterable[str]) -> str:
    """Write names as a sorted list in a sentence."""
    return ", ".join(f"`{value}`" for value in sorted(values))


def lightning() -> list[str]:
    """Write the section `lightning`."""
    trainer = [name for name in parameters(pl.Trainer)[0] if name not in ("logger", "callbacks")]
    cache = described(CacheLatents)
    return [
        "## The section `lightning`",
        table((key, "", "", about) for key, about in LIGHTNING_KEYS.items()),
        f"Keys of `modelcheckpoint.params` in old files are ignored: {names(OUTDATED_SAVING)}.",
        "### `latent_cache`",
        table((key, kind, "", cache[key]) for key, kind in CACHE.items()),
        "### `trainer`",
        f"The options of Lightning's `Trainer`: {names(trainer)}.",
        f"Options in old files that are ignored, and that the log names: {names(OUTDATED)}.",
    ]


def protocol() -> list[str]:
    """Write the keys of a protocol, from its module: the docstring and the commented defaults."""
    text = inspect.getsource(spec)
    defaults = next(
        ast.get_source_segment(text, node.value)
        for node in ast.parse(text).body
        if isinstance(node, ast.AnnAssign) and ast.unparse(node.target) == "DEFAULTS"
    )
    about = inspect.cleandoc(spec.__doc__ or "")
    return ["## Protocols", about, f"```python\nDEFAULTS = {defaults}\n```"]


def page() -> str:
    """Write what follows the page's introduction."""
    parts = ["## The section `run`", keys(RunOptions), *lightning()]
    for title, classes in GROUPS.items():
        parts += [f"## {title}", *(part for name in classes for part in section(name))]
    return "\n\n".join([*parts, *protocol()]) + "\n"
