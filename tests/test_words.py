"""The project says one word for one thing: the words that the field does not use are in no text."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# What is not said → what is.
WORDS = {
    r"pictures?": "image",
    r"judges?": "scorer",
    r"optimisers?": "optimizer",
    r"tokenisers?": "tokenizer",
    r"(first|coarse) words?": "initializer word",
}
# Names of options, keys and files stay: quoted without a space, in backticks, or before a colon.
NAMES = re.compile(r'"[^" ]*"|`[^`]*`|--\w+|\b\w+:|\{[^}]*\}')
ALLOWED = {
    "docs/results.md": "prompts of figure 8, and measurements of an earlier base",
}


def texts() -> Iterator[Path]:
    for folder, suffix in (("ldm", "py"), ("scripts", "py"), ("configs", "yaml"), ("docs", "md")):
        yield from (ROOT / folder).rglob(f"*.{suffix}")
    yield from (ROOT / name for name in ("README.md", "CONTRIBUTING.md", "Makefile", "main.py"))


@pytest.mark.parametrize("word", WORDS)
def test_the_word_is_not_used(word: str) -> None:
    wrong = re.compile(rf"\b{word}\b", re.IGNORECASE)
    found = [
        f"{name}:{number}: {line.strip()}"
        for path in texts()
        if (name := str(path.relative_to(ROOT))) not in ALLOWED and "results" not in path.parts
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        if wrong.search(NAMES.sub("", line))
    ]
    assert not found, f"say {WORDS[word]}"


def test_what_is_allowed_is_there_and_needed() -> None:
    for name in ALLOWED:
        text = NAMES.sub("", (ROOT / name).read_text(encoding="utf-8"))
        assert any(re.search(rf"\b{word}\b", text, re.IGNORECASE) for word in WORDS), name
