"""Line plots as inline SVG that takes its colours from the page around it, light or dark."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

import numpy as np

from ldm.util import at_least

# This colour becomes the page's text colour; a nearby grey would be a fixed one.
_TEXT = "#010203"
# Distinguishable on white and on near-black, and to most colour-blind eyes (after Okabe and Ito).
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7")


@dataclass(frozen=True)
class Line:
    """One curve: points (x[i], y[i]).

    Attributes:
        label: its name in the legend; empty for none.
        smooth: window of a running mean over the pale points; 1 shows the curve as it is.
    """

    x: Sequence[float]
    y: Sequence[float]
    label: str = ""
    smooth: int = 1

    def __post_init__(self) -> None:
        if len(self.x) != len(self.y) or not len(self.x):
            raise ValueError(
                f"a line needs as many x as y and at least one, got {len(self.x)} and {len(self.y)}"
            )


@dataclass(frozen=True)
class Band:
    """A shaded stretch of the y axis, as the norms of most vocabulary words."""

    low: float
    high: float
    label: str = ""


def running_mean(values: Sequence[float], window: int) -> np.ndarray:
    """Average each value with those around it, fewer at the ends: float64 [len(values)]."""
    at_least(1, window=window)
    kernel = np.ones(min(window, len(values)))
    total = np.convolve(np.asarray(values, np.float64), kernel, mode="same")
    return total / np.convolve(np.ones(len(values)), kernel, mode="same")


def line_plot(
    lines: Sequence[Line],
    *,
    x_label: str,
    y_label: str,
    bands: Sequence[Band] = (),
    size: tuple[float, float] = (5.2, 3.0),
) -> str:
    """Plot curves, in the order of the legend, over bands and return an `<svg>` element.

    The labels say what x and y are, with their units. `size` is width and height in inches; the
    page scales it.
    """
    import matplotlib as mpl

    settings: Any = {
        "svg.fonttype": "none",  # text stays text: small, selectable, in the page's font
        "svg.hashsalt": "|".join([x_label, y_label, *(line.label for line in lines)]),
        "text.parse_math": False,  # a placeholder may be "$"
        "font.size": 10,
        "axes.spines.top": False,
        "axes.spines.right": False,
        **dict.fromkeys(
            ("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color"), _TEXT
        ),
    }
    # Not pyplot: it keeps figures alive and may look for a screen.
    from matplotlib.figure import Figure

    with mpl.rc_context(settings):
        figure = Figure(figsize=size, layout="constrained")
        axes = figure.add_subplot()
        figure.patch.set_visible(False)
        axes.patch.set_visible(False)
        for band in bands:
            axes.axhspan(band.low, band.high, color="#8a8f98", alpha=0.25, lw=0, label=band.label)
        for line, colour in zip(lines, np.resize(COLOURS, len(lines)), strict=True):
            smooth = line.smooth > 1 and len(line.y) > line.smooth
            axes.plot(
                line.x, line.y, color=colour, alpha=0.3 if smooth else 1, lw=1 if smooth else 1.8,
                label=None if smooth else line.label, marker="" if len(line.x) > 40 else "o", ms=3,
            )  # fmt: skip
            if smooth:
                axes.plot(
                    line.x, running_mean(line.y, line.smooth), color=colour, lw=2, label=line.label
                )
        axes.set_xlabel(x_label)
        axes.set_ylabel(y_label)
        axes.grid(color="#8a8f98", alpha=0.25, lw=0.6)
        axes.margins(x=0.02)
        if any(line.label for line in lines) or any(band.label for band in bands):
            axes.legend(frameon=False, fontsize=9)
        buffer = io.StringIO()
        no_metadata = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        figure.savefig(buffer, format="svg", metadata=no_metadata)
    svg = buffer.getvalue()
    # Without what stands before the element, and with the text in the page's colour.
    element = svg[svg.index("<svg") :].replace(_TEXT, "currentColor")
    title = escape(f"{y_label} over {x_label}")
    return element.replace("<svg", f'<svg role="img" aria-label="{title}"', 1)
