"""Lists of prompts: text files with one a line, `#` before a comment."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ldm.util import UserError
from ldm.words.placeholders import occurrences


def read_prompts(path: str | Path) -> list[str]:
    """Return a file's lines without the empty ones and the comments.

    Raises:
        UserError: the file cannot be read, is no UTF-8 text, or holds no prompt.
    """
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not UTF-8 text"
        raise UserError(f"prompts {path}: {reason}") from error
    lines = (line.strip() for line in text.splitlines())
    prompts = [line for line in lines if line and not line.startswith("#")]
    if not prompts:
        raise UserError(f"prompts {path}: there are none in it; write one a line")
    return prompts


def check_prompts(prompts: Sequence[str], placeholders: Sequence[str]) -> None:
    """Check that there are prompts and that each names a learned word.

    Raises:
        UserError: naming the prompt that does not.
    """
    if not prompts:
        raise UserError("no prompts to score: give at least one")
    for prompt in prompts:
        if not any(occurrences(prompt, word) for word in placeholders):
            words = " or ".join(repr(word) for word in placeholders)
            raise UserError(
                f"prompt {prompt!r} names no learned word: put {words} where the word belongs"
            )
