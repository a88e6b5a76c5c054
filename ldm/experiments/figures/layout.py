"""Images in lines with labels and prompts, as a matplotlib figure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from PIL import Image

from ldm.experiments.figures.style import wrapped

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Canvas

CELL = 1.45  # inches, of an image's side
LABEL = 1.3  # inches, left of the first column
LETTERS_AN_INCH = 13.5  # of the titles' size
SMALL = 128  # pixels: images up to this side are enlarged by whole pixels
TITLE_LINE = 0.155  # inches, height of a line of a title
GAP = 0.16  # inches, between groups of columns


@dataclass(frozen=True)
class Cell:
    """One place of a grid: an image with a title above it; None leaves the place empty."""

    image: Image.Image | None
    title: str = ""


def cells_of(images: Sequence[Image.Image], count: int) -> list[Cell]:
    """Return cells of the first images; empty ones where there are fewer than `count`."""
    return [Cell(images[i] if i < len(images) else None) for i in range(count)]


@dataclass(frozen=True)
class Row:
    """Cells side by side, and the label left of them."""

    label: str
    cells: Sequence[Cell]


def grid_figure(
    rows: Sequence[Row], *, title: str, headings: Sequence[tuple[str, int]] = ()
) -> Canvas:
    """Arrange rows of images under headings: a text and the number of columns it spans, in order.

    Rows may differ in length. Raises ValueError where there is no cell.
    """
    from matplotlib.figure import Figure as Canvas

    columns = max((len(row.cells) for row in rows), default=0)
    if not columns:
        raise ValueError("rows must hold at least one cell, got none")
    letters = int(CELL * LETTERS_AN_INCH)
    titles = [[wrapped(cell.title, letters) for cell in row.cells] for row in rows]
    lines = [max((t.count("\n") + 1 for t in own if t), default=0) for own in titles]
    heights = [CELL + 0.08 + TITLE_LINE * count for count in lines]
    top = 0.38 + (0.26 if headings else 0)
    lefts = _lefts(columns, [span for _, span in headings])
    width = max(lefts[-1] + CELL + 0.1, 0.085 * len(title))
    height = sum(heights) + top + 0.08
    canvas = Canvas(figsize=(width, height))
    canvas.text(0.1 / width, 1 - 0.12 / height, title, ha="left", va="top", fontsize=11)
    _place_headings(canvas, headings, lefts, (width, height))
    bottom = height - top
    for row, own, tall in zip(rows, titles, heights, strict=True):
        bottom -= tall
        middle = (bottom + 0.04 + CELL / 2) / height
        label = wrapped(row.label, int(LABEL * LETTERS_AN_INCH))
        canvas.text((LABEL - 0.1) / width, middle, label, ha="right", va="center", fontsize=9)
        for left, cell, above in zip(lefts, row.cells, own, strict=False):
            box = (left / width, (bottom + 0.04) / height, CELL / width, CELL / height)
            axes = canvas.add_axes(box)
            axes.set_axis_off()
            if cell.image is not None:
                show(axes, cell.image)
            if above:
                axes.set_title(above, fontsize=8, pad=2)
    return canvas


def _lefts(columns: int, spans: Sequence[int]) -> list[float]:
    """Return where each column begins, in inches; groups of `spans` columns stand apart."""
    ends = [sum(spans[: i + 1]) for i in range(len(spans))]
    return [LABEL + i * CELL * 1.06 + GAP * sum(end <= i for end in ends) for i in range(columns)]


def show(axes: Axes, image: Image.Image) -> None:
    """Show an image; small ones keep their pixels."""
    axes.imshow(image, interpolation="antialiased" if max(image.size) > SMALL else "nearest")


def _place_headings(
    canvas: Canvas,
    headings: Sequence[tuple[str, int]],
    lefts: Sequence[float],
    size: tuple[float, float],
) -> None:
    width, height = size
    first = 0
    for text, span in headings:
        centre = (lefts[first] + lefts[first + span - 1] + CELL) / 2
        where = (centre / width, 1 - 0.42 / height)
        canvas.text(*where, text, ha="center", va="top", fontsize=10, fontweight="bold")
        first += span
