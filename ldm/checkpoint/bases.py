"""Which base a file or folder holds: its family, its configuration, its weights."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from safetensors import safe_open
from torch import Tensor
from yaml import YAMLError  # type: ignore[import-untyped]

from ldm.checkpoint.files import read_state_dict
from ldm.checkpoint.folder_config import SUPPORTED, folder_config, shipped_config
from ldm.checkpoint.folders import read_folder, take
from ldm.checkpoint.hub import config_beside
from ldm.checkpoint.names import OTHER_USES, canonical, describe, published_name
from ldm.checkpoint.tables import FAMILIES, UNET_PREFIX, Family, open_clip, text_encoder
from ldm.util import UserError, told


@dataclass(frozen=True)
class Base:
    """A base whose files are there."""

    path: Path  # the weights' file, or a folder of diffusers
    family: str  # a key of `ldm.checkpoint.tables.FAMILIES`; "" if it is of none of them
    config: DictConfig  # configuration of the model
    what: str  # says what was recognized; empty if the caller gave the configuration
    undecided: bool = False  # whether it predicts v or ε is not known before its weights are read


# Text encoders by their class.
ENCODERS = {
    "BERTEmbedder": "ldm",
    "FrozenCLIPEmbedder": "sd1",
    "FrozenOpenCLIPEmbedder": "sd2",
    "FrozenXLEmbedder": "sdxl",
}
# Stability AI's generative-models, whose configuration may lie beside a file of SDXL.
OTHER_PROGRAM = "sgm."
# Metadata and names of published files that tell whether Stable Diffusion 2 predicts v.
METADATA_OF_V = {
    "modelspec.prediction_type": {"v": True, "epsilon": False},
    "modelspec.resolution": {"768x768": True, "512x512": False},
}
NAME_OF_V, NAME_OF_EPS = re.compile(r"768|[-_]v[-_.]"), re.compile(r"512|base")


def read_config(config: DictConfig | Mapping[str, Any] | str | Path) -> DictConfig:
    """Read a model's configuration; the caller may change what is returned.

    A tokenizer folder named relative to the configuration's own folder, or to the project's, is
    made absolute. Raises UserError for a file that is missing, is no YAML, or has no `model`.
    """
    name, folder = "configuration", None
    loaded: Any
    if isinstance(config, str | Path):
        name, folder = f"configuration {config}", Path(config).resolve().parent
        if not Path(config).is_file():
            raise UserError(f"{name} does not exist")
        with told(f"{name} is not YAML: ", YAMLError, OmegaConfBaseException, OSError, ValueError):
            loaded = OmegaConf.load(config)
    else:
        plain = OmegaConf.to_container(config) if isinstance(config, DictConfig) else dict(config)
        loaded = OmegaConf.create(plain)
    if not isinstance(loaded, DictConfig) or "model" not in loaded:
        raise UserError(f"{name} has no 'model': it is not the configuration of a model")
    tokenizer = OmegaConf.select(loaded, "model.params.cond_stage_config.params.tokenizer")
    if isinstance(tokenizer, str) and folder is not None and not Path(tokenizer).is_dir():
        beside = folder / tokenizer
        if beside.is_dir():
            loaded.model.params.cond_stage_config.params.tokenizer = str(beside)
    return loaded


def recognize(path: Path, config: DictConfig | None = None) -> Base:
    """Say which base a file of weights or a folder of diffusers is, and choose its configuration.

    `config` is a configuration that the caller has already. Raises UserError if nothing is there,
    or no supported base; one line says what is there instead.
    """
    if path.is_dir():
        family, own = folder_config(path)
        what = f"{FAMILIES[family].title}, a folder of diffusers"
        return Base(path, family, own if config is None else config, what)
    if config is not None:
        return Base(path, family_of_config(config), config, "")
    beside = config_beside(path)
    if beside is None:
        return _recognize_file(path)
    config = read_config(beside)
    if str(OmegaConf.select(config, "model.target")).startswith(OTHER_PROGRAM):
        base = _recognize_file(path)
        return replace(base, what=f"{base.what}; {beside.name} is of another program, not used")
    text_family = family_of_config(config)
    kind = f"like {FAMILIES[text_family].title}, " if text_family else ""
    return Base(path, text_family, config, f"a model {kind}with {beside.name} beside it")


def family_of_config(config: DictConfig) -> str:
    """Return the family that the text encoder of a configuration belongs to; "" for others."""
    target = str(OmegaConf.select(config, "model.params.cond_stage_config.target"))
    family = ENCODERS.get(target.rpartition(".")[2], "")
    predicts_v = OmegaConf.select(config, "model.params.parameterization") == "v"
    return "sd2-v" if family == "sd2" and predicts_v else family


def _recognize_file(path: Path) -> Base:
    state = read_state_dict(path)
    found, family = describe(state), text_encoder(state)[0]
    unet = any(name.startswith(UNET_PREFIX) for name in state)
    if not family or not unet or found.startswith(tuple(OTHER_USES.values())):
        raise UserError(f"{path}: found {found}; {SUPPORTED}")
    undecided = ""
    if family == "sd2":
        predicts_v = v_by_name(path)
        family = "sd2-v" if predicts_v else "sd2"
        undecided = "; v or ε is not known yet" if predicts_v is None else ""
    what = f"{FAMILIES[family].title} ({found}){undecided}"
    return Base(path, family, shipped_config(family), what, undecided != "")


def v_by_name(path: Path) -> bool | None:
    """Tell by a file's metadata and name whether Stable Diffusion 2 predicts v; None: unknown."""
    metadata: Mapping[str, str] = {}
    if path.suffix == ".safetensors":
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
    for key, meanings in METADATA_OF_V.items():
        if metadata.get(key) in meanings:
            return meanings[metadata[key]]
    if NAME_OF_V.search(path.name):
        return True
    return False if NAME_OF_EPS.search(path.name) else None


def read_weights(path: Path, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Read a base's weights, of a file or a folder, under names that `match_names` pairs with ours.

    `state` is the state of our model: its names and shapes say what to look for in a folder.
    Raises UserError for what is unreadable, or lacks a component.
    """
    own = {published_name(name): value for name, value in state.items()}
    key = text_encoder(own)[0]
    if not path.is_dir():
        state = read_state_dict(path)
        return _joined(state, own, FAMILIES[key]) if key else state
    if not key:
        raise UserError(f"{path}: a folder of diffusers does not fit this configuration")
    return read_folder(path, own, FAMILIES[key])


def _joined(
    state: dict[str, Tensor], own: Mapping[str, Tensor], family: Family
) -> dict[str, Tensor]:
    """Add the entries of OpenCLIP that a file has under the names of `transformers`."""
    parts = [part for part in family.parts if part.rule is open_clip]
    if not parts:
        return state
    there = {canonical(name) for name in state}
    entries = {n: entry for n, entry in family.entries(own).items() if canonical(n) not in there}
    for part in parts:
        roots = {part.prefix, part.prefix.replace(".model.", ".transformer.")}
        theirs = {n.removeprefix(r): v for r in roots for n, v in state.items() if n.startswith(r)}
        for name, entry in entries.items():
            if name.startswith(part.prefix) and (value := take(entry, theirs)) is not None:
                state[name] = value
    return state
