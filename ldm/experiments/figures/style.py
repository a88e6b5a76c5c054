"""The style of every figure: colours and markers that colour-blind people can tell apart."""

from __future__ import annotations

import textwrap
from contextlib import AbstractContextManager
from typing import Any

# Okabe and Ito's palette without black, which is text, and without yellow, too pale on white.
BLUE, ORANGE, GREEN, PURPLE, SKY, VERMILION = (
    *("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00"),
)
COLOURS = (BLUE, VERMILION, GREEN, PURPLE, ORANGE, SKY)
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">", "h", "*", "p", "d", "8", "H")
GREY = "#5a5a5a"

SETTINGS: Any = {  # matplotlib types the keys as hundreds of literals
    "font.size": 9,
    "axes.titlesize": 9,
    "axes.labelsize": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "figure.dpi": 100,
    "savefig.dpi": 200,
    "pdf.fonttype": 42,  # letters stay letters: searchable, editable
    "text.parse_math": False,  # a prompt may hold "$"
}


def house_style() -> AbstractContextManager[None]:
    """Return a context with the project's matplotlib style."""
    import matplotlib as mpl

    return mpl.rc_context(SETTINGS)


def marker(number: int) -> dict[str, Any]:
    """Return colour and marker of series `number`; pairs repeat after 30 series."""
    return {
        "color": COLOURS[number % len(COLOURS)],
        "marker": MARKERS[number % len(MARKERS)],
    }


def readable(prompt: str) -> str:
    """Write the placeholders as the paper does: "a photo of *" → "a photo of S*"."""
    return prompt.replace("*", "S*").replace("@", "S@")


def wrapped(text: str, width: int) -> str:
    """Break a text into lines of at most `width` letters."""
    parts = (textwrap.wrap(part, width, break_on_hyphens=False) for part in text.splitlines())
    return "\n".join(line for part in parts for line in part)
