"""Load learned words into a model: the one way of all commands."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from ldm.util import UserError, quote
from ldm.words import tokens
from ldm.words.files import WordFile, read_words
from ldm.words.manager import EmbeddingManager
from ldm.words.placeholders import DEFAULT_PLACEHOLDER, occurrences

log = logging.getLogger(__name__)

# One item: a file, or "WORD=FILE", which gives the only word of the file another name.
Items = str | Path | Sequence[str | Path]


class WordModel(Protocol):
    """What loading words needs of a `LatentDiffusion`."""

    embedding_manager: EmbeddingManager | None
    cond_stage_model: Any  # a text encoder; its manager checks that it is one


def load_words(model: WordModel, items: Items, prompts: Sequence[str] = ()) -> list[str]:
    """Load the words of embedding files in place of the model's words; return the placeholders.

    The files decide the number of vectors. A word that no prompt names is a warning.

    Args:
        model: a `LatentDiffusion`.
        items: files, or "WORD=FILE" for another name; none leaves the model without words.
        prompts: texts that will be generated; none checks nothing about them.

    Raises:
        UserError: a file is unreadable or for another text encoder; two words have one name; a
            prompt would lose a word, or names a word of the model's configuration that is not
            loaded.
    """
    manager = model.embedding_manager
    if manager is None:
        manager = EmbeddingManager(model.cond_stage_model, placeholder_strings=[])
        model.embedding_manager = manager
    # Words that come from the configuration alone were never learned.
    configured = manager.placeholders
    manager.clear()
    for path, name in split_items(items):
        rename = {} if name is None else renaming(path, read_words(path), name)
        log.info("%s: %s", path, " ".join(manager.load(path, rename=rename)))
    words = manager.placeholders
    _check_known(prompts, [word for word in configured if word not in words])
    manager.check_prompts(prompts)
    if prompts:
        named = {word for prompt in prompts for word in manager.named(prompt)}
        if unused := [word for word in words if word not in named]:
            log.warning("no prompt names the loaded word %s: no effect", " ".join(unused))
    return words


def check_prompts(
    model: WordModel, prompts: Sequence[str], files: Mapping[str, str] | None = None
) -> None:
    """Warn of each prompt whose end is cut off; a conditioner that reads no text is not asked.

    `files` names the file of each prompt that comes from one, for messages. Raises UserError for a
    prompt that would lose a word it names.
    """
    if model.embedding_manager is not None:
        model.embedding_manager.check_prompts(prompts, files)
    elif hasattr(model.cond_stage_model, "text_from"):
        for message in tokens.check_prompts(model.cond_stage_model, prompts, {}, files).values():
            log.warning(message)


def check_words(items: Items, prompts: Sequence[str]) -> list[str]:
    """Read embedding files and check prompts before any model is there; return the placeholders.

    Raises UserError for an unreadable file; a file of several words under one name; no file
    although a prompt names the usual placeholder.
    """
    words: list[str] = []
    for path, name in split_items(items):
        file = read_words(path)
        rename = renaming(path, file, name)
        words += [rename.get(word, word) for word in file.words]
    if not words:
        _check_known(prompts, [DEFAULT_PLACEHOLDER])
    return words


def split_items(items: Items) -> list[tuple[str, str | None]]:
    """Split each "WORD=FILE", unless a file has that whole name: (file, word or None)."""
    found: list[tuple[str, str | None]] = []
    for item in [items] if isinstance(items, str | Path) else items:
        word, equals, path = str(item).partition("=")
        is_named = equals and word and path and not Path(item).exists()
        found.append((path, word) if is_named else (str(item), None))
    return found


def renaming(path: str, file: WordFile, name: str | None) -> dict[str, str]:
    """Return stored placeholder → `name` for a file's only word; {} without a name.

    Raises UserError where the file holds several words, which cannot all get the name.
    """
    if name is not None and len(file.words) != 1:
        raise UserError(
            f"{name}={path}: the file holds {len(file.words)} words: {list(file.words)}"
        )
    return {} if name is None else dict.fromkeys(file.words, name)


def _check_known(prompts: Sequence[str], missing: Sequence[str]) -> None:
    """Raise UserError for the first prompt that names a word which is not loaded."""
    for prompt in prompts:
        for word in missing:
            if occurrences(prompt, word):
                raise UserError(
                    f"prompt {quote(prompt)} names {word!r}, but no word is loaded: give its file "
                    "as --embedding_path"
                )
