"""Where the figures' inputs lie when nothing says so: one's own results, or the committed ones."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

import pytest

from ldm.cli import figures as cli
from ldm.cli.common import split_pairs
from ldm.experiments.figures.request import Request
from ldm.util import UserError

Options = Callable[..., list[str]]


def touch(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    return path


@pytest.fixture
def asked(options: Options) -> Callable[..., Request]:
    """Read the request of a command line."""
    return lambda *more: cli.read_request(cli.parse(options(*more)))


def test_the_table_is_ones_own_or_else_the_committed_one(
    asked: Callable[..., Request], empty_project: Path
) -> None:
    own, committed = (empty_project / path for path in cli.TABLES[0])
    assert asked().table.resolve() != committed
    touch(committed / "summary.csv")
    assert asked().table.resolve() == committed
    own.mkdir(parents=True)  # a protocol under way, without a table yet
    assert asked().table.resolve() == committed
    touch(own / "summary.csv")
    assert asked().table.resolve() == own
    assert asked("--table", "other").table == Path("other")


def test_the_committed_study_is_taken_unless_another_is_given(
    asked: Callable[..., Request], empty_project: Path
) -> None:
    assert (asked().answers, asked().key) == ([], None)
    folder = empty_project / cli.STUDY
    key, second, first = (
        touch(folder / name) for name in ("key.json", "answers/b.json", "answers/a.json")
    )
    found = asked()
    assert [path.resolve() for path in found.answers] == [first, second]
    assert found.key is not None
    assert found.key.resolve() == key
    given = asked("--answers", "mine.json")
    assert (list(given.answers), given.key) == ([Path("mine.json")], None)


@pytest.mark.parametrize("name", ["key.json", "answers/a.json"])
def test_half_a_study_is_none(name: str, options: Options, empty_project: Path) -> None:
    touch(empty_project / cli.STUDY / name)
    with pytest.raises(UserError, match="there are no answers of a user study"):
        cli.main(options("10b"))


def test_neither_table_is_one_line_that_says_how_to_make_it(options: Options) -> None:
    with pytest.raises(
        UserError, match=r"miniature/summary\.csv is not there: run `make protocol`"
    ):
        cli.main(["12", *options()])


def test_pivotal_tuning_of_the_concept_is_found_for_the_shipped_model_alone(
    empty_project: Path,
) -> None:
    def found(*more: str) -> Path | None:
        return cli._pivotal(
            options := cli.parse(["11", *more]), dict(split_pairs("--rename", options.rename))
        )

    assert found() is None
    folder = touch(empty_project / "outputs/pivotal/teal-star/difference.safetensors").parent
    assert found() is not None
    assert found().resolve() == folder  # type: ignore[union-attr]
    assert found("--rename", "teal-star=red-mug") is None
    assert found("--model", "elsewhere") is None
    assert found("--pivotal", "mine") == Path("mine")


def test_figure_11_says_in_one_line_that_pivotal_tuning_is_missing(
    options: Options, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cli, "_maker", lambda *_: lambda _: None)
    with caplog.at_level(logging.WARNING):
        assert cli.main(["11", *options()]) == 0
    (record,) = caplog.records
    assert "without pivotal tuning" in record.message
    assert "scripts/figures.py pivotal" in record.message
