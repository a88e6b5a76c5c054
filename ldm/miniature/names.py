"""The names of the miniature world: nonsense words, each bound to one thing or one style.

A real model's vocabulary is full of words that name a whole appearance, such as breeds, brands and
painters. The miniature's vocabulary has such words too, so that one vector is enough for shape,
colours and texture together, or for a whole style of rendering.

A named thing is one combination of shape, colour, texture and second colour. A named style is a
medium printed in the two inks of a tone. No name stands for anything that is held out of training.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache
from itertools import count, islice
from typing import TypeVar

import numpy as np

from ldm.miniature.grammar import pick
from ldm.miniature.render import COLOURS, MEDIA, TONES
from ldm.miniature.shapes import SHAPES, TEXTURES
from ldm.randomness import Purpose, generator

Named = TypeVar("Named")
Look = tuple[str, str, str, str]  # shape, colour, texture, second colour

# (shape, colour, texture, second colour), in every scene and medium.
HELD_OUT_LOOKS: frozenset[Look] = frozenset(
    {
        ("star", "teal", "dots", "yellow"),
        ("mug", "red", "stripes", "white"),
        ("fish", "orange", "stripes", "navy"),
        ("heart", "pink", "dots", "maroon"),
        ("arrow", "lime", "border", "purple"),
        ("crescent", "yellow", "fade", "magenta"),
        ("flower", "blue", "border", "orange"),
        ("cross", "white", "checks", "red"),
        ("ring", "cyan", "stripes", "magenta"),
        ("triangle", "purple", "fade", "lime"),
        ("circle", "green", "checks", "white"),
        ("square", "navy", "dots", "orange"),
    }
)
_MINIMUM_CONTRAST = 55.0  # Lab distance between an object's two colours
# Eight for each pair of a shape and a texture: neighbours of every held-out thing have names.
NAMED_THINGS = 600
NAMES_SEED = 9  # seed of the names and of their meanings
_CONSONANTS, _VOWELS = "bdfgklmnprstvz", "aeiou"


def _lab(colour: tuple[int, int, int]) -> np.ndarray:
    """Convert sRGB in 0..255 to CIE L*a*b* (D65)."""
    value = np.asarray(colour, np.float64) / 255
    linear = np.where(value <= 0.04045, value / 12.92, ((value + 0.055) / 1.055) ** 2.4)
    to_xyz = [[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]
    x, y, z = np.cbrt(np.maximum(np.asarray(to_xyz) @ linear / [0.9505, 1.0, 1.089], 0.009))
    return np.asarray([116 * y - 16, 500 * (x - y), 200 * (y - z)])


_LAB = {name: _lab(colour) for name, colour in COLOURS.items()}
# The second colours that stand out against each first one.
CONTRASTING = {
    one: tuple(
        other for other in COLOURS if np.linalg.norm(_LAB[one] - _LAB[other]) >= _MINIMUM_CONTRAST
    )
    for one in COLOURS
}


def _word(index: int) -> str:
    """Return three syllables of a consonant and a vowel; the first letter is a consonant."""
    rng = generator(NAMES_SEED, index, Purpose.NAME)
    return "".join(pick(rng, letters) for letters in (_CONSONANTS, _VOWELS) * 3)


def _look(index: int) -> Look:
    """Return a thing, uniformly over its parts."""
    rng = generator(NAMES_SEED, index, Purpose.IMAGE)
    shape, colour, texture = (pick(rng, tuple(kind)) for kind in (SHAPES, COLOURS, TEXTURES))
    return shape, colour, texture, pick(rng, ("",) if texture == "plain" else CONTRASTING[colour])


def _distinct(make: Callable[[int], Named]) -> Iterator[Named]:
    """Yield what may be trained on of make(0), make(1), …, each once, without end."""
    seen = set[object](HELD_OUT_LOOKS)
    for made in map(make, count()):
        if made not in seen:
            seen.add(made)
            yield made


@cache
def named_styles() -> dict[str, tuple[str, str]]:
    """Return the named styles: name → (medium, tone). Their number is fixed."""
    styles = [(medium, tone) for tone in TONES for medium in MEDIA]
    return dict(zip(_distinct(_word), styles, strict=False))


@cache
def named_things(number: int = NAMED_THINGS) -> dict[str, Look]:
    """Return so many named things: name → (shape, colour, texture, second colour).

    A smaller number gives the first ones of a larger number.
    """
    words = (word for word in _distinct(_word) if word not in named_styles())
    return dict(islice(zip(words, _distinct(_look), strict=False), number))


def names() -> list[str]:
    """Return every name, sorted."""
    return sorted([*named_things(), *named_styles()])
