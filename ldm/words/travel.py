"""Write words in the forms that other tools read. docs/how-to/move-a-word.md lists the forms."""

from __future__ import annotations

import base64
import json
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image, ImageDraw, PngImagePlugin
from safetensors.torch import save as safetensors_bytes
from torch import Tensor

from ldm.image_io import RESERVED_NAMES
from ldm.util import UserError, write_whole
from ldm.words.containers import CARD_CHUNK
from ldm.words.files import FIRST_FILE, SECOND_FILE, header, plain, write_words
from ldm.words.formats import SDXL, WordFile

LONGEST_NAME = 60
# CLIP's token id of "*", the key under which AUTOMATIC1111 stores every word.
STAR = {"*": 265}
CARD_SIZE = 256
Facts = dict[str, str]
# Takes the file, the word's name, its vectors [k, d] for each text encoder, and the header's facts.
Writer = Callable[[Path, str, Sequence[Tensor], Facts], None]


def file_name(placeholder: str) -> str:
    """Return the stem of a word's file. Every system can store it and a prompt can contain it.

    The stem has the placeholder's letters, digits, "-" and "_", at most 60. All other characters
    are left out. A placeholder without letters and digits becomes "word-" and the Unicode names of
    its characters: "*" gives "word-asterisk". A name that Windows reserves for a device gets
    "word-" in front.
    """
    normal = unicodedata.normalize("NFC", placeholder)
    stem = "".join(c for c in normal if c.isalnum() or c in "-_").strip("-")[:LONGEST_NAME]
    if not any(c.isalnum() for c in stem):
        names = (unicodedata.name(c, f"{ord(c):x}") for c in normal)
        stem = "-".join(("word", *names)).lower().replace(" ", "-")[:LONGEST_NAME]
    return f"word-{stem}" if stem.lower() in RESERVED_NAMES else stem


def file_names(placeholders: list[str]) -> dict[str, str]:
    """Return placeholder → stem. If two stems differ only in case, the later one gets a number.

    Without the number, a file system that ignores case would replace the first file by the second.
    """
    stems: dict[str, str] = {}
    for placeholder in placeholders:
        base, taken = file_name(placeholder), {stem.lower() for stem in stems.values()}
        names = (base, *(f"{base}-{number}" for number in range(2, len(stems) + 3)))
        stems[placeholder] = next(name for name in names if name.lower() not in taken)
    return stems


def write_for_tools(folder: Path, file: WordFile, form: str = "kohya") -> list[Path]:
    """Write each word into its own file, `folder/STEM.SUFFIX`, and return the files.

    `form` is a key of `SINGLE`. All tools of docs/how-to/move-a-word.md read "kohya": `emb_params`
    [k, d] in safetensors, or `clip_l` and `clip_g` for SDXL.
    """
    suffix, write = SINGLE[form]
    stems = file_names(list(file.words))
    for name, stem in stems.items():
        write(folder / f"{stem}{suffix}", *_word(file, name))
    return [folder / f"{stem}{suffix}" for stem in stems.values()]


def convert(path: Path, file: WordFile, form: str, token_ids: Mapping[str, int]) -> list[Path]:
    """Write words in a form, a key of `SEVERAL` or `SINGLE`, and return the files.

    A path without suffix is a folder, which gets one file for each word. `token_ids` are those of
    the placeholders; the form "original" needs them. Raises UserError if the form does not fit the
    suffix or cannot hold these words.
    """
    suffix = SEVERAL[form] if form in SEVERAL else SINGLE[form][0]
    if form in SINGLE and not path.suffix:
        return write_for_tools(path, file, form)
    if path.suffix != suffix:
        other = ", or be a folder" if form in SINGLE else ""
        raise UserError(f"{str(path)!r} must end in {suffix} for --to {form}{other}")
    if form in SEVERAL:
        write_words(path, file.words, token_ids, file.metadata, file.second)
        return [path]
    if len(file.words) > 1:
        raise UserError(
            f"a file of the form {form} holds one word, but IN has {list(file.words)}: give a "
            "folder as OUT, which is a name without suffix"
        )
    SINGLE[form][1](path, *_word(file, next(iter(file.words))))
    return [path]


def targets(path: Path, file: WordFile, form: str) -> list[Path]:
    """Return the files that `convert` would write."""
    if not path.suffix and form in SINGLE:
        return [path / f"{s}{SINGLE[form][0]}" for s in file_names(list(file.words)).values()]
    if form == "diffusers" and file.second:
        return [path, path.with_name(path.name.replace(FIRST_FILE, SECOND_FILE, 1))]
    return [path]


