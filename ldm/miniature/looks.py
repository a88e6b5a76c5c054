"""Objects of the miniature world: which two colours go together, and which objects are held out."""

from __future__ import annotations

import itertools

import numpy as np

from ldm.miniature.render import COLOURS

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


def _lab(colour: tuple[int, int, int]) -> np.ndarray:
    """Convert sRGB in 0..255 to CIE L*a*b* (D65)."""
    value = np.asarray(colour, np.float64) / 255
    linear = np.where(value <= 0.04045, value / 12.92, ((value + 0.055) / 1.055) ** 2.4)
    to_xyz = [[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]
    x, y, z = np.cbrt(np.maximum(np.asarray(to_xyz) @ linear / [0.9505, 1.0, 1.089], 0.009))
    return np.asarray([116 * y - 16, 500 * (x - y), 200 * (y - z)])


def _contrasting() -> dict[str, tuple[str, ...]]:
    partners: dict[str, list[str]] = {name: [] for name in COLOURS}
    for one, other in itertools.permutations(COLOURS, 2):
        if np.linalg.norm(_lab(COLOURS[one]) - _lab(COLOURS[other])) >= _MINIMUM_CONTRAST:
            partners[one].append(other)
    return {name: tuple(others) for name, others in partners.items()}


# The second colours that stand out against each first one.
CONTRASTING = _contrasting()
