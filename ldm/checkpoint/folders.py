"""Read the weights of a base in diffusers' folder format, under their published names.

Each component of the folder has a `config.json` and weights: safetensors if there are any, else
`.bin`, whole or in several files that an index names. `.bin` is read without running code.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ldm.checkpoint.files import read_state_dict
from ldm.checkpoint.names import of_another_model
from ldm.checkpoint.tables import OLD_ATTENTION, STEMS, Entry, Family, choose_weights
from ldm.util import UserError, told


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON file that holds a mapping; UserError where it is missing or damaged."""
    if not path.exists():
        raise UserError(f"{path.parent} lacks {path.name}: download the folder again")
    with told(f"{path} is damaged (", OSError, ValueError, after="): download it again"):
        content = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(content, dict):
        raise UserError(f"{path}: expected a mapping, got a {type(content).__name__}")
    return content


def read_component(folder: Path) -> dict[str, Tensor]:
    """Read the weights of a component under the folder's names; UserError if a file is missing."""
    if not folder.is_dir():
        raise UserError(
            f"{folder.parent} lacks the component {folder.name}/: download the whole folder"
        )
    chosen = choose_weights(path.name for path in folder.iterdir())
    if not chosen:
        raise UserError(f"{folder} has no weights, such as {STEMS[0]}.safetensors: download them")
    if chosen[-1].endswith(".json"):
        listed = read_json(folder / chosen[-1]).get("weight_map", {})
        chosen = sorted(set(map(str, listed.values())))
        if lost := [name for name in chosen if not (folder / name).is_file()]:
            raise UserError(f"{folder} lacks {lost[0]}, which its index names: download it")
    state: dict[str, Tensor] = {}
    for name in chosen:
        state.update(read_state_dict(folder / name))
    return state


def take(entry: Entry, weights: Mapping[str, Tensor]) -> Tensor | None:
    """Return the value of a published entry from a component's weights; None if it is absent.

    Names of earlier versions are accepted: the autoencoder's attention before diffusers 0.17, and
    CLIP with and without the level `text_model.`.
    """
    parts = []
    for name in entry.names:
        spellings = [name, name.removeprefix("text_model.")]
        if ".attentions.0." in name:
            spellings += [name.replace(f".{n}.", f".{old}.") for n, old in OLD_ATTENTION.items()]
        found = next((weights[n] for n in spellings if n in weights), None)
        if found is None:
            return None
        parts.append(found)
    value = parts[0] if len(parts) == 1 else torch.cat(parts)
    return value.T.contiguous() if entry.transposed else value


def read_folder(folder: Path, wanted: Mapping[str, Tensor], family: Family) -> dict[str, Tensor]:
    """Read the weights of a pipeline's folder under the published names of a model of a family.

    `wanted` has the model's entries by published name, on the meta device or with any values: their
    shapes decide between a matrix and a 1×1 convolution. Raises UserError for a component that is
    missing or damaged.
    """
    components = {part.component: read_component(folder / part.component) for part in family.parts}
    state: dict[str, Tensor] = {}
    known: set[str] = set()
    for name, entry in family.entries(wanted).items():
        value = take(entry, components[entry.component])
        if value is not None:
            state[name] = like(value, wanted[name].shape)
            known.update(entry.names)
    if strange := [name for name in components["unet"] if name not in known]:
        raise UserError(f"{folder}: found {family.title}, {of_another_model(strange)}")
    return state


def like(value: Tensor, shape: torch.Size) -> Tensor:
    """Reshape a matrix to a 1×1 convolution or back, if the wanted shape needs it."""
    same = value.shape[:2] == shape[:2] and value.ndim != len(shape)
    return value.reshape(shape) if same and value.numel() == shape.numel() else value
