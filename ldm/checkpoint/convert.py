"""Write a base as one file in the published names, or as a folder of diffusers."""

from __future__ import annotations

import logging
import secrets
import shutil
from collections.abc import Mapping
from pathlib import Path

import torch
from omegaconf import OmegaConf
from safetensors.torch import save_file
from torch import Tensor

from ldm.checkpoint.bases import Base, read_weights
from ldm.checkpoint.folder_config import shipped_config
from ldm.checkpoint.folder_json import component_configs, model_index
from ldm.checkpoint.loading import build_empty, find_base, pair
from ldm.checkpoint.names import OPTIONAL_PREFIXES, published_name
from ldm.checkpoint.tables import FAMILIES, INDEX, Entry
from ldm.util import PART, UserError, reason_of, write_json, write_whole

logger = logging.getLogger(__name__)

FILES = (".ckpt", ".safetensors")


def convert(
    source: str | Path, target: str | Path, config: str | Path | None = None, half: bool = False
) -> Base:
    """Write a base in another form.

    Args:
        source: a file, a folder of diffusers or a Hub name.
        target: a `.ckpt` or `.safetensors` file in the published names; any other name is a folder
            of diffusers. It must not exist. If the configuration differs from that of the family,
            it is written beside the file as STEM.yaml.
        config: the base's configuration; by default the one that the loader finds.
        half: write float16.

    Returns what the source is. Raises UserError if the base is not supported, or if the target
    exists or cannot be written.
    """
    base, target = open_base(source, target, config)
    entries = read_entries(base)
    if half:
        entries = {n: v.half() if v.is_floating_point() else v for n, v in entries.items()}
    write(base, entries, target)
    logger.info("%s: %s, written to %s", base.path, FAMILIES[base.family].title, target)
    return base


def open_base(
    source: str | Path, target: str | Path, config: str | Path | None
) -> tuple[Base, Path]:
    """Find a base of a known family, and the path to write to; arguments and errors as `convert`'s.

    Raises UserError before anything is read or written.
    """
    target = Path(target).expanduser()
    if target.exists():
        raise UserError(f"{target} exists: give another name, or delete it")
    base = find_base(source, config)
    if not base.family:
        raise UserError(f"{base.path}: its family of models cannot be converted")
    return base, target


def read_entries(base: Base) -> dict[str, Tensor]:
    """Read a base's weights: published name → tensor. Raises UserError if one does not fit."""
    model = build_empty(base)
    own = model.state_dict()
    state = read_weights(base.path, own)
    pairs, lost = pair(own, state, str(base.path))
    entries = {ours: state[theirs] for theirs, ours in pairs.items()}
    if base.family != "sdxl":  # its published file has no tables of the schedule
        entries |= {name: own[name] for name in lost if not own[name].is_meta}
    return {published_name(n): v for n, v in entries.items() if not n.startswith(OPTIONAL_PREFIXES)}


def write(base: Base, entries: Mapping[str, Tensor], target: Path) -> None:
    """Write entries as a file or a folder, by the target's name; see `convert`."""
    if target.suffix in FILES:
        write_file(base, entries, target)
    else:
        write_folder(base, entries, target)


def write_file(base: Base, entries: Mapping[str, Tensor], target: Path) -> None:
    """Write entries as one file, and beside it the configuration if the family's differs."""
    if says := target.suffix == ".safetensors":
        predicts = "v" if base.family == "sd2-v" else "epsilon"
        metadata = {"format": "pt", "modelspec.prediction_type": predicts}
        held = {name: value.contiguous() for name, value in entries.items()}
        write_whole(target, lambda part: save_file(held, part, metadata=metadata))
    else:
        content = {"state_dict": dict(entries), "global_step": 0}
        write_whole(target, lambda part: torch.save(content, part))
    shipped = component_configs(base.family, shipped_config(base.family))
    same = component_configs(base.family, base.config) == shipped
    if not same or (base.family == "sd2-v" and not says):
        beside = OmegaConf.create({"model": base.config.model})
        write_whole(target.with_suffix(".yaml"), OmegaConf.to_yaml(beside))


def write_folder(base: Base, entries: Mapping[str, Tensor], target: Path) -> None:
    """Write entries as a folder of diffusers, whole or not at all."""
    part = target.with_name(f"{PART}{secrets.token_hex(6)}")
    try:
        _write_components(base, entries, part)
        part.rename(target)
    except Exception as error:
        reason = reason_of(error, target.parent)
        if reason is None:
            raise
        raise UserError(f"cannot write {str(target)!r}: {reason}") from error
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _write_components(base: Base, entries: Mapping[str, Tensor], folder: Path) -> None:
    held: dict[str, dict[str, Tensor]] = {}
    for name, entry in FAMILIES[base.family].entries(entries).items():
        held.setdefault(entry.component, {}).update(give(entry, entries[name]))
    configs = component_configs(base.family, base.config)
    for name, facts in configs.items():
        kind = "scheduler_config" if name == "scheduler" else "config"
        write_json(folder / name / f"{kind}.json", facts)
    for name, weights in held.items():
        stem = "model" if name.startswith(("text", "bert")) else "diffusion_pytorch_model"
        path = folder / name / f"{stem}.safetensors"
        layers = configs[name].get("num_hidden_layers")
        used = {n: v for n, v in weights.items() if layers is None or _block(n) < layers}
        save_file(used, path, metadata={"format": "pt"})
        weights.clear()
    _write_tokenizers(base, folder)
    write_json(folder / INDEX, model_index(base.family))


def _block(name: str) -> int:
    """Return the number of the block of a text encoder that an entry belongs to, or -1."""
    block = name.partition(".encoder.layers.")[2].partition(".")[0]
    return int(block) if block else -1


def give(entry: Entry, value: Tensor) -> dict[str, Tensor]:
    """Return the tensors of a folder, by name, for a published entry. Inverse of `folders.take`."""
    if entry.transposed:
        value = value.T
    if ".attentions." in entry.names[0] and entry.component in ("vae", "vqvae") and value.ndim == 4:
        value = value[:, :, 0, 0]  # in a folder, the autoencoder's attention has matrices
    parts = value.chunk(len(entry.names))
    # Tensors in a safetensors file must not share memory.
    copies = (part.clone() if len(parts) > 1 else part.contiguous() for part in parts)
    return dict(zip(entry.names, copies, strict=True))


def _write_tokenizers(base: Base, folder: Path) -> None:
    """Copy the vocabularies of a folder, or write those that the configuration names."""
    from ldm.modules.encoders.vocabulary import load_tokenizer

    kind, published = "CLIPTokenizerFast", "openai/clip-vit-large-patch14"
    if base.family == "ldm":
        kind, published = "BertTokenizerFast", "bert-base-uncased"
    params = base.config.model.params.cond_stage_config.get("params") or {}
    for name in FAMILIES[base.family].tokenizers:
        if (base.path / name).is_dir():
            shutil.copytree(base.path / name, folder / name)
            continue
        source = params.get("tokenizer") or params.get("version") or published
        tokenizer = load_tokenizer(kind, str(source))
        tokenizer.model_max_length = 77
        if name == "tokenizer_2" or base.family.startswith("sd2"):
            tokenizer.pad_token = "!"  # OpenCLIP pads with id 0
        tokenizer.save_pretrained(folder / name)
