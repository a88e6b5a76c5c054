"""The untrained miniature with words and concepts as the figures want them."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="session")
def figure_words(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A word for each concept that the miniature's figures name."""
    from ldm.experiments.figures.record import FIGURES
    from ldm.words.files import write_words

    folder = tmp_path_factory.mktemp("words")
    names = {name for figure in FIGURES for line in figure.miniature for name in line.concepts}
    for name in sorted(names):
        facts = {"first_words": '{"*": "star"}'}
        write_words(folder / f"{name}.safetensors", {"*": torch.randn(1, 128)}, {"*": 5}, facts)
    return folder


@pytest.fixture(autouse=True)
def empty_project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project without outputs or results, so that what lies in this one decides no test."""
    folder = tmp_path / "project"
    folder.mkdir()
    monkeypatch.chdir(folder)
    monkeypatch.setattr("ldm.cli.figures.locate", Path)
    return folder


@pytest.fixture
def options(
    untrained_miniature: Path, figure_words: Path, tmp_path: Path
) -> Callable[..., list[str]]:
    """A quick command line: two steps, one image of each prompt."""

    def make(*more: str) -> list[str]:
        return [
            *("--model", str(untrained_miniature), "--words", str(figure_words)),
            *("--concepts", str(ROOT / "examples" / "concepts"), "--steps", "2"),
            *("--pictures", "1", "--output", str(tmp_path / "figures"), "--device", "cpu"),
            *more,
        ]

    return make


@pytest.fixture
def some_concepts(tmp_path: Path) -> Path:
    """A copy of three concepts, to take things away from."""
    folder = tmp_path / "concepts"
    for name in ("teal-star", "red-mug", "orange-fish"):
        shutil.copytree(ROOT / "examples" / "concepts" / name, folder / name)
    return folder
