"""How a text names a learned word."""

import pytest

from ldm.words.placeholders import PER_IMAGE_PLACEHOLDERS, occurrences, replace, split


@pytest.mark.parametrize(
    ("text", "placeholder", "count"),
    [
        ("a photo of *", "*", 1),
        ("S* beside **", "*", 3),
        ("Cat, cat and category; cats", "cat", 2),
        ("a <cat> here", "<cat>", 1),
        ("nothing", "*", 0),
        ("a.b", ".", 1),
    ],
)
def test_occurrences(text, placeholder, count):
    assert occurrences(text, placeholder) == count


def test_replacing_follows_the_same_rule():
    assert replace("Cat, category, cat", "cat", r"\1") == r"\1, category, \1"
    assert replace("cat and cat", "cat", "*", count=1) == "* and cat"


@pytest.mark.parametrize(
    ("text", "placeholders", "pieces"),
    [
        ("a photo of *, oil", ["*"], "a photo of|*|, oil"),
        ("(*)", ["*"], "(|*|)"),
        ("*'s", ["*"], "*|'s"),
        ("*-themed", ["*"], "*|-themed"),
        ("S*", ["*"], "S|*"),
        ("**", ["*"], "*|*"),
        ("** and *.", ["*", "**"], "**|and|*|."),
        ("a Cat, category", ["cat"], "a|Cat|, category"),
        ("a (b)", [], "a (b)"),
        ("a <My-Cat>, (<my-cat>1)", ["<my-cat>"], "a|<My-Cat>|, (|<my-cat>|1)"),
    ],
)
def test_splitting_at_placeholders(text, placeholders, pieces):
    found = split(text, placeholders)
    assert [piece.strip() for piece, _ in found if piece.strip()] == pieces.split("|")
    assert "".join(piece for piece, _ in found) == text
    named = [(piece.lower(), name) for piece, name in found if name is not None]
    assert named == [(p.lower(), p.lower()) for p in pieces.split("|") if p.lower() in placeholders]


def test_per_image_words_are_the_22_hebrew_letters():
    assert len(set(PER_IMAGE_PLACEHOLDERS)) == 22
    assert all("\u05d0" <= letter <= "\u05ea" for letter in PER_IMAGE_PLACEHOLDERS)
    assert not set("ךםןףץ") & set(PER_IMAGE_PLACEHOLDERS)
