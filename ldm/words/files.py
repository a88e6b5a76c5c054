"""Files of learned words: the only reader and writer.

Written: the original's `.pt` (`string_to_token`, `string_to_param`) and `.safetensors`, whose
header says where the words come from. Read: these, and the forms of other tools, which
`ldm.words.formats` lists. A pickle may come from a stranger: none of it is run.
"""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import save as safetensors_bytes
from torch import Tensor, nn

from ldm.util import UserError, write_whole
from ldm.words.containers import read_container
from ldm.words.formats import SDXL, interpret
from ldm.words.formats import WordFile as WordFile
from ldm.words.hub import find_word

FORMAT_NAME = "ldm-word"
FORMAT_VERSION = "1"

FAMILY_BY_WIDTH = {
    768: "CLIP ViT-L/14 (Stable Diffusion 1.x, or SDXL's clip_l)",
    1024: "OpenCLIP ViT-H (Stable Diffusion 2.x)",
    1280: "LDM-BERT (the 1.4B latent diffusion model) or SDXL's clip_g",
}
# What to do with a word that is for another text encoder.
REMEDY = "give the model that it was learned on, or learn it on this one"
# The names under which diffusers' SDXL script writes the vectors of the two text encoders.
FIRST_FILE, SECOND_FILE = "learned_embeds", "learned_embeds_2"


def stored_step(file: WordFile) -> int:
    """Return the optimizer step a file was written at, 0 where it does not say."""
    text = file.metadata.get("step", "")
    return int(text) if text.isdecimal() else 0


def renamed(file: WordFile, rename: Mapping[str, str], path: str | Path) -> WordFile:
    """Return a file's words under new names; those not in `rename` keep theirs.

    Raises UserError where `rename` names a word that is not there, or makes two words one.
    """
    absent = [old for old in rename if old not in file.words]
    if absent:
        raise UserError(f"{str(path)!r} has no word {absent[0]!r}; it holds {list(file.words)}")
    names = [rename.get(p, p) for p in file.words]
    if len(set(names)) < len(names):
        raise UserError(f"{str(path)!r}: renaming gives two words one name: {names}")
    facts = dict(file.metadata)
    if "placeholders" in facts and rename:
        facts["placeholders"] = json.dumps(names, ensure_ascii=False)
    return replace(
        file,
        words={rename.get(p, p): v for p, v in file.words.items()},
        second={rename.get(p, p): v for p, v in file.second.items()},
        token_ids={p: i for p, i in file.token_ids.items() if rename.get(p, p) == p},
        metadata=facts,
    )


def check_name(name: str) -> None:
    """Raise UserError for a placeholder that no model could load a word under."""
    if not (name and name.isprintable()) or any(c.isspace() for c in name):
        raise UserError(
            f"{name!r} cannot be the name of a word: give printable signs without spaces, such as "
            "@ or <cat-toy>"
        )


def check_encoder(file: WordFile, family: str, width: int, path: str | Path) -> None:
    """Raise UserError where a file's words are not for text encoder `family` of `width`."""
    ours = f"{family}, width {width}; {REMEDY}"
    for placeholder, vectors in file.words.items():
        if vectors.shape[-1] != width:
            raise UserError(
                f"{str(path)!r}: word {placeholder!r} has width {vectors.shape[-1]}, for "
                f"{describe_width(vectors.shape[-1])}; this model's text encoder is {ours}"
            )
    theirs = file.metadata.get("encoder_family", "")
    if theirs == SDXL != family:
        raise UserError(
            f"{str(path)!r} is a word for SDXL's two text encoders (clip_l, clip_g); this model's "
            f"text encoder is {ours}"
        )
    if not theirs and width == 1280:
        raise UserError(
            f"{str(path)!r} does not say which text encoder of width 1280 its word is for, "
            f"LDM-BERT or SDXL's second: for SDXL put {FIRST_FILE}.safetensors beside "
            f"{SECOND_FILE}.safetensors; for the 1.4B model run scripts/convert_embedding.py IN "
            "OUT --encoder ldm-bert"
        )
    if theirs not in ("", family):
        raise UserError(
            f"{str(path)!r} was learned for the text encoder {theirs!r}; this model's is {ours}"
        )


def describe_width(width: int) -> str:
    """Name the text encoders whose token vectors are `width` wide."""
    return FAMILY_BY_WIDTH.get(width, "a text encoder this project has no name for")


