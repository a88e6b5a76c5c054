"""Files of learned words: the only reader and writer.

Written: the original's `.pt` (`string_to_token`, `string_to_param`) and `.safetensors`, whose
header says where the words come from. Read: these, and what AUTOMATIC1111 (`.pt`, PNG), diffusers,
kohya, invoke-training and OneTrainer write. A pickle may come from a stranger: none of it is run.
"""

from __future__ import annotations

import base64
import binascii
import io
import json
import pickle
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as safetensors_bytes
from torch import Tensor, nn

from ldm.util import UserError, write_whole

FORMAT_NAME = "ldm-word"
FORMAT_VERSION = "1"
PICKLE_SUFFIXES = (".pt", ".bin", ".pth", ".ckpt")
# Tensors stored without the word's name: kohya and invoke-training, OneTrainer (so spelt).
NAMELESS_KEYS = ("emb_params", "emp_params")
# Facts about the training that AUTOMATIC1111 keeps beside the tensors.
AUTOMATIC_KEYS = ("name", "step", "sd_checkpoint", "sd_checkpoint_name")

FAMILY_BY_WIDTH = {
    768: "CLIP ViT-L/14 (Stable Diffusion 1.x, or SDXL's clip_l)",
    1024: "OpenCLIP ViT-H (Stable Diffusion 2.x)",
    1280: "LDM-BERT (the 1.4B latent diffusion model) or SDXL's clip_g",
}


@dataclass(frozen=True)
class WordFile:
    """The content of an embedding file.

    Attributes:
        words: placeholder → float32 vectors [k, d] on the CPU.
        metadata: what the file says about itself, all strings; may be empty.
        token_ids: placeholder → token id, for the words whose id the file states.
    """

    words: dict[str, Tensor]
    metadata: dict[str, str] = field(default_factory=dict)
    token_ids: dict[str, int] = field(default_factory=dict)


def stored_step(file: WordFile) -> int:
    """Return the optimiser step a file was written at, 0 where it does not say."""
    text = file.metadata.get("step", "")
    return int(text) if text.isdecimal() else 0


def renamed(file: WordFile, rename: Mapping[str, str], path: str | Path) -> dict[str, Tensor]:
    """Return the words of a file under new names; those not in `rename` keep theirs.

    Raises:
        UserError: `rename` names a word that is not there, or makes two words one.
    """
    absent = [old for old in rename if old not in file.words]
    if absent:
        raise UserError(f"{str(path)!r} has no word {absent[0]!r}; it holds {list(file.words)}")
    names = [rename.get(p, p) for p in file.words]
    if len(set(names)) < len(names):
        raise UserError(f"{str(path)!r}: renaming gives two words one name: {names}")
    return dict(zip(names, file.words.values(), strict=True))


def check_encoder(file: WordFile, family: str, width: int, path: str | Path) -> None:
    """Raise UserError where a file's words are not for text encoder `family` of `width`."""
    ours = f"{family}, width {width}"
    for placeholder, vectors in file.words.items():
        if vectors.shape[-1] != width:
            raise UserError(
                f"{str(path)!r}: word {placeholder!r} has width {vectors.shape[-1]}, for "
                f"{describe_width(vectors.shape[-1])}; this model's text encoder is {ours}"
            )
    theirs = file.metadata.get("encoder_family", family)
    if theirs != family:
        raise UserError(
            f"{str(path)!r} was learned for the text encoder {theirs!r}; this model's is {ours}"
        )


def describe_width(width: int) -> str:
    """Name the text encoders whose token vectors are `width` wide."""
    return FAMILY_BY_WIDTH.get(width, "a text encoder this project has no name for")


