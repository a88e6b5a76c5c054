"""Lists of prompts: text files with one prompt a line; `#` begins a comment line."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ldm.util import UserError, is_text, quote, read_text
from ldm.words.placeholders import occurrences


def read_prompts(path: str | Path) -> list[str]:
    """Return the lines of a file, or of the standard input, "-", without empty lines and comments.

    Raises UserError for a file that cannot be read, is not UTF-8 text, or holds no prompt.
    """
    lines = [line.strip() for line in read_text(path, "prompts").splitlines()]
    prompts = [line for line in lines if line and not line.startswith("#")]
    if not prompts:
        raise UserError(f"prompts {path}: no prompts in it; write one a line")
    for prompt in prompts:
        if not is_text(prompt):
            raise UserError(f"prompt {quote(prompt)} is not UTF-8 text")
    return prompts


def check_prompts(prompts: Sequence[str], placeholders: Sequence[str]) -> None:
    """Raise UserError where there are no prompts, or for one that names no learned word."""
    if not prompts:
        raise UserError("no prompts to score: give at least one")
    for prompt in prompts:
        if not any(occurrences(prompt, word) for word in placeholders):
            words = " or ".join(repr(word) for word in placeholders)
            raise UserError(
                f"prompt {quote(prompt)} names no learned word: put {words} where the word belongs"
            )
