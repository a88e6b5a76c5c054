"""The description of a figure: name, title and prompts, without a model. Imports nothing heavy."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml  # type: ignore[import-untyped]

from ldm.util import UserError, one_of

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Canvas

# What a figure may need beside the model and its scorer.
INPUTS = ("words", "concepts", "table", "answers", "pivotal", "scene")


@dataclass(frozen=True)
class Line:
    """One line of images: its words and its prompts.

    Attributes:
        concepts: the files of `--words` and folders of `--concepts`, without suffix. The first is
            `*` in the prompts, the second `@`.
        prompts: with the placeholders.
        label: beside the line; the concepts' names where empty.
    """

    concepts: tuple[str, ...]
    prompts: tuple[str, ...]
    label: str = ""

    @property
    def shown_label(self) -> str:
        """The text beside the line."""
        return self.label or " + ".join(self.concepts)


@dataclass(frozen=True)
class Figure:
    """One figure of the paper.

    Attributes:
        name: its number, with a letter where the paper has several parts: "1", "10a".
        title: title in a few words.
        renderer: module and function in `ldm.experiments.figures`: (figure, session) → rendered.
        paper: its lines at 1.4B, with the paper's prompts.
        miniature: its lines in the miniature's vocabulary.
        needs: of `INPUTS`, what must be there.
        layout: arguments of the renderer.
    """

    name: str
    title: str
    renderer: str
    paper: tuple[Line, ...] = ()
    miniature: tuple[Line, ...] = ()
    needs: tuple[str, ...] = ("words", "concepts")
    layout: Mapping[str, Any] = field(default_factory=dict, hash=False)

    def __post_init__(self) -> None:
        for name in self.needs:
            one_of(INPUTS, needs=name)

    @property
    def heading(self) -> str:
        """The text above the figure."""
        return f"Figure {self.name}. {self.title}"

    @property
    def stem(self) -> str:
        """The name of its files, without suffix: "fig01", "fig10a"."""
        digits = self.name.rstrip("abcdefgh")
        return f"fig{int(digits):02d}{self.name[len(digits) :]}"

    def lines(self, miniature: bool) -> tuple[Line, ...]:
        """Return the lines for the miniature or for the 1.4B model."""
        return self.miniature if miniature else self.paper


@dataclass(frozen=True)
class Rendered:
    """A rendered figure, and what is written beside it.

    Attributes:
        columns, rows: the figure's numbers: the columns' names, and rows of as many values.
        notes: sentences.
    """

    canvas: Canvas
    columns: tuple[str, ...]
    rows: Sequence[Sequence[Any]]
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for row in self.rows:
            if len(row) != len(self.columns):
                raise ValueError(f"rows must have {len(self.columns)} values, got {list(row)}")


def find(figures: Sequence[Figure], name: str) -> list[Figure]:
    """Return the figure of a name, or all parts of a number: "10" is 10a and 10b; or UserError."""
    wanted = name.lower().removeprefix("fig").lstrip("0")
    found = [f for f in figures if wanted in (f.name, f.name.rstrip("abcdefgh"))]
    if found:
        return found
    if wanted == "2":
        raise UserError("figure 2 is the paper's diagram of the method: there is nothing to make")
    names = [f.name for f in figures]
    near = difflib.get_close_matches(wanted, names, n=1, cutoff=0.3)
    hint = f" (did you mean {near[0]}?)" if near else ""
    raise UserError(f"there is no figure {name!r}{hint}: there are {', '.join(names)}")


def _lines(stored: Sequence[Mapping[str, Any]]) -> tuple[Line, ...]:
    """Return lines from `figures.yaml`: of several concepts together, or one of each concept."""
    return tuple(
        Line(tuple(concepts), tuple(item["prompts"]), item.get("label", ""))
        for item in stored
        for concepts in ([item["with"]] if "with" in item else ([name] for name in item["each"]))
    )


def _read_figures() -> tuple[Figure, ...]:
    text = Path(__file__).with_name("figures.yaml").read_text(encoding="utf-8")
    figures = []
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # the one in C is ten times as fast
    for stored in yaml.load(text, loader):
        sides = ("paper", "miniature")
        tuples: dict[str, Any] = {name: _lines(stored.get(name, ())) for name in sides}
        if "needs" in stored:
            tuples["needs"] = tuple(stored["needs"])
        figures.append(Figure(**(stored | tuples)))
    return tuple(figures)


FIGURES = _read_figures()
