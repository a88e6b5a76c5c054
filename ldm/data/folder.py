"""A folder of pictures: which files count, and the captions beside them."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

from ldm.image_io import IMAGE_SUFFIXES
from ldm.util import UserError
from ldm.words.placeholders import occurrences, replace

logger = logging.getLogger(__name__)

CAPTION_SUFFIX = ".txt"
# Names listed in a report before it says "…".
LISTED = 5


def list_images(folder: str | Path) -> tuple[Path, ...]:
    """Return a folder's pictures, sorted by name; the log tells what else lay there.

    Hidden files are no pictures (".DS_Store", "._photo.jpg"); a caption beside its picture is not
    reported.

    Raises:
        UserError: no such folder, or no picture in it.
    """
    root = Path(folder).expanduser()
    if not root.is_dir():
        raise UserError(
            f"data_root {str(folder)!r} is not a folder: give the folder of your pictures"
        )
    entries = sorted(root.iterdir(), key=lambda path: path.name)
    folders = [path.name for path in entries if path.is_dir()]
    pictures = tuple(path for path in entries if not path.is_dir() and _is_picture(path))
    captions = {caption_file(path) for path in pictures}
    junk = [
        path.name
        for path in entries
        if not path.is_dir() and path not in captions and not _is_picture(path)
    ]
    skipped = " and ".join(
        f"{len(names)} {kind} ({', '.join(names[:LISTED])}{', …' if len(names) > LISTED else ''})"
        for kind, names in (("other files", junk), ("sub-folders", folders))
        if names
    )
    if not pictures:
        raise UserError(
            f"data_root {str(folder)!r} holds no pictures"
            + (f", only {skipped}" if skipped else "")
            + ": put 3 to 5 JPEG or PNG files there"
        )
    report = f"; skipped {skipped}" if skipped else ""
    logger.info("%s: %d pictures%s", folder, len(pictures), report)
    return pictures


def _is_picture(path: Path) -> bool:
    return path.suffix.lower() in IMAGE_SUFFIXES and not path.name.startswith(".")


def caption_file(picture: Path) -> Path:
    """Return where a picture's caption would stand: `image.txt` beside `image.jpg`."""
    return picture.with_suffix(CAPTION_SUFFIX)


def read_captions(picture: Path) -> tuple[str, ...]:
    """Return the captions beside a picture, one a line; empty where there is none.

    Raises:
        UserError: the file is not UTF-8 text or cannot be read.
    """
    path = caption_file(picture)
    if not path.is_file():
        return ()
    try:
        lines = path.read_text("utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"caption {str(path)!r} is not readable UTF-8 text") from error
    return tuple(text for line in lines if (text := " ".join(line.split())))


def insert_placeholder(caption: str, placeholder: str, first_word: str | None, shown: str) -> str:
    """Make a caption name the learned word; the first of these that applies.

    1. `{}` marks the place: "a photo of {} on a table".
    2. The caption names the placeholder already: left as it is.
    3. It names the first word: that word's first mention is replaced ("a cat in the sun" →
       "a * in the sun"; further cats stay cats).
    4. The word is appended: "in the sun, *".

    Args:
        caption: one text.
        placeholder: the string that stands for the word.
        first_word: the coarse word that training starts from, if any.
        shown: what is put in: the placeholder, or it after a coarse class.
    """
    if "{}" in caption:
        return caption.replace("{}", shown)
    if occurrences(caption, placeholder):
        return caption
    if first_word and occurrences(caption, first_word):
        return replace(caption, first_word, shown, count=1)
    return f"{caption.rstrip(' .,')}, {shown}"


def captions_of(pictures: Sequence[Path]) -> tuple[tuple[str, ...], ...]:
    """Return the captions beside each picture, reporting in the log how many have none.

    Raises:
        UserError: no picture has a caption, or one is unreadable.
    """
    captions = tuple(read_captions(path) for path in pictures)
    without = [path.name for path, texts in zip(pictures, captions, strict=True) if not texts]
    if len(without) == len(pictures):
        raise UserError(
            f"captions are wanted, but no picture in {str(pictures[0].parent)!r} has one: write "
            f"{caption_file(pictures[0]).name!r} beside {pictures[0].name!r}"
        )
    if without:
        logger.warning("no caption beside %s: templates serve instead", ", ".join(without))
    return captions
