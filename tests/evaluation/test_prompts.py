"""Lists of prompts: how they are read, and the ones that ship."""

from __future__ import annotations

from pathlib import Path

import pytest

from ldm.evaluation.prompts import check_prompts, read_prompts
from ldm.miniature.grammar import vocabulary
from ldm.util import UserError

PROMPTS = Path(__file__).parents[2] / "examples" / "prompts"


def test_comments_and_empty_lines_are_left_out(tmp_path: Path) -> None:
    file = tmp_path / "prompts.txt"
    file.write_text("\ufeff# what for\n\n  A photo of * \n#\nFelt *\n", encoding="utf-8")
    assert read_prompts(file) == ["A photo of *", "Felt *"]


def test_what_cannot_be_read_is_one_line(tmp_path: Path) -> None:
    empty, binary = tmp_path / "empty.txt", tmp_path / "binary.txt"
    empty.write_text("# nothing\n")
    binary.write_bytes(b"\xff\xfe\x00")
    for path, line in (
        (empty, "no prompts in it"),
        (binary, "not UTF-8 text"),
        (tmp_path / "none.txt", "No such file or directory"),
    ):
        with pytest.raises(UserError, match=line):
            read_prompts(path)


@pytest.mark.parametrize("file", sorted(PROMPTS.glob("*.txt")), ids=lambda path: path.stem)
def test_shipped_prompts_name_the_word(file: Path) -> None:
    check_prompts(read_prompts(file), ["*"])


def test_the_known_prompts_of_the_paper_are_there() -> None:
    assert read_prompts(PROMPTS / "paper.txt") == [
        "A photo of * on the moon",
        "A photo of * on the beach",
        "An oil painting of *",
        "Elmo holding a *",
    ]


def test_the_miniature_knows_the_words_of_its_prompts() -> None:
    words = {word for p in read_prompts(PROMPTS / "miniature.txt") for word in p.lower().split()}
    assert words - {"*"} <= set(vocabulary())