def read_words(path: str | Path, placeholder: str | None = None) -> WordFile:
    """Read an embedding file of any known format.

    Args:
        path: `.pt`, `.bin`, `.pth`, `.ckpt` (pickles), `.safetensors` or `.png`.
        placeholder: name of the word where the file holds one and does not name it; the file's own
            name without suffix otherwise.

    Raises:
        UserError: no such file, unreadable, refused because loading it would run code, or not an
            embedding file.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"embedding file {str(path)!r} does not exist")
    suffix = path.suffix.lower()
    if suffix == ".safetensors":
        raw, metadata = _read_safetensors(path)
    elif suffix == ".png":
        raw, metadata = _read_png(path), {}
    elif suffix in PICKLE_SUFFIXES:
        raw, metadata = _read_pickle(path), {}
    else:
        raise UserError(
            f"embedding file {str(path)!r}: unknown suffix {suffix!r}; expected .safetensors, .png "
            f"or one of {', '.join(PICKLE_SUFFIXES)}"
        )
    return _interpret(raw, metadata, placeholder or path.stem, path)


def write_words(
    path: str | Path,
    words: Mapping[str, Tensor],
    token_ids: Mapping[str, int] | None = None,
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Write words so that a reader never meets half a file: all of it, or what stood there before.

    Args:
        path: `.pt`, in the original's form, or `.safetensors`.
        words: placeholder → vectors [k, d]; stored as float32.
        token_ids: placeholder → token id; needed for a `.pt`, which the original reads.
        metadata: facts to keep, all strings; in a `.pt` under a key the original passes over.

    Raises:
        ValueError: another suffix, no words, or a word of a `.pt` without token id.
    """
    path = Path(path)
    if not words:
        raise ValueError("words is empty: there is nothing to write")
    tensors = {p: v.detach().to("cpu", torch.float32).contiguous() for p, v in words.items()}
    facts = {str(key): str(value) for key, value in (metadata or {}).items()}
    facts |= {"word_file": FORMAT_NAME, "word_file_version": FORMAT_VERSION}
    if path.suffix == ".safetensors":
        # "format": "pt" is what transformers and diffusers expect of a safetensors header.
        write_whole(path, safetensors_bytes(tensors, {**facts, "format": "pt"}))
        return
    if path.suffix != ".pt":
        raise ValueError(f"path must end in .pt or .safetensors, got {str(path)!r}")
    missing = [p for p in tensors if p not in (token_ids or {})]
    if missing:
        raise ValueError(f"token_ids must name every word of a .pt file, missing: {missing}")
    # Copies: a view would drag its whole storage into the file.
    content = {
        "string_to_token": {p: torch.tensor((token_ids or {})[p]) for p in tensors},
        "string_to_param": _parameters({p: v.clone() for p, v in tensors.items()}),
        "metadata": facts,
    }
    buffer = io.BytesIO()
    torch.save(content, buffer)
    write_whole(path, buffer.getvalue())


def _parameters(tensors: dict[str, Tensor]) -> nn.ParameterDict | dict[str, Tensor]:
    """Return a ParameterDict, as the original, or a dict for names it refuses ("a.b", "pop")."""
    try:
        return nn.ParameterDict({p: nn.Parameter(v) for p, v in tensors.items()})
    except KeyError:
        return tensors


def _read_safetensors(path: Path) -> tuple[dict[str, Any], dict[str, str]]:
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
            return tensors, dict(file.metadata() or {})
    except (SafetensorError, OSError) as error:
        raise UserError(f"{str(path)!r} is not a readable safetensors file: {error}") from error


def _read_pickle(path: Path) -> Any:
    """Load a pickle that may build tensors and ParameterDicts, and do nothing else."""
    try:
        with torch.serialization.safe_globals([nn.ParameterDict]):
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        forbidden = re.search(r"GLOBAL (\S+)", str(error))
        if forbidden is None:
            raise UserError(f"{str(path)!r} is not a readable embedding file") from error
        raise UserError(
            f"{str(path)!r} refused: loading it could run code, it asks for {forbidden[1]!r}; ask "
            "its author for a .safetensors file"
        ) from error
    except (RuntimeError, EOFError, OSError, ValueError, KeyError, TypeError) as error:
        reason = (str(error).splitlines() or [repr(error)])[0][:200]
        raise UserError(f"{str(path)!r} is not a readable embedding file: {reason}") from error


