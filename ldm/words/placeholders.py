"""The strings that stand for learned words in a text. A leaf: data and modules both use it."""

from __future__ import annotations

import re
from collections.abc import Sequence

DEFAULT_PLACEHOLDER = "*"

# "Per-image tokens" (paper, section 5.1; the released code's names): one more word for each
# training image. The 22 Hebrew letters without final forms are single, known tokens of
# bert-base-uncased, and no English caption uses them.
PER_IMAGE_PLACEHOLDERS = tuple("אבגדהוזחטיכלמנסעפצקרשת")


def occurrences(text: str, placeholder: str) -> int:
    """Count how often `text` names `placeholder`.

    A placeholder made of letters counts as a whole word, whatever its case ("cat" is not in
    "category"); any other one counts wherever it stands ("*" is in "S*").
    """
    return len(_pattern(placeholder).findall(text))


def replace(text: str, word: str, replacement: str, count: int = 0) -> str:
    """Put `replacement` where `text` names `word`, the first `count` times (0: each time)."""
    return _pattern(word).sub(lambda _: replacement, text, count=count)


def separate(text: str, placeholders: Sequence[str]) -> str:
    """Put spaces around each placeholder in `text`, so that no tokenizer joins it to a neighbour.

    CLIP has tokens such as "*," and "*)". A text without placeholders comes back unchanged.
    """
    # The longest first: "**" is one placeholder where "*" is another.
    patterns = [_pattern(p).pattern for p in sorted(placeholders, key=len, reverse=True)]
    if not patterns:
        return text
    return re.sub("|".join(patterns), lambda found: f" {found[0]} ", text, flags=re.IGNORECASE)


def _pattern(placeholder: str) -> re.Pattern[str]:
    before = r"(?<!\w)" if placeholder[:1].isalnum() else ""
    after = r"(?!\w)" if placeholder[-1:].isalnum() else ""
    return re.compile(before + re.escape(placeholder) + after, re.IGNORECASE)
