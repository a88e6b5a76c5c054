"""How a text names a learned word."""

import pytest

from ldm.words.placeholders import PER_IMAGE_PLACEHOLDERS, occurrences, replace


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


def test_per_image_words_are_the_22_hebrew_letters():
    assert len(set(PER_IMAGE_PLACEHOLDERS)) == 22
    assert all("\u05d0" <= letter <= "\u05ea" for letter in PER_IMAGE_PLACEHOLDERS)
    assert not set("ךםןףץ") & set(PER_IMAGE_PLACEHOLDERS)
