"""Grids and files: every image is where it belongs, and nothing overlaps."""

from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.figure import Figure as Canvas
from PIL import Image

from ldm.experiments.figures.layout import Cell, Row, grid_figure
from ldm.experiments.figures.local_edit import own_spec, scene
from ldm.experiments.figures.output import save
from ldm.experiments.figures.record import FIGURES, Rendered, find
from ldm.experiments.figures.request import Request
from ldm.miniature.world import render

COMMAND = "python scripts/figures.py 1 --seed 7"


def grey(level: int, side: int = 8) -> Image.Image:
    return Image.new("RGB", (side, side), (level,) * 3)


def shown(canvas: Canvas) -> list[int]:
    return [int(axes.images[0].get_array()[0, 0, 0]) for axes in canvas.axes if axes.images]


def test_images_stand_in_their_order() -> None:
    rows = [Row("a", [Cell(grey(1)), Cell(grey(2))]), Row("b", [Cell(grey(3)), Cell(None)])]
    canvas = grid_figure(rows, title="t")
    assert shown(canvas) == [1, 2, 3]
    left, right, below, _ = (axes.get_position() for axes in canvas.axes)
    assert left.x1 <= right.x0
    assert below.y1 <= left.y0


@settings(max_examples=8)
@given(
    columns=st.integers(1, 5),
    title=st.text("ab ", min_size=1, max_size=60),
    spans=st.lists(st.integers(1, 3), max_size=3),
)
def test_nothing_overlaps_and_nothing_leaves_the_page(
    columns: int, title: str, spans: list[int]
) -> None:
    columns = max(columns, sum(spans))
    row = Row("label", [Cell(grey(i, 1), title) for i in range(columns)])
    headings = [("group", span) for span in spans]
    canvas = grid_figure([row, row], title=title, headings=headings)
    boxes = [axes.get_position() for axes in canvas.axes]
    assert all(b.x0 >= 0 and b.x1 <= 1 and b.y0 >= 0 and b.y1 <= 1 for b in boxes)
    for i, one in enumerate(boxes):
        for other in boxes[i + 1 :]:
            assert one.x1 <= other.x0 or one.y0 >= other.y1


@pytest.mark.parametrize("title", ["short", "a title of many more words that needs its lines"])
def test_titles_do_not_reach_the_images_above(title: str) -> None:
    rows = [Row("label", [Cell(grey(i), title) for i in range(2)]) for _ in range(2)]
    canvas = grid_figure(rows, title="t")
    canvas.canvas.draw()
    upper, lower = canvas.axes[0], canvas.axes[2]
    title = lower.title.get_window_extent()
    assert title.y1 <= upper.get_window_extent().y0
    assert title.y0 >= lower.get_window_extent().y1 - 2  # the room for letters such as g
    assert upper.title.get_window_extent().y1 <= canvas.bbox.y1


def test_small_images_are_enlarged_by_whole_pixels() -> None:
    small, large = (
        grid_figure([Row("", [Cell(grey(0, side))])], title="").axes[0].images[0]
        for side in (64, 256)
    )
    assert small.get_interpolation() == "nearest"
    assert large.get_interpolation() == "antialiased"


def test_no_images_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one cell"):
        grid_figure([], title="t")


@pytest.fixture
def rendered() -> Rendered:
    canvas = grid_figure([Row("a", [Cell(grey(1))])], title="t")
    return Rendered(canvas, ("prompt", "score"), [("a, b", 0.5), ("*", None)], ("A note.",))


def test_a_figure_has_four_files_that_say_how_it_was_made(
    rendered: Rendered, tmp_path: Path
) -> None:
    (figure,) = find(FIGURES, "1")
    files = save(figure, rendered, tmp_path / "new", COMMAND, {"seed": 7})
    assert [path.name for path in files] == ["fig01.png", "fig01.pdf", "fig01.csv", "fig01.txt"]
    png, pdf, table, text = files
    with Image.open(png) as image:
        assert image.text["Description"] == COMMAND  # type: ignore[attr-defined]
        assert image.width > 300
    assert pdf.read_bytes().startswith(b"%PDF")
    assert table.read_text().splitlines()[0] == f"# {COMMAND}"
    assert list(csv.DictReader(table.read_text().splitlines()[1:])) == [
        {"prompt": "a, b", "score": "0.500000"},
        {"prompt": "*", "score": ""},
    ]
    for part in (COMMAND, "A note.", '"seed": 7', "Figure 1"):
        assert part in text.read_text()


def test_the_table_is_plain_csv_after_its_comment(rendered: Rendered, tmp_path: Path) -> None:
    (figure,) = find(FIGURES, "1")
    table = save(figure, rendered, tmp_path, COMMAND, {})[2]
    with table.open() as file:
        assert next(file).startswith("# ")
        assert next(csv.reader(file)) == ["prompt", "score"]


def test_a_figure_drawn_again_is_the_same(rendered: Rendered, tmp_path: Path) -> None:
    (figure,) = find(FIGURES, "1")
    first = [path.read_bytes() for path in save(figure, rendered, tmp_path, COMMAND, {})]
    assert [path.read_bytes() for path in save(figure, rendered, tmp_path, COMMAND, {})] == first


def test_the_mask_of_figure_9_hides_the_whole_square() -> None:
    image, mask = scene(Request(*[Path()] * 6))
    white = render(replace(own_spec(), colour="white"), 64)
    kept = ~np.asarray(mask)
    # Outside the mask the image does not depend on what stands inside: no corner, no rim.
    difference = np.abs(np.asarray(image) / 127.5 - 1 - white).max(-1)
    assert difference[kept].max() <= 1 / 127
    assert difference[~kept].max() > 0.5