def _word(file: WordFile, name: str) -> tuple[str, list[Tensor], dict[str, str]]:
    """Return what a writer of `SINGLE` takes of one word."""
    facts = {**file.metadata, "placeholders": json.dumps([name], ensure_ascii=False)}
    parts = [part[name] for part in (file.words, file.second) if name in part]
    if len(parts) > 1:
        facts["encoder_family"] = SDXL
    return name, [plain({name: part})[name] for part in parts], header(facts)


def _write_tensors(key: str = "") -> Writer:
    """Return a writer of a tensor under `key`, or of one for each text encoder of SDXL."""

    def write(path: Path, name: str, parts: Sequence[Tensor], facts: Facts) -> None:
        if len(parts) == 1 and not key:
            raise UserError(
                f"word {name!r} has vectors for one text encoder; the form sdxl needs vectors for "
                "both text encoders of SDXL (clip_l, clip_g)"
            )
        keys = ("clip_l", "clip_g") if len(parts) > 1 else (key,)
        write_whole(path, safetensors_bytes(dict(zip(keys, parts, strict=True)), facts))

    return write


def _write_diffusers(path: Path, name: str, parts: Sequence[Tensor], facts: Facts) -> None:
    """Write `{placeholder: [k, d]}`. A word of SDXL gets two files, as in diffusers' script."""
    is_first = path.name.startswith(FIRST_FILE) and not path.name.startswith(SECOND_FILE)
    if len(parts) > 1 and not is_first:
        raise UserError(
            f"diffusers stores a word of SDXL in two files: OUT must be named {FIRST_FILE}"
            ".safetensors, or choose --to sdxl for one file"
        )
    other = path.with_name(path.name.replace(FIRST_FILE, SECOND_FILE, 1))
    for place, vectors in [*zip((path, other), parts, strict=False)][::-1]:
        write_whole(place, safetensors_bytes({name: vectors}, facts))


def _automatic(name: str, parts: Sequence[Tensor], facts: Facts) -> dict[str, Any]:
    """Return AUTOMATIC1111's dictionary. AUTOMATIC1111 and diffusers look for the key "*"."""
    if len(parts) > 1:
        raise UserError(
            f"word {name!r} is for SDXL: AUTOMATIC1111 reads such words only from "
            ".safetensors; choose --to sdxl"
        )
    step = facts.get("step", "")
    return {
        "string_to_token": dict(STAR),
        "string_to_param": {"*": parts[0]},
        "name": name,
        "step": int(step) if step.isdecimal() else 0,
        "sd_checkpoint": facts.get("base_checkpoint_hash"),
        "sd_checkpoint_name": facts.get("base_checkpoint"),
        "metadata": facts,
    }


def _write_automatic(path: Path, *word: Any) -> None:
    # Old versions of torch read only the format without zip.
    content = _automatic(*word)
    write_whole(path, lambda part: torch.save(content, part, _use_new_zipfile_serialization=False))


def _write_card(path: Path, *word: Any) -> None:
    """Write a grey image that shows the file's stem. AUTOMATIC1111's text chunk holds the word."""
    text = json.dumps(_automatic(*word), default=lambda tensor: {"TORCHTENSOR": tensor.tolist()})
    chunk = PngImagePlugin.PngInfo()
    chunk.add_text(CARD_CHUNK, base64.b64encode(text.encode()).decode())
    image = Image.new("RGB", (CARD_SIZE, CARD_SIZE), (96, 96, 96))
    label = path.stem.encode("ascii", "replace").decode()
    ImageDraw.Draw(image).text((16, CARD_SIZE - 32), label, fill=(255, 255, 255))
    write_whole(path, lambda part: image.save(part, "PNG", pnginfo=chunk))


# Forms that hold any number of words: form → suffix.
SEVERAL = {"original": ".pt", "safetensors": ".safetensors"}
# Forms that hold one word in a file: form → (suffix, writer).
SINGLE: dict[str, tuple[str, Writer]] = {
    "diffusers": (".safetensors", _write_diffusers),
    "a1111": (".pt", _write_automatic),
    "png": (".png", _write_card),
    "kohya": (".safetensors", _write_tensors("emb_params")),
    "onetrainer": (".safetensors", _write_tensors("emp_params")),
    "sdxl": (".safetensors", _write_tensors()),
}
