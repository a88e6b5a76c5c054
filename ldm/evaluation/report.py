"""A report as one HTML file that opens offline: images, scores and plots are all inside it.

A `Page` is a list of sections, a section a list of blocks; each block renders itself. Nothing here
knows what is reported: `scripts/demo.py` is one user.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape
from importlib.resources import files
from pathlib import Path
from typing import Protocol

from PIL import Image


class Block(Protocol):
    """A part of a section."""

    def html(self) -> str:
        """Return the block as HTML."""
        ...


@dataclass(frozen=True)
class Text:
    """A paragraph of plain text, or a command line to copy."""

    text: str
    is_command: bool = False

    def html(self) -> str:
        if self.is_command:
            return f"<pre><code>{escape(self.text)}</code></pre>"
        return f"<p>{escape(self.text)}</p>"


@dataclass(frozen=True)
class Fact:
    """One number to read first: the value as text, what it is, and what to hold it against."""

    value: str
    label: str
    note: str = ""


@dataclass(frozen=True)
class Facts:
    """Numbers side by side."""

    facts: Sequence[Fact]

    def html(self) -> str:
        cards = [
            f'<div class="fact"><strong>{escape(fact.value)}</strong>'
            f"<span>{escape(fact.label)}</span><small>{escape(fact.note)}</small></div>"
            for fact in self.facts
        ]
        return f'<div class="facts">{"".join(cards)}</div>'


@dataclass(frozen=True)
class Row:
    """Pictures drawn alike, under what they were drawn from.

    Attributes:
        label: the prompt, or what the images are.
        images: any sizes; shown at one height.
        note: a score or a remark.
    """

    label: str
    pictures: Sequence[Image.Image]
    note: str = ""

    def html(self) -> str:
        return f'<figure class="row">{self.inside()}</figure>'

    def inside(self) -> str:
        """Return caption and images, without the element around them."""
        shown = "".join(
            f'<img src="{data_url(picture)}" alt="{escape(self.label)}, image {i}" '
            f'width="{picture.width}" height="{picture.height}">'
            for i, picture in enumerate(self.pictures, 1)
        )
        note = f"<small>{escape(self.note)}</small>" if self.note else ""
        caption = f"<figcaption><span>{escape(self.label)}</span>{note}</figcaption>"
        return f'{caption}<div class="pictures">{shown}</div>'


@dataclass(frozen=True)
class Course:
    """Rows turned upright, side by side: the same images as they change from left to right."""

    rows: Sequence[Row]

    def html(self) -> str:
        columns = "".join(f'<figure class="row">{row.inside()}</figure>' for row in self.rows)
        return f'<div class="course">{columns}</div>'


@dataclass(frozen=True)
class Table:
    """Rows of text; the first column names the row, numbers stand to the right."""

    columns: Sequence[str]
    rows: Sequence[Sequence[str]]

    def __post_init__(self) -> None:
        for row in self.rows:
            if len(row) != len(self.columns):
                raise ValueError(f"a row needs {len(self.columns)} cells, got {len(row)}: {row}")

    def html(self) -> str:
        head = "".join(f'<th scope="col">{escape(name)}</th>' for name in self.columns)
        body = "".join(
            f'<tr><th scope="row">{escape(first)}</th>'
            + "".join(f"<td>{escape(cell)}</td>" for cell in rest)
            + "</tr>"
            for first, *rest in self.rows
        )
        return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


@dataclass(frozen=True)
class Plot:
    """An `<svg>` element, as `ldm.evaluation.plots.line_plot` returns it, and what it shows."""

    svg: str
    caption: str

    def html(self) -> str:
        return (
            f'<figure class="plot">{self.svg}<figcaption>{escape(self.caption)}</figcaption>'
            "</figure>"
        )


@dataclass(frozen=True)
class Columns:
    """Blocks side by side where the window is wide enough."""

    blocks: Sequence[Block]

    def html(self) -> str:
        return f'<div class="columns">{"".join(block.html() for block in self.blocks)}</div>'


@dataclass(frozen=True)
class Section:
    """A titled part of the page."""

    title: str
    blocks: Sequence[Block]

    def html(self) -> str:
        inside = "\n".join(block.html() for block in self.blocks)
        return f"<section>\n<h2>{escape(self.title)}</h2>\n{inside}\n</section>"


@dataclass(frozen=True)
class Page:
    """The whole report: what it is, in a title and a sentence, then its sections."""

    title: str
    lead: str
    sections: Sequence[Section] = field(default_factory=tuple)

    def html(self) -> str:
        """Return a complete HTML document that asks nothing of the network."""
        style = files("ldm.evaluation").joinpath("page.css").read_text("utf-8")
        body = "\n".join(section.html() for section in self.sections)
        return (
            '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
            '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
            '<meta name="color-scheme" content="light dark">\n'
            f"<title>{escape(self.title)}</title>\n<style>\n{style}</style>\n</head>\n<body>\n"
            f"<header><h1>{escape(self.title)}</h1>\n<p>{escape(self.lead)}</p></header>\n"
            f"<main>\n{body}\n</main>\n</body>\n</html>\n"
        )

    def write(self, path: Path) -> None:
        """Write the page; its folder is made if need be."""
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(self.html(), encoding="utf-8")


def data_url(picture: Image.Image) -> str:
    """Return an image as a PNG inside a `data:` address."""
    buffer = io.BytesIO()
    picture.convert("RGB").save(buffer, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")
