"""The project says one word for one thing: the words that the field does not use are in no text."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# What is not said → what is.
WORDS = {
    r"pictures?": "image",
    r"judges?|judged": "scorer, check",
    r"optimisers?": "optimizer",
    r"tokenisers?": "tokenizer",
    r"(first|coarse) words?": "initializer word",
    r"draws?|drawn|drew": "generate, sample",
    r"(go|goes|going|went) on": "resume, continue",
}
# Names of options, keys and files stay: quoted without a space, in backticks, or before a colon.
NAMES = re.compile(r'"[^" ]*"|`[^`]*`|--\w+|\b\w+:|\{[^}]*\}|ImageDraw\.Draw')
ALLOWED = {
    "docs/results.md": "prompts of figure 8, and measurements of an earlier base",
}
# Parts of names in code that are not said either. Pixels of a scene are painted.
PARTS = {"picture", "pictures", "judge", "draw", "draws", "drawn", "coarse", "difference"}
# Names of arguments and YAML keys that files of the original and of earlier versions use, and
# statistics.
FROZEN = {
    "class_pictures",
    "coarse_class_text",
    "difference",
    "embedding_to_coarse_loss",
    "half_difference",
}


def texts() -> Iterator[Path]:
    for folder, suffix in (("ldm", "py"), ("configs", "yaml"), ("docs", "md"), ("models", "md")):
        yield from (ROOT / folder).rglob(f"*.{suffix}")
    yield from (path for path in (ROOT / "scripts").rglob("*") if path.suffix in (".py", ".sh"))
    names = ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "Makefile", "main.py")
    yield from (ROOT / name for name in (*names, "pyproject.toml", "docs/hooks.py", "docs/keys.py"))


@pytest.mark.parametrize("word", WORDS)
def test_the_word_is_not_used(word: str) -> None:
    wrong = re.compile(rf"\b({word})\b", re.IGNORECASE)
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
        assert any(re.search(rf"\b({word})\b", text, re.IGNORECASE) for word in WORDS), name


def test_a_weight_delta_is_not_called_a_difference() -> None:
    for folder in ("ldm/checkpoint", "ldm/cli"):
        for path in (ROOT / folder).glob("*.py"):
            assert "difference" not in NAMES.sub("", path.read_text("utf-8")), path


def names(path: Path) -> Iterator[str]:
    """Every name that a file gives: of functions, classes, arguments, variables, attributes."""
    for node in ast.walk(ast.parse(path.read_text("utf-8"), str(path))):
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            yield node.name
        elif isinstance(node, ast.arg):
            yield node.arg
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            yield node.attr


def test_no_name_in_code_uses_such_a_word() -> None:
    found = {
        f"{path.relative_to(ROOT)}: {name}": name
        for folder in ("ldm", "scripts")
        for path in (ROOT / folder).rglob("*.py")
        for name in names(path)
        if PARTS & set(re.split(r"_|(?<=[a-z])(?=[A-Z])", name.lower()))
    }
    assert not {where for where, name in found.items() if name not in FROZEN}
    assert set(found.values()) == FROZEN, "frozen names that no code has"
