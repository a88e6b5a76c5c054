"""Concepts as the figures read them, and generating from an image."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image

from ldm.experiments.figures.comparison import _in_place
from ldm.experiments.figures.subjects import read_subject
from ldm.util import UserError
from ldm.words.files import write_words

ROOT = Path(__file__).parents[3]


def test_a_shipped_concept_has_two_captions_and_a_first_word() -> None:
    found = read_subject(ROOT / "examples" / "concepts" / "red-mug")
    assert (found.name, found.initializer_word) == ("red-mug", "mug")
    assert found.short == ("a red mug",)
    assert found.long == ("a red mug with white stripes",)
    assert len(found.images) == 5


def test_captions_beside_the_images_are_sorted_by_length(tmp_path: Path) -> None:
    for name in ("a", "b"):
        Image.new("RGB", (8, 8)).save(tmp_path / f"{name}.png")
    long = "a small brown clay statue of a sitting figure with crossed legs and a wide face"
    too_long = " ".join(["word"] * 31)
    (tmp_path / "a.txt").write_text(f"a clay statue\n{long}\n{too_long}\n")
    (tmp_path / "b.txt").write_text("a clay statue\n")
    found = read_subject(tmp_path)
    assert found.short == ("a clay statue",)
    assert found.long == (long,)
    assert found.initializer_word == ""


def test_the_words_own_file_says_its_first_word(tmp_path: Path) -> None:
    word = tmp_path / "word.safetensors"
    facts = {"first_words": '{"*": "vessel"}'}
    write_words(word, {"*": torch.zeros(1, 128)}, {"*": 5}, facts)
    found = read_subject(ROOT / "examples" / "concepts" / "red-mug", word)
    assert found.initializer_word == "vessel"


def test_a_broken_record_is_one_line(some_concepts: Path) -> None:
    (some_concepts / "concepts.json").write_text("{")
    with pytest.raises(UserError, match=r"concepts\.json is no readable JSON"):
        read_subject(some_concepts / "red-mug")


@pytest.mark.parametrize(
    ("prompt", "text", "wanted"),
    [
        ("A photo of a *", "a teal star", "A photo of a teal star"),
        ("A photo of a * on the moon", "an orange fish", "A photo of an orange fish on the moon"),
        ("a photo of a *", "star", "a photo of a star"),
        ("A * in the sea", "orange fish", "An orange fish in the sea"),
        ("A photo of *", "a teal star", "A photo of a teal star"),
        ("Elmo holding a *", "the statue", "Elmo holding a statue"),
    ],
)
def test_captions_stand_in_the_words_place(prompt: str, text: str, wanted: str) -> None:
    assert _in_place(prompt, text) == wanted
