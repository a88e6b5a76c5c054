"""A folder of images: which files count, and the captions beside them."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

from ldm.image_io import IMAGE_SUFFIXES
from ldm.util import UserError, read_text
from ldm.words.placeholders import occurrences, replace

logger = logging.getLogger(__name__)

CAPTION_SUFFIX = ".txt"
# Names listed in a report before it says "…".
LISTED = 5
# A file of captions has at most this many bytes.
LARGEST_CAPTIONS = 2**20


def list_images(folder: str | Path) -> tuple[Path, ...]:
    """Return the images of a folder, sorted by name; the log names the other entries.

    Only regular files and links to them count: a pipe or a device would be read without an end.
    Hidden files (".DS_Store", "._photo.jpg") do not count. Captions beside images are not reported.
    Raises UserError where there is no such folder, none that can be read, or no image in it.
    """
    root = Path(folder).expanduser()
    if not root.is_dir():
        raise UserError(
            f"data_root {str(folder)!r} is not a folder: give the folder of your images"
        )
    try:
        images, skipped = sorted_out(root)
    except OSError as error:
        raise UserError(f"data_root {str(folder)!r} cannot be read: {error.strerror}") from error
    if not images:
        raise UserError(
            f"data_root {str(folder)!r} holds no images"
            + (f", only {skipped}" if skipped else "")
            + ": put 3 to 5 JPEG or PNG files there"
        )
    report = f"; skipped {skipped}" if skipped else ""
    logger.info("%s: %d images%s", folder, len(images), report)
    return images


def sorted_out(folder: Path) -> tuple[tuple[Path, ...], str]:
    """Return the images of a folder, sorted by name, and what else is there; "" if nothing.

    Captions beside images are not reported.
    """
    entries = sorted(folder.iterdir(), key=lambda path: path.name)
    folders = [path for path in entries if path.is_dir()]
    files = [path for path in entries if path.is_file()]
    special = [path for path in entries if path not in {*folders, *files}]
    visible = (path for path in files if not path.name.startswith("."))
    images = tuple(path for path in visible if path.suffix.lower() in IMAGE_SUFFIXES)
    junk = [path for path in files if path not in {*images, *map(caption_file, images)}]
    kinds = {"other files": junk, "that are not regular files": special, "sub-folders": folders}
    skipped = " and ".join(
        f"{len(paths)} {kind} ({some_names([path.name for path in paths])})"
        for kind, paths in kinds.items()
        if paths
    )
    return images, skipped


def some_names(names: Sequence[str]) -> str:
    """Return the first few names as a list for a report."""
    return ", ".join([*names[:LISTED], *("…" for _ in names[LISTED : LISTED + 1])])


def caption_file(image: Path) -> Path:
    """Return the path of the captions of an image: `image.txt` beside `image.jpg`."""
    return image.with_suffix(CAPTION_SUFFIX)


def read_captions(image: Path) -> tuple[str, ...]:
    """Return the captions beside an image, one a line; empty if there is no such file.

    Raises UserError where the file is not UTF-8 text, too large, or cannot be read.
    """
    path = caption_file(image)
    if not path.is_file():
        return ()
    if (size := path.stat().st_size) > LARGEST_CAPTIONS:
        raise UserError(
            f"caption {str(path)!r} has {size} bytes, more than {LARGEST_CAPTIONS}: write one "
            "caption a line"
        )
    lines = read_text(path, "caption").splitlines()
    return tuple(text for line in lines if (text := " ".join(line.split())))


def insert_placeholder(caption: str, placeholder: str, first_word: str | None, shown: str) -> str:
    """Make a caption name the learned word, by the first rule that applies.

    1. `{}` marks the place: "a photo of {} on a table".
    2. The caption names the placeholder already: it stays as it is.
    3. The caption names the initializer word: its first mention is replaced ("a cat in the sun" →
       "a * in the sun").
    4. The word is appended: "in the sun, *".

    `shown` is the inserted text: the placeholder, perhaps after a coarse class.
    """
    if "{}" in caption:
        return caption.replace("{}", shown)
    if occurrences(caption, placeholder):
        return caption
    if first_word and occurrences(caption, first_word):
        return replace(caption, first_word, shown, count=1)
    return f"{caption.rstrip(' .,')}, {shown}"


def captions_of(images: Sequence[Path]) -> tuple[tuple[str, ...], ...]:
    """Return the captions beside each image; the log names the images without any.

    Raises UserError where no image has a caption, or one is unreadable.
    """
    captions = tuple(read_captions(path) for path in images)
    without = [path.name for path, texts in zip(images, captions, strict=True) if not texts]
    if len(without) == len(images):
        raise UserError(
            f"captions: true, but no image in {str(images[0].parent)!r} has one: write "
            f"{caption_file(images[0]).name!r} beside {images[0].name!r}"
        )
    empty = [name for name in without if caption_file(images[0].with_name(name)).is_file()]
    for name in empty:
        logger.warning("caption %s is empty: using templates", caption_file(Path(name)))
    if absent := [name for name in without if name not in empty]:
        logger.warning("no caption beside %s: using templates", ", ".join(absent))
    return captions
