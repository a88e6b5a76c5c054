"""Figures 10a and 12: scores of many words as points, the paper's and ours."""

from __future__ import annotations

import csv
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import astuple, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ldm.evaluation.bootstrap import Estimate
from ldm.experiments.figures.published import (
    LABELS,
    SET_SIZE,
    SET_SIZE_REFERENCES,
    TRADE_OFF,
    Published,
    label,
)
from ldm.experiments.figures.record import Figure, Rendered
from ldm.experiments.figures.session import Session
from ldm.experiments.figures.style import GREY, marker
from ldm.util import UserError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Canvas

REFERENCES = ("image_only", "prompt_only", "captions_short", "captions_long")
# Ends of the axes, which leave no room for what lies between.
FAR = ("image_only", "prompt_only")
SUMMARY = "summary.csv"
SIZE_STYLE = "n training images"
SIZES = re.compile(r"ours_n(\d+)")
COLUMNS = (
    *("source", "name", "training_pictures"),
    *("text_similarity", "text_low", "text_high"),
    *("image_similarity", "image_low", "image_high"),
)


@dataclass(frozen=True)
class Point:
    """The point of a variant: text similarity to the right, image similarity upwards.

    Attributes:
        size: number of training images; None if it is not known.
    """

    name: str
    text: Estimate
    image: Estimate
    size: int | None = None

    @property
    def is_size(self) -> bool:
        """Whether this is one of Figure 12's sizes of the training set."""
        return SIZES.fullmatch(self.name) is not None


def read_points(folder: Path) -> list[Point]:
    """Read every variant's means from the protocol's summary.csv; UserError where that is none."""
    path = folder / SUMMARY
    try:
        with path.open(encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file))
        return [_point(row) for row in rows]
    except OSError as error:
        raise UserError(f"table {path}: {error.strerror}; run `make protocol`") from error
    except (KeyError, ValueError, TypeError) as error:
        raise UserError(f"table {path} is no summary of the protocol: {error!r}") from error


def _point(row: Mapping[str, str]) -> Point:
    def estimate(score: str) -> Estimate:
        return Estimate(*(float(row[f"{score}_{end}"]) for end in ("value", "low", "high")))

    size = int(row["training_pictures"])
    return Point(row["variant"], estimate("text"), estimate("image"), size)


def published(points: Mapping[str, Published]) -> list[Point]:
    """Return the paper's values, which have no intervals."""
    sizes = {f"ours_n{n}": n for n in SET_SIZE}

    def exactly(value: float) -> Estimate:
        return Estimate(value, value, value)

    return [
        Point(name, exactly(p.text), exactly(p.image), sizes.get(name))
        for name, p in points.items()
    ]


def trade_off(figure: Figure, session: Session) -> Rendered:
    """Figure 10a: reconstruction against editability, a point for each variant."""
    table = session.request.table
    ours = [point for point in read_points(table) if not point.is_size]
    if not ours:
        raise UserError(f"the protocol's table in {table} has no finished variant yet")
    return _side_by_side(figure, published(TRADE_OFF), ours, session.request.is_miniature)


def set_size(figure: Figure, session: Session) -> Rendered:
    """Figure 12: the same by the number of training images."""
    table = session.request.table
    points = read_points(table)
    sizes = [point for point in points if point.is_size]
    if not sizes:
        raise UserError(f"the protocol's table in {table} has no training-set sizes yet")
    # The whole set is the variant itself.
    sizes += [replace(p, name=f"ours_n{p.size}") for p in points if p.name == "ours"]
    ours = sorted(sizes, key=lambda point: point.size or 0)
    ours += [point for point in points if point.name in REFERENCES]
    theirs = {f"ours_n{n}": p for n, p in SET_SIZE.items()} | SET_SIZE_REFERENCES
    return _side_by_side(figure, published(theirs), ours, session.request.is_miniature)


