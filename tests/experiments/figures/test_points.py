"""Figures 10a and 12: what is plotted is what the table says."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
from matplotlib.figure import Figure as Canvas

from ldm.evaluation.bootstrap import Estimate
from ldm.experiments.figures import points
from ldm.experiments.figures.published import RANKS, SET_SIZE, TRADE_OFF
from ldm.experiments.figures.record import FIGURES, find
from ldm.experiments.figures.request import Request
from ldm.experiments.figures.session import Session
from ldm.experiments.figures.style import marker
from ldm.experiments.protocol.table import SUMMARY
from ldm.util import UserError

VARIANTS = ("ours", "high_lr", "low_lr", "image_only", "prompt_only", "captions_short")


def row(variant: str, text: float, image: float, found: int = 5) -> dict[str, str]:
    made = {"variant": variant, "source": "learned", "training_pictures": str(found)}
    for score, value in (("text", text), ("image", image)):
        ends = {"value": value, "low": value - 0.02, "high": value + 0.01}
        made |= {f"{score}_{end}": f"{number:.6f}" for end, number in ends.items()}
    return made


@pytest.fixture
def table(tmp_path: Path) -> Path:
    rows = [row(name, 0.2 + i / 50, 0.7 - i / 40) for i, name in enumerate(VARIANTS)]
    rows += [row(f"ours_n{n}", 0.2 + n / 100, 0.6 + n / 50, n) for n in (1, 3)]
    with (tmp_path / "summary.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, SUMMARY)
        writer.writeheader()
        writer.writerows(rows)
    return tmp_path


def session(table: Path) -> Session:
    nowhere = table / "nowhere"
    return Session(Request(nowhere, nowhere / "model", nowhere, nowhere, table, table / "out"))


def plotted(canvas: Canvas, panel: int) -> set[tuple[float, float]]:
    """Where the markers of a panel stand."""
    return {
        (float(x), float(y))
        for container in canvas.axes[panel].containers
        for x, y in zip(*container.lines[0].get_data(), strict=True)
    }


def test_the_reader_gives_the_tables_numbers(table: Path) -> None:
    found = {point.name: point for point in points.read_points(table)}
    assert found["ours"].text == Estimate(0.2, 0.18, 0.21)
    assert found["high_lr"].image == Estimate(0.675, 0.655, 0.685)
    assert found["ours_n3"].size == 3
    assert found["ours_n3"].is_size
    assert not found["ours"].is_size


def test_figure_10a_plots_the_table_beside_the_paper(table: Path) -> None:
    rendered = points.trade_off(find(FIGURES, "10a")[0], session(table))
    here = [r for r in rendered.rows if r[0] == "here"]
    assert [r[1] for r in here] == list(VARIANTS)  # sizes belong to figure 12
    assert plotted(rendered.canvas, 1) == {(r[3], r[6]) for r in here}
    closer = {(r[3], r[6]) for r in here if r[1] not in ("image_only", "prompt_only")}
    assert plotted(rendered.canvas, 2) == closer < plotted(rendered.canvas, 1)
    paper = [r for r in rendered.rows if r[0] == "paper"]
    assert {r[1]: (r[3], r[6]) for r in paper} == {
        n: (p.text, p.image) for n, p in TRADE_OFF.items()
    }
    assert plotted(rendered.canvas, 0) == {(p.text, p.image) for p in TRADE_OFF.values()}


def test_figure_12_has_the_whole_set_as_its_last_size(table: Path) -> None:
    rendered = points.set_size(find(FIGURES, "12")[0], session(table))
    here = [r for r in rendered.rows if r[0] == "here"]
    assert [(r[1], r[2]) for r in here[:3]] == [("ours_n1", 1), ("ours_n3", 3), ("ours_n5", 5)]
    assert {r[1] for r in here[3:]} == {"image_only", "prompt_only", "captions_short"}
    written = {text.get_text() for text in rendered.canvas.axes[0].texts}
    assert written == {str(n) for n in SET_SIZE}


def test_intervals_are_drawn_where_the_table_has_them(table: Path) -> None:
    rendered = points.trade_off(find(FIGURES, "10a")[0], session(table))
    (bars, _) = rendered.canvas.axes[1].containers[0].lines[2]
    (segment,) = bars.get_segments()
    assert segment[:, 0] == pytest.approx([0.18, 0.21])


def test_a_table_without_sizes_says_so(table: Path) -> None:
    path = table / "summary.csv"
    kept = [line for line in path.read_text().splitlines() if not line.startswith("ours_n")]
    path.write_text("\n".join(kept))
    with pytest.raises(UserError, match="no training-set sizes"):
        points.set_size(find(FIGURES, "12")[0], session(table))


@pytest.mark.parametrize("text", ["", "variant,text_value\nours,1\n", "variant\nours\n"])
def test_a_table_that_is_none_is_one_line(text: str, tmp_path: Path) -> None:
    (tmp_path / "summary.csv").write_text(text)
    with pytest.raises(UserError) as error:
        points.trade_off(find(FIGURES, "10a")[0], session(tmp_path))
    assert "\n" not in str(error.value)


def test_every_point_of_the_paper_has_a_look_of_its_own() -> None:
    looks = [tuple(marker(i).values()) for i in range(len(TRADE_OFF) + 1)]
    assert len({shape for _, shape in looks}) == len(looks)
    assert len(set(looks)) == len(looks)


def test_mean_ranks_of_the_paper_are_ranks() -> None:
    assert all(1 <= rank <= 5 for p in RANKS.values() for rank in (p.text, p.image))
