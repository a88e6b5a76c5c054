"""The report is one file that opens offline, says what it was given and breaks on no text."""

from __future__ import annotations

import base64
import io
import xml.etree.ElementTree as ElementTree
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ldm.evaluation.plots import Band, Line, line_plot, running_mean
from ldm.evaluation.report import (
    Columns,
    Course,
    Fact,
    Facts,
    Page,
    Plot,
    Row,
    Section,
    Table,
    Text,
    data_url,
)

VOID = {"meta", "img"}


class Reader(HTMLParser):
    """Collects text and addresses, and checks that every element is closed in order."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.addresses: list[str] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.addresses += [v or "" for k, v in attrs if k in ("src", "href", "xlink:href")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.addresses += [v or "" for k, v in attrs if k in ("src", "href", "xlink:href")]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def read(html: str) -> Reader:
    reader = Reader()
    reader.feed(html)
    reader.close()
    assert not reader.open
    return reader


def picture(level: int = 7) -> Image.Image:
    return Image.fromarray(np.full((4, 6, 3), level, np.uint8))


def full_page() -> Page:
    plot = line_plot([Line([1, 2], [3, 4], "loss")], x_label="step", y_label="loss")
    blocks = [
        Text("a paragraph"),
        Text("python main.py", is_command=True),
        Facts([Fact("0.9", "similarity", "of 1")]),
        Row("a photo of * & <b>", [picture(), picture(9)], "text 0.3"),
        Course([Row("step 0", [picture()]), Row("step 9", [picture()])]),
        Table(("", "score"), [("word", "0.8")]),
        Columns([Plot(plot, "the loss"), Plot(plot, "again")]),
    ]
    return Page("A <word>", "It says “so” & no more.", [Section("All & everything", blocks)])


def test_a_page_asks_nothing_of_the_network(tmp_path: Path) -> None:
    full_page().write(tmp_path / "new" / "index.html")
    html = (tmp_path / "new" / "index.html").read_text("utf-8")
    reader = read(html)
    assert len(reader.addresses) >= 4
    assert all(a.startswith(("data:image/png;base64,", "#")) for a in reader.addresses)
    assert "url(http" not in html
    assert "@import" not in html
    assert "<script" not in html


def test_a_page_says_what_it_was_given_whatever_the_characters() -> None:
    reader = read(full_page().html())
    for text in ("A <word>", "a photo of * & <b>", "text 0.3", "step 9", "0.8", "python main.py"):
        assert text in reader.text
    assert full_page().html().count("<img") == 4


def test_images_are_kept_exactly() -> None:
    original = Image.fromarray(np.arange(72, dtype=np.uint8).reshape(4, 6, 3))
    payload = data_url(original).removeprefix("data:image/png;base64,")
    again = Image.open(io.BytesIO(base64.b64decode(payload)))
    np.testing.assert_array_equal(np.asarray(again), np.asarray(original))


def test_a_table_wants_as_many_cells_as_columns() -> None:
    with pytest.raises(ValueError, match="needs 2 cells, got 1"):
        Table(("", "score"), [("word",)])


def test_a_plot_is_well_formed_and_takes_the_page_s_colour() -> None:
    line = Line(list(range(60)), list(np.sin(np.arange(60))), "norm of <*>", smooth=5)
    svg = line_plot([line], x_label="step", y_label="norm", bands=[Band(0, 1, "most words")])
    root = ElementTree.fromstring(svg)
    words = {e.text for e in root.iter("{http://www.w3.org/2000/svg}text")}
    assert {"step", "norm", "norm of <*>", "most words"} <= words
    assert "currentColor" in svg
    assert svg == line_plot(
        [line], x_label="step", y_label="norm", bands=[Band(0, 1, "most words")]
    )


def test_running_mean_is_the_mean_of_what_there_is() -> None:
    np.testing.assert_allclose(running_mean([1, 2, 6, 3], 3), [1.5, 3, 11 / 3, 4.5])
    np.testing.assert_allclose(running_mean([1, 2], 1), [1, 2])
    with pytest.raises(ValueError, match="at least 1, got 0"):
        running_mean([1.0], 0)


def test_a_line_needs_points() -> None:
    with pytest.raises(ValueError, match="got 0 and 0"):
        Line([], [])