def _read_png(path: Path) -> Any:
    """Read AUTOMATIC1111's text chunk `sd-ti-embedding`: base64 of JSON."""
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(path) as image:
            text = image.info.get("sd-ti-embedding")
    except (UnidentifiedImageError, OSError) as error:
        raise UserError(f"{str(path)!r} is not a readable PNG: {error}") from error
    if not isinstance(text, str):
        raise UserError(f"{str(path)!r} has no text chunk 'sd-ti-embedding': it holds no word")
    try:
        return json.loads(base64.b64decode(text), object_hook=_json_tensor)
    except (binascii.Error, ValueError, TypeError) as error:
        raise UserError(f"{str(path)!r}: chunk 'sd-ti-embedding' is damaged: {error}") from error


def _json_tensor(node: dict[str, Any]) -> Any:
    return torch.tensor(node["TORCHTENSOR"]) if "TORCHTENSOR" in node else node


def _interpret(raw: Any, metadata: dict[str, str], name: str, path: Path) -> WordFile:
    if not isinstance(raw, Mapping):
        raise UserError(f"{str(path)!r} is no embedding file: it holds a {type(raw).__name__}")
    token_ids: dict[str, int] = {}
    if "string_to_param" in raw:
        tensors = _named(raw["string_to_param"], path)
        token_ids = _token_ids(raw.get("string_to_token"))
        # AUTOMATIC1111 triggers on its own `name`; the stored key, mostly "*", stays the word's.
        facts = raw.get("metadata")
        if not isinstance(facts, Mapping):
            facts = {k: raw[k] for k in AUTOMATIC_KEYS if raw.get(k) is not None}
        metadata = {str(k): str(v) for k, v in facts.items()}
    elif {"clip_l", "clip_g"} & set(raw):
        raise UserError(
            f"{str(path)!r} is a word for SDXL (clip_l, clip_g): no model here reads it"
        )
    else:
        tensors = {name if key in NAMELESS_KEYS else str(key): raw[key] for key in raw}
    words = {p: _vectors(value, p, path) for p, value in tensors.items()}
    if not words:
        raise UserError(f"{str(path)!r} holds no words")
    return WordFile(words, metadata, {p: i for p, i in token_ids.items() if p in words})


def _token_ids(stored: Any) -> dict[str, int]:
    """Return the ids a file states, passing over what is no number: an id is only a hint."""
    items = stored.items() if isinstance(stored, Mapping) else ()
    numbers = ((p, i.item() if isinstance(i, Tensor) and i.numel() == 1 else i) for p, i in items)
    return {str(p): i for p, i in numbers if isinstance(i, int)}


def _named(params: Any, path: Path) -> dict[str, Any]:
    # Files of old torch versions lack ParameterDict's `_keys`, so its own methods would fail.
    if isinstance(params, nn.ParameterDict):
        params = params.__dict__.get("_parameters")
    if not isinstance(params, Mapping):
        raise UserError(f"{str(path)!r}: 'string_to_param' holds no tensors")
    return {str(p): value for p, value in params.items()}


def _vectors(value: Any, placeholder: str, path: Path) -> Tensor:
    """Return float32 [k, d] of a stored [d] or [k, d]."""
    if not isinstance(value, Tensor) or not value.is_floating_point():
        raise UserError(
            f"{str(path)!r} is not an embedding file: {placeholder!r} is no float tensor"
        )
    if value.ndim not in (1, 2) or value.numel() == 0:
        raise UserError(
            f"{str(path)!r} is no embedding file: {placeholder!r} has shape "
            f"{tuple(value.shape)}, expected [vectors, width]"
        )
    vectors = value.detach().to(torch.float32).reshape(-1, value.shape[-1])
    if not vectors.isfinite().all():
        raise UserError(f"{str(path)!r}: word {placeholder!r} holds infinite or undefined numbers")
    return vectors.clone()
