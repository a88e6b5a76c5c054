"""The names of the miniature world: nonsense words, each bound to one thing or one style.

A real model's vocabulary is full of words that name a whole appearance, such as breeds, brands and
painters. The miniature's vocabulary has such words too, so that one vector is enough for shape,
colours and texture together, or for a whole style of rendering.

A named thing is one combination of shape, colour, texture and second colour. A named style is a
medium printed in the two inks of a tone. No name stands for anything that is held out of training.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache

from ldm.miniature.looks import CONTRASTING, HELD_OUT_LOOKS, Look
from ldm.miniature.render import COLOURS, MEDIA, SHAPES, TEXTURES, TONES
from ldm.randomness import Purpose, generator

# Eight for each pair of a shape and a texture: neighbours of every held-out thing have names.
NAMED_THINGS = 600
NAMES_SEED = 9  # seed of the names and of their meanings
_CONSONANTS, _VOWELS = "bdfgklmnprstvz", "aeiou"


def _word(index: int) -> str:
    """Return three syllables of a consonant and a vowel; the first letter is a consonant."""
    rng = generator(NAMES_SEED, index, Purpose.NAME)
    letters = (
        letter
        for _ in range(3)
        for letter in (
            _CONSONANTS[int(rng.integers(len(_CONSONANTS)))],
            _VOWELS[int(rng.integers(len(_VOWELS)))],
        )
    )
    return "".join(letters)


def _words() -> Iterator[str]:
    """Yield distinct nonsense words without end."""
    seen, index = set[str](), 0
    while True:
        word = _word(index)
        index += 1
        if word not in seen:
            seen.add(word)
            yield word


def _looks() -> Iterator[Look]:
    """Yield distinct things that may be trained on, without end, uniformly over their parts."""
    seen, index = set[Look](), 0
    while True:
        rng = generator(NAMES_SEED, index, Purpose.IMAGE)
        index += 1
        shape, colour = (list(kind)[int(rng.integers(len(kind)))] for kind in (SHAPES, COLOURS))
        texture = TEXTURES[int(rng.integers(len(TEXTURES)))]
        partners = ("",) if texture == "plain" else CONTRASTING[colour]
        look = (shape, colour, texture, partners[int(rng.integers(len(partners)))])
        if look not in seen and look not in HELD_OUT_LOOKS:
            seen.add(look)
            yield look


@cache
def named_styles() -> dict[str, tuple[str, str]]:
    """Return the named styles: name → (medium, tone). Their number is fixed."""
    styles = [(medium, tone) for tone in TONES for medium in MEDIA]
    return dict(zip(_words(), styles, strict=False))


@cache
def named_things(count: int = NAMED_THINGS) -> dict[str, Look]:
    """Return `count` named things: name → (shape, colour, texture, second colour).

    A smaller count gives the first ones of a larger count.
    """
    words = (word for word in _words() if word not in named_styles())
    return {word: look for word, look, _ in zip(words, _looks(), range(count), strict=False)}


def names() -> list[str]:
    """Return every name, sorted."""
    return sorted([*named_things(), *named_styles()])