def _side_by_side(
    figure: Figure, theirs: Sequence[Point], ours: Sequence[Point], is_miniature: bool
) -> Rendered:
    from matplotlib.figure import Figure as Canvas

    scorer = "the miniature's CLIP" if is_miniature else "CLIP"
    panels = {
        "the paper (CLIP, 1.4B), no intervals published": theirs,
        f"here ({scorer}), 95% intervals": ours,
    }
    near = [point for point in ours if point.name not in FAR]
    if len(near) < len(ours):
        panels["the same, closer: without the two references"] = near
    canvas = Canvas(figsize=(5.0 * len(panels), 4.8), layout="constrained")
    every = canvas.subplots(1, len(panels))
    styles = {name: marker(i) for i, name in enumerate(_names(theirs, ours))}
    for axes, (title, points) in zip(every, panels.items(), strict=True):
        plot_points(axes, points, styles)
        axes.set_title(title)
    _legend(canvas, every[:2])
    canvas.suptitle(figure.heading, fontsize=11)
    rows = [_row("paper", p) for p in theirs] + [_row("here", p) for p in ours]
    notes = [
        "The paper's values are read off its figure, about ±0.001. Ours are means over concepts "
        "and seeds with 95% intervals, from the protocol's table."
    ]
    if is_miniature:
        notes.append(
            "The miniature's CLIP and the paper's have different scales: compare the order."
        )
    return Rendered(canvas, COLUMNS, rows, tuple(notes))


def plot_points(axes: Axes, points: Sequence[Point], styles: Mapping[str, Any]) -> None:
    """Plot points with their intervals; sizes are joined in their order and numbered."""
    for point in points:
        style = styles[_style_name(point)]
        hollow: Any = {"markerfacecolor": "white"} if point.name in REFERENCES else {}
        looks: Any = {"linestyle": "none", "markersize": 8, "capsize": 2, "elinewidth": 0.8}
        axes.errorbar(
            point.text.value,
            point.image.value,
            xerr=_bars(point.text),
            yerr=_bars(point.image),
            label=label(_style_name(point)),
            **(style | hollow | looks),
        )
    sizes = [point for point in points if point.is_size]
    path = ([p.text.value for p in sizes], [p.image.value for p in sizes])
    axes.plot(*path, color=GREY, linewidth=0.8, zorder=0)
    for point in sizes:
        offset = (5, -13) if _is_below_nearest(point, sizes) else (5, 6)
        where = (point.text.value, point.image.value)
        axes.annotate(str(point.size), where, offset, textcoords="offset points", fontsize=9)
    axes.set_xlabel("text similarity (editability)")
    axes.set_ylabel("image similarity (reconstruction)")
    axes.margins(0.08)
    axes.grid(alpha=0.25)


def _is_below_nearest(point: Point, points: Sequence[Point]) -> bool:
    """Tell whether the nearest of other points lies higher, so that a number is free below."""

    def distance(other: Point) -> float:
        return math.hypot(
            point.text.value - other.text.value, point.image.value - other.image.value
        )

    others = [other for other in points if other is not point]
    return bool(others) and min(others, key=distance).image.value > point.image.value


def _legend(canvas: Canvas, panels: Sequence[Axes]) -> None:
    """Name every marker once, below both panels."""
    handles: dict[str, Any] = {}
    for axes in panels:
        for handle, text in zip(*axes.get_legend_handles_labels(), strict=True):
            bars: Any = handle
            handles.setdefault(text, bars.lines[0])  # the marker without its bars
    canvas.legend(
        handles.values(), handles.keys(), loc="outside lower center", ncols=7, frameon=False
    )


def _names(*groups: Sequence[Point]) -> list[str]:
    """Return every style once, in the order of the paper's figure, others after it."""
    present = {_style_name(point) for points in groups for point in points}
    known = [name for name in (SIZE_STYLE, *LABELS) if name in present]
    return known + sorted(present - set(known))


def _style_name(point: Point) -> str:
    return SIZE_STYLE if point.is_size else point.name


def _row(source: str, point: Point) -> tuple[Any, ...]:
    ends = (*astuple(point.text), *astuple(point.image))
    return (source, point.name, point.size, *map(float, ends))


def _bars(score: Estimate) -> list[list[float]]:
    """Return the lengths of the interval below and above a score, [2, 1]."""
    return [[max(0.0, score.value - score.low)], [max(0.0, score.high - score.value)]]
