"""Figures of images of prompts: chosen (1, 4, 6, 7, 13) or not chosen (14, 15, 16)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ldm.experiments.figures.layout import Cell, Row, cells_of, grid_figure
from ldm.experiments.figures.record import Figure, Line, Rendered
from ldm.experiments.figures.session import Scored, Session
from ldm.experiments.figures.style import readable

CANDIDATES = 16  # of a prompt, of which one is shown (paper, appendix)
SHOWN = 8  # images in a line of an uncurated figure
COLUMNS = (
    *("line", "concepts", "prompt", "picture", "seed"),
    *("image_similarity", "text_similarity", "shown"),
)


def curated(figure: Figure, session: Session) -> Rendered:
    """Show a training image and, of each prompt, the candidate with the best scores."""
    candidates = min(CANDIDATES, session.request.images)
    rows: list[Row] = []
    numbers: list[tuple[Any, ...]] = []
    for number, line in enumerate(session.request.lines(figure)):
        cells = [
            Cell(session.subject(concept).images[0], f"training image: {concept}")
            for concept in line.concepts
        ]
        for prompt, scored in zip(
            line.prompts, session.generate_line(line, candidates), strict=True
        ):
            best = max(range(len(scored)), key=lambda i: scored[i].mean)
            cells.append(Cell(scored[best].generated.image, readable(prompt)))
            numbers += _numbers(number, line, prompt, scored, {best})
        rows.append(Row(line.shown_label, cells))
    note = (
        f"Curated without a human: of {candidates} images a prompt the one with the greatest "
        "mean of two cosines, with the training images and with the prompt without its words."
    )
    title = f"{figure.heading} (best of {candidates} by score)"
    return Rendered(grid_figure(rows, title=title), COLUMNS, numbers, (note,))


def uncurated(figure: Figure, session: Session) -> Rendered:
    """Show a line for each concept: training images, then the first ones generated."""
    each = session.request.images
    shown, inputs = min(each, SHOWN), 2
    rows: list[Row] = []
    numbers: list[tuple[Any, ...]] = []
    for number, line in enumerate(session.request.lines(figure)):
        cells = cells_of(session.subject(line.concepts[0]).images, inputs)
        (prompt,) = line.prompts
        (scored,) = session.generate_line(line, each)
        cells += [Cell(found.generated.image) for found in scored[:shown]]
        rows.append(Row(line.shown_label, cells))
        numbers += _numbers(number, line, prompt, scored, set(range(shown)))
    headings = [("training images", inputs), ("as generated", shown)]
    grid = grid_figure(rows, title=figure.heading, headings=headings)
    return Rendered(grid, COLUMNS, numbers, (_first(shown, each),))


def prompts(figure: Figure, session: Session) -> Rendered:
    """Show a line for each prompt, the concepts side by side; all have the same prompts."""
    each = session.request.images
    shown = min(each, SHOWN // 2)
    cells: dict[str, list[Cell]] = {}
    numbers: list[tuple[Any, ...]] = []
    lines = session.request.lines(figure)
    for number, line in enumerate(lines):
        for prompt, scored in zip(line.prompts, session.generate_line(line, each), strict=True):
            found = [Cell(one.generated.image) for one in scored[:shown]]
            cells.setdefault(prompt, []).extend(found)
            numbers += _numbers(number, line, prompt, scored, set(range(shown)))
    rows = [Row(readable(prompt), found) for prompt, found in cells.items()]
    headings = [(line.shown_label, shown) for line in lines]
    grid = grid_figure(rows, title=figure.heading, headings=headings)
    return Rendered(grid, COLUMNS, numbers, (_first(shown, each),))


def _first(shown: int, each: int) -> str:
    return f"Uncurated: the first {shown} of {each} images a prompt, by their seeds."


def _numbers(
    number: int, line: Line, prompt: str, scored: Sequence[Scored], shown: set[int]
) -> list[tuple[Any, ...]]:
    asked = (number, " + ".join(line.concepts), prompt)
    return [(*asked, i, *found.numbers, int(i in shown)) for i, found in enumerate(scored)]
