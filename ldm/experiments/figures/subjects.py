"""A concept for the figures: its images, its initializer word and human captions."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from ldm.data.folder import list_images, read_captions
from ldm.image_io import open_rgb
from ldm.util import UserError
from ldm.words.files import read_words

# The paper's bounds for its two kinds of captions, in words.
SHORT, LONG = 12, 30


@dataclass(frozen=True)
class Subject:
    """A concept: its folder's name, training images and initializer word, "" where none is known.

    `short` and `long` are human captions of at most 12 and 30 words.
    """

    name: str
    images: tuple[Image.Image, ...]
    initializer_word: str = ""
    short: tuple[str, ...] = ()
    long: tuple[str, ...] = ()


def read_subject(folder: Path, word_file: Path | None = None) -> Subject:
    """Read a concept's folder.

    Captions are the lines of the text files beside its images. `concepts.json` in the folder above
    describes a concept of the miniature that has none. The initializer word comes from the word's
    file, or else from `concepts.json`. Raises UserError for no images, or an unreadable file.
    """
    files = list_images(folder)
    captions = list(dict.fromkeys(text for path in files for text in read_captions(path)))
    short = tuple(text for text in captions if len(text.split()) <= SHORT)
    long = tuple(text for text in captions if SHORT < len(text.split()) <= LONG)
    record = concept_record(folder)
    if not captions and record:
        short, long = _described(record)
    first = initializer_word(word_file) if word_file else ""
    return Subject(
        name=folder.name,
        images=tuple(open_rgb(path) for path in files),
        initializer_word=first or str(record.get("first_word", "")),
        short=short,
        long=long,
    )


def initializer_word(path: Path) -> str:
    """Return the common word that a learned word's file says it started from, or ""."""
    stored = read_words(path).metadata.get("first_words", "{}")
    try:
        words = json.loads(stored)
    except json.JSONDecodeError:
        return ""
    return str(next(iter(words.values()), "") or "") if isinstance(words, dict) else ""


def concept_record(folder: Path) -> dict[str, object]:
    """Return what `concepts.json` says of a concept, {} where it says nothing."""
    path = folder.parent / "concepts.json"
    if not path.is_file():
        return {}
    try:
        found = json.loads(path.read_text(encoding="utf-8")).get(folder.name, {})
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is no readable JSON: {error}") from error
    return dict(found)


def _described(record: dict[str, object]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return a short caption, colour and shape alone, and the full one."""
    attributes = record.get("attributes")
    long = (str(record["words"]),) if record.get("words") else ()
    if not isinstance(attributes, dict) or "shape" not in attributes:
        return (), long
    return (f"a {attributes.get('colour', '')} {attributes['shape']}".replace("  ", " "),), long
