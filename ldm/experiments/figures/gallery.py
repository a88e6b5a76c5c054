"""Figures that are images of prompts: chosen (1, 4, 6, 7, 13) or as they come (14, 15, 16)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ldm.experiments.figures.layout import Cell, Row, draw_grid
from ldm.experiments.figures.record import Drawing, Figure, Line, Table
from ldm.experiments.figures.studio import Scored, Studio
from ldm.experiments.figures.style import readable

CANDIDATES = 16  # of a prompt, of which one is shown (paper, appendix)
SHOWN = 8  # images in a line of an uncurated figure
COLUMNS = (
    *("line", "concepts", "prompt", "picture", "seed"),
    *("image_similarity", "text_similarity", "shown"),
)


def curated(figure: Figure, studio: Studio) -> Drawing:
    """Show a training image and, of each prompt, the candidate with the best scores."""
    candidates = min(CANDIDATES, studio.request.pictures)
    rows: list[Row] = []
    numbers: list[tuple[Any, ...]] = []
    for number, line in enumerate(studio.request.lines(figure)):
        cells = _inputs(studio, line)
        for prompt, scored in zip(line.prompts, studio.draw_line(line, candidates), strict=True):
            best = max(range(len(scored)), key=lambda i: scored[i].both)
            cells.append(Cell(scored[best].picture.image, readable(prompt)))
            numbers += _numbers(number, line, prompt, scored, {best})
        rows.append(Row(line.shown_label, cells))
    note = (
        f"Curated without a human: of {candidates} images a prompt the one with the greatest "
        "mean of two cosines, with the training images and with the prompt without its words."
    )
    title = f"Figure {figure.name}. {figure.title} (best of {candidates} by score)"
    return Drawing(draw_grid(rows, title=title), Table(COLUMNS, numbers), (note,))


def uncurated(figure: Figure, studio: Studio) -> Drawing:
    """Show a line for each concept: training images, then the first ones drawn."""
    each = studio.request.pictures
    shown, inputs = min(each, SHOWN), 2
    rows: list[Row] = []
    numbers: list[tuple[Any, ...]] = []
    for number, line in enumerate(studio.request.lines(figure)):
        given = studio.subject(line.concepts[0]).pictures[:inputs]
        cells = [Cell(picture) for picture in given] + [Cell(None)] * (inputs - len(given))
        (prompt,) = line.prompts
        (scored,) = studio.draw_line(line, each)
        cells += [Cell(found.picture.image) for found in scored[:shown]]
        rows.append(Row(line.shown_label, cells))
        numbers += _numbers(number, line, prompt, scored, set(range(shown)))
    headings = [("training images", inputs), ("as drawn", shown)]
    title = f"Figure {figure.name}. {figure.title}"
    grid = draw_grid(rows, title=title, headings=headings)
    return Drawing(grid, Table(COLUMNS, numbers), (_first(shown, each),))


def prompts(figure: Figure, studio: Studio) -> Drawing:
    """Show a line for each prompt, the concepts side by side; all have the same prompts."""
    each = studio.request.pictures
    shown = min(each, SHOWN // 2)
    cells: dict[str, list[Cell]] = {}
    numbers: list[tuple[Any, ...]] = []
    lines = studio.request.lines(figure)
    for number, line in enumerate(lines):
        for prompt, scored in zip(line.prompts, studio.draw_line(line, each), strict=True):
            found = [Cell(one.picture.image) for one in scored[:shown]]
            cells.setdefault(prompt, []).extend(found)
            numbers += _numbers(number, line, prompt, scored, set(range(shown)))
    rows = [Row(readable(prompt), found) for prompt, found in cells.items()]
    headings = [(line.shown_label, shown) for line in lines]
    title = f"Figure {figure.name}. {figure.title}"
    grid = draw_grid(rows, title=title, headings=headings)
    return Drawing(grid, Table(COLUMNS, numbers), (_first(shown, each),))


def _first(shown: int, each: int) -> str:
    return f"Uncurated: the first {shown} of {each} images a prompt, by their seeds."


def _inputs(studio: Studio, line: Line) -> list[Cell]:
    """Return one training image of each concept."""
    return [
        Cell(studio.subject(concept).pictures[0], f"training image: {concept}")
        for concept in line.concepts
    ]


def _numbers(
    number: int, line: Line, prompt: str, scored: Sequence[Scored], shown: set[int]
) -> list[tuple[Any, ...]]:
    return [
        (
            number,
            " + ".join(line.concepts),
            prompt,
            i,
            found.picture.seed,
            found.image,
            found.text,
            int(i in shown),
        )
        for i, found in enumerate(scored)
    ]
