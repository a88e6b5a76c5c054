"""The list of figures: every one is whole, and its prompts are for its model."""

from __future__ import annotations

from pathlib import Path

import pytest
from matplotlib.figure import Figure as Canvas

from ldm.evaluation.similarity import without_placeholders
from ldm.experiments.figures.record import FIGURES, Figure, Rendered, find
from ldm.miniature.grammar import vocabulary
from ldm.util import UserError
from ldm.words.placeholders import occurrences

ROOT = Path(__file__).parents[3]
DRAWN = [figure for figure in FIGURES if figure.miniature]


def test_every_figure_of_the_paper_but_its_diagram_is_there() -> None:
    numbers = {int(figure.name.rstrip("ab")) for figure in FIGURES}
    assert numbers == set(range(1, 17)) - {2}
    assert len({figure.stem for figure in FIGURES}) == len(FIGURES)


@pytest.mark.parametrize("figure", DRAWN, ids=lambda f: f.stem)
def test_the_miniatures_prompts_are_in_its_vocabulary(figure: Figure) -> None:
    known = {word.lower() for word in vocabulary()}
    for line in figure.miniature:
        for prompt in line.prompts:
            words = without_placeholders(prompt, ("*", "@")).lower().replace("-", " ").split()
            assert set(words) <= known, f"{prompt}: {set(words) - known}"


@pytest.mark.parametrize("figure", DRAWN, ids=lambda f: f.stem)
@pytest.mark.parametrize("miniature", [True, False], ids=["miniature", "paper"])
def test_every_line_uses_its_words_and_no_others(figure: Figure, miniature: bool) -> None:
    for line in figure.lines(miniature):
        text = " ".join(line.prompts)
        assert occurrences(text, "*")
        assert bool(occurrences(text, "@")) == (len(line.concepts) == 2)


@pytest.mark.parametrize("figure", DRAWN, ids=lambda f: f.stem)
def test_the_miniatures_concepts_are_shipped(figure: Figure) -> None:
    concepts = {name for line in figure.miniature for name in line.concepts}
    if "concepts" in figure.needs:
        assert all((ROOT / "examples" / "concepts" / name).is_dir() for name in concepts)


@pytest.mark.parametrize(
    ("asked", "found"),
    [("1", ["1"]), ("fig04", ["4"]), ("10", ["10a", "10b"]), ("10A", ["10a"]), ("16", ["16"])],
)
def test_figures_are_found_by_number(asked: str, found: list[str]) -> None:
    assert [figure.name for figure in find(FIGURES, asked)] == found


@pytest.mark.parametrize("name", ["17", "0", "", "ten", "2", "10c"])
def test_an_unknown_figure_is_one_line(name: str) -> None:
    with pytest.raises(UserError, match="figure") as error:
        find(FIGURES, name)
    assert "\n" not in str(error.value)


def test_a_table_with_ragged_rows_is_refused() -> None:
    with pytest.raises(ValueError, match="2 values"):
        Rendered(Canvas(), ("a", "b"), [(1, 2), (3,)])


def test_an_unknown_need_is_refused() -> None:
    with pytest.raises(ValueError, match="needs"):
        Figure("1", "title", "curated", needs=("luck",))