def read_words(path: str | Path, placeholder: str | None = None) -> WordFile:
    """Read an embedding file of any known form.

    Args:
        path: a pickle, safetensors file or image; a folder that holds one; or a name of the
            Hugging Face Hub (see `ldm.words.hub`).
        placeholder: name of the word where the file holds one and does not name it; by default the
            name that its header or its folder's `token_identifier.txt` states, or else the file's
            own without suffix.

    Raises:
        UserError: no embedding file, unreadable, or refused because loading it would run code.
    """
    found, identifier = find_word(path)
    raw, metadata = read_container(found)
    file = interpret(raw, metadata, found, placeholder or identifier)
    return _with_companion(file, found)


def _with_companion(file: WordFile, path: Path) -> WordFile:
    """Join the two files in which diffusers' script stores a word of SDXL."""
    is_second = path.name.startswith(SECOND_FILE)
    if not path.name.startswith(FIRST_FILE) or file.second:
        return file
    names = (SECOND_FILE, FIRST_FILE) if is_second else (FIRST_FILE, SECOND_FILE)
    companion = path.with_name(path.name.replace(*names, 1))
    if not companion.is_file():
        return file
    other = interpret(*read_container(companion), companion, None)
    first, second = (other, file) if is_second else (file, other)
    if set(first.words) != set(second.words):
        raise UserError(f"{str(path)!r} and {companion.name!r} hold different words")
    facts = {**first.metadata, "encoder_family": SDXL}
    return replace(first, metadata=facts, second=second.words)


def write_words(
    path: str | Path,
    words: Mapping[str, Tensor],
    token_ids: Mapping[str, int] | None = None,
    metadata: Mapping[str, str] | None = None,
    second: Mapping[str, Tensor] | None = None,
) -> None:
    """Write words whole or not at all: after an error the file is the one that was there before.

    Args:
        path: `.pt`, in the original's form, or `.safetensors`.
        words: placeholder → vectors [k, d]; stored as float32.
        token_ids: placeholder → token id; needed for a `.pt`, which the original reads.
        metadata: facts to keep, all strings; in a `.pt` under a key that the original ignores.
        second: placeholder → vectors [k, 1280] for SDXL's second text encoder. A `.safetensors`
            file then holds `clip_l` and `clip_g`, of several words as `bundle_emb.NAME.clip_l`.

    Raises:
        ValueError: another suffix, no words, or a word of a `.pt` without token id.
    """
    path = Path(path)
    if not words:
        raise ValueError("words is empty: there is nothing to write")
    tensors, others = plain(words), plain(second or {})
    facts = header(metadata or {})
    if path.suffix == ".safetensors":
        if others:
            facts.setdefault("name", next(iter(tensors)))
            tensors = {
                key if len(words) == 1 else f"bundle_emb.{name}.{key}": part[name]
                for key, part in (("clip_l", tensors), ("clip_g", others))
                for name in words
            }
        write_whole(path, safetensors_bytes(tensors, facts))
        return
    if path.suffix != ".pt":
        raise ValueError(f"path must end in .pt or .safetensors, got {str(path)!r}")
    ids = token_ids or {}
    missing = [p for p in tensors if p not in ids]
    if missing:
        raise ValueError(f"token_ids must name every word of a .pt file, missing: {missing}")
    content = {
        "string_to_token": {p: torch.tensor(ids[p]) for p in tensors},
        "string_to_param": _parameters(tensors),
        "metadata": facts,
        **({"string_to_param_clip_g": others} if others else {}),
    }
    buffer = io.BytesIO()
    torch.save(content, buffer)
    write_whole(path, buffer.getvalue())


def header(metadata: Mapping[str, str]) -> dict[str, str]:
    """Return the metadata of a word's file. transformers and diffusers look for `format`."""
    facts = {str(key): str(value) for key, value in metadata.items()}
    own = {"word_file": FORMAT_NAME, "word_file_version": FORMAT_VERSION, "format": "pt"}
    return {**facts, **own}


def plain(words: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return float32 copies on the CPU: the file of a view would hold its whole storage."""
    return {p: v.detach().to("cpu", torch.float32).clone().contiguous() for p, v in words.items()}


def _parameters(tensors: dict[str, Tensor]) -> nn.ParameterDict | dict[str, Tensor]:
    """Return a ParameterDict, as the original, or a dict for names it refuses ("a.b", "pop")."""
    try:
        return nn.ParameterDict({p: nn.Parameter(v) for p, v in tensors.items()})
    except KeyError:
        return tensors
