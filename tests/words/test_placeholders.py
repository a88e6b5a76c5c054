"""How a text names a learned word."""

import pytest

from ldm.words.placeholders import PER_IMAGE_PLACEHOLDERS, occurrences, replace, separate


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
        ("a photo of *, oil", ["*"], "a photo of * , oil"),
        ("(*)", ["*"], "( * )"),
        ("*'s", ["*"], "* 's"),
        ("*-themed", ["*"], "* -themed"),
        ("S*", ["*"], "S *"),
        ("**", ["*"], "* *"),
        ("** and *.", ["*", "**"], "** and * ."),
        ("a Cat, category", ["cat"], "a Cat , category"),
        ("a (b)", [], "a (b)"),
    ],
)
def test_separating_placeholders(text, placeholders, pieces):
    assert separate(text, placeholders).split() == pieces.split()


def test_per_image_words_are_the_22_hebrew_letters():
    assert len(set(PER_IMAGE_PLACEHOLDERS)) == 22
    assert all("\u05d0" <= letter <= "\u05ea" for letter in PER_IMAGE_PLACEHOLDERS)
    assert not set("ךםןףץ") & set(PER_IMAGE_PLACEHOLDERS)
