"""Write words in the forms that other tools read. docs/how-to/move-a-word.md lists the forms."""

from __future__ import annotations

import base64
import io
import json
import unicodedata
from collections.abc import Callable, Mapping
from dataclasses import dataclass
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


@dataclass(frozen=True)
class Word:
    """One word to write, with the metadata of its header.

    Its vectors are float32 [k, d] on the CPU; `second` [k, 1280] is for SDXL's second text encoder.
    """

    name: str
    vectors: Tensor
    second: Tensor | None
    facts: dict[str, str]


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
    paths = _in_folder(folder, file, form)
    for path, name in zip(paths, file.words, strict=True):
        SINGLE[form][1](path, _word(file, name))
    return paths


def convert(path: Path, file: WordFile, form: str, token_ids: Mapping[str, int]) -> list[Path]:
    """Write words in a form and return the files.

    Args:
        path: a file; a path without suffix is a folder, which gets one file for each word.
        file: the words.
        form: a key of `SEVERAL` or `SINGLE`.
        token_ids: placeholder → token id; the form "original" needs them.

    Raises UserError if the form does not fit the suffix or cannot hold these words.
    """
    if form in SEVERAL:
        if path.suffix != SEVERAL[form]:
            raise UserError(f"{str(path)!r} must end in {SEVERAL[form]} for --to {form}")
        write_words(path, file.words, token_ids, file.metadata, file.second)
        return [path]
    suffix, write = SINGLE[form]
    if not path.suffix:
        return write_for_tools(path, file, form)
    if path.suffix != suffix:
        raise UserError(f"{str(path)!r} must end in {suffix} for --to {form}, or be a folder")
    if len(file.words) > 1:
        raise UserError(
            f"a file of the form {form} holds one word, but IN has {list(file.words)}: give a "
            "folder as OUT, which is a name without suffix"
        )
    write(path, _word(file, next(iter(file.words))))
    return [path]


def targets(path: Path, file: WordFile, form: str) -> list[Path]:
    """Return the files that `convert` would write."""
    if not path.suffix and form in SINGLE:
        return _in_folder(path, file, form)
    if form == "diffusers" and file.second:
        return [path, path.with_name(path.name.replace(FIRST_FILE, SECOND_FILE, 1))]
    return [path]


def _in_folder(folder: Path, file: WordFile, form: str) -> list[Path]:
    names = file_names(list(file.words)).values()
    return [folder / f"{stem}{SINGLE[form][0]}" for stem in names]


def _word(file: WordFile, name: str) -> Word:
    facts = {**file.metadata, "placeholders": json.dumps([name], ensure_ascii=False)}
    tensors = plain({"first": file.words[name]})
    if name in file.second:
        tensors |= plain({"second": file.second[name]})
        facts["encoder_family"] = SDXL
    return Word(name, tensors["first"], tensors.get("second"), facts)


def _write_safetensors(path: Path, tensors: dict[str, Tensor], word: Word) -> None:
    write_whole(path, safetensors_bytes(tensors, header(word.facts)))


def _write_nameless(key: str) -> Callable[[Path, Word], None]:
    def write(path: Path, word: Word) -> None:
        if word.second is not None:
            _write_sdxl(path, word)
        else:
            _write_safetensors(path, {key: word.vectors}, word)

    return write


def _write_sdxl(path: Path, word: Word) -> None:
    if word.second is None:
        raise UserError(
            f"word {word.name!r} has vectors for one text encoder; the form sdxl needs vectors for "
            "both text encoders of SDXL (clip_l, clip_g)"
        )
    _write_safetensors(path, {"clip_l": word.vectors, "clip_g": word.second}, word)


def _write_diffusers(path: Path, word: Word) -> None:
    """Write `{placeholder: [k, d]}`. A word of SDXL gets two files, as in diffusers' script."""
    if word.second is not None:
        if not path.name.startswith(FIRST_FILE) or path.name.startswith(SECOND_FILE):
            raise UserError(
                f"diffusers stores a word of SDXL in two files: OUT must be named {FIRST_FILE}"
                ".safetensors, or choose --to sdxl for one file"
            )
        other = path.with_name(path.name.replace(FIRST_FILE, SECOND_FILE, 1))
        _write_safetensors(other, {word.name: word.second}, word)
    _write_safetensors(path, {word.name: word.vectors}, word)


def _automatic(word: Word) -> dict[str, Any]:
    """Return AUTOMATIC1111's dictionary. AUTOMATIC1111 and diffusers look for the key "*"."""
    if word.second is not None:
        raise UserError(
            f"word {word.name!r} is for SDXL: AUTOMATIC1111 reads such words only from "
            ".safetensors; choose --to sdxl"
        )
    step = word.facts.get("step", "")
    return {
        "string_to_token": dict(STAR),
        "string_to_param": {"*": word.vectors},
        "name": word.name,
        "step": int(step) if step.isdecimal() else 0,
        "sd_checkpoint": word.facts.get("base_checkpoint_hash"),
        "sd_checkpoint_name": word.facts.get("base_checkpoint"),
        "metadata": header(word.facts),
    }


def _write_automatic(path: Path, word: Word) -> None:
    content, buffer = _automatic(word), io.BytesIO()
    # Old versions of torch read only the format without zip.
    torch.save(content, buffer, _use_new_zipfile_serialization=False)
    write_whole(path, buffer.getvalue())


def _write_card(path: Path, word: Word) -> None:
    """Write a grey image that shows the file's stem. AUTOMATIC1111's text chunk holds the word."""
    text = json.dumps(_automatic(word), default=lambda tensor: {"TORCHTENSOR": tensor.tolist()})
    chunk = PngImagePlugin.PngInfo()
    chunk.add_text(CARD_CHUNK, base64.b64encode(text.encode()).decode())
    image = Image.new("RGB", (CARD_SIZE, CARD_SIZE), (96, 96, 96))
    label = path.stem.encode("ascii", "replace").decode()
    ImageDraw.Draw(image).text((16, CARD_SIZE - 32), label, fill=(255, 255, 255))
    buffer = io.BytesIO()
    image.save(buffer, "PNG", pnginfo=chunk)
    write_whole(path, buffer.getvalue())


# Forms that hold any number of words: form → suffix.
SEVERAL = {"original": ".pt", "safetensors": ".safetensors"}
# Forms that hold one word in a file: form → (suffix, writer).
SINGLE: dict[str, tuple[str, Callable[[Path, Word], None]]] = {
    "diffusers": (".safetensors", _write_diffusers),
    "a1111": (".pt", _write_automatic),
    "png": (".png", _write_card),
    "kohya": (".safetensors", _write_nameless("emb_params")),
    "onetrainer": (".safetensors", _write_nameless("emp_params")),
    "sdxl": (".safetensors", _write_sdxl),
}
