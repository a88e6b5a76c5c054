"""Two words from two folders by the real command line: both are learned, nothing else moves."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import main
from ldm.util import UserError
from ldm.words.files import WordFile, read_words
from tests.training.conftest import Outcome

Learn = Callable[..., Outcome]
ROOT = Path(__file__).parents[2]
OVERLAYS = {n: str(ROOT / "configs" / "variants" / f"{n}.yaml") for n in ("joint", "directional")}
TWO = ("--init_word", "dog", "cat", "data.params.train.params.pastings=5")


@pytest.fixture(scope="session")
def second(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("second") / "hats"
    folder.mkdir()
    for i in range(2):
        Image.fromarray(np.full((9, 9, 3), 90 * i, np.uint8)).save(folder / f"{i}.png")
    return folder


@pytest.fixture
def arguments(arguments: list[str]) -> list[str]:
    """The command line that learns two words together on the tiny model."""
    place = arguments.index("-t")
    return [*arguments[:place], OVERLAYS["joint"], *arguments[place:]]


def words_of(outcome: Outcome) -> WordFile:
    return read_words(outcome.folder / "checkpoints" / "embeddings.safetensors")


def test_both_words_are_learned_and_nothing_else(learn: Learn, second: Path) -> None:
    outcome = learn("both", *TWO, "--second_root", str(second), "--max_steps", "4")
    file = words_of(outcome)
    assert list(file.words) == ["*", "@"]
    assert json.loads(file.metadata["first_words"]) == {"*": "dog", "@": "cat"}
    assert len(json.loads(file.metadata["pictures"])) == 3 + 2
    state = torch.load(outcome.folder / "checkpoints" / "last.ckpt", weights_only=True)
    assert all(name.startswith("embedding_manager.") for name in state["state_dict"])
    fewer = words_of(learn("fewer", *TWO, "--second_root", str(second), "--max_steps", "2"))
    for name in "*@":
        assert not torch.equal(file.words[name], fewer.words[name])


def test_a_resumed_run_equals_one_that_never_stopped(learn: Learn, second: Path) -> None:
    more = (*TWO, "--second_root", str(second))
    whole = learn("whole", *more, "--max_steps", "4")
    part = learn("part", *more, "--max_steps", "2")
    assert main.main(["-t", "--resume", str(part.folder), "--max_steps", "4"]) == 0
    for name, vectors in words_of(whole).words.items():
        assert torch.equal(vectors, words_of(part).words[name])


def test_directional_words_together(learn: Learn, second: Path, arguments: list[str]) -> None:
    arguments.insert(arguments.index("-t"), OVERLAYS["directional"])
    outcome = learn("spheres", *TWO, "--second_root", str(second), "--max_steps", "3")
    for row in outcome.table():
        for word in "*@":
            assert float(row[f"word/norm_ratio/{word}"]) == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (TWO, r"two concepts need two folders: give the second's, --second_root DIR"),
        ((*TWO, "--second_root", "nowhere"), "'nowhere' is not a folder"),
        (("--init_word", "dog"), r"--init_word dog: give one for each word of \['\*', '@'\]"),
        (
            (*TWO, "--placeholder_string", "@"),
            r"2 words for \['@'\]: .* or give as many placeholders",
        ),
    ],
)
def test_mistakes_are_one_line(learn: Learn, more: tuple[str, ...], message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        learn("wrong", *more)
    assert "\n" not in str(caught.value)


def test_a_set_of_one_concept_takes_no_second_folder(learn: Learn, second: Path) -> None:
    one = "ldm.data.personalized.PersonalizedBase"
    sets = [f"data.params.{name}.target={one}" for name in ("train", "validation")]
    with pytest.raises(UserError, match="--second_root: no set of this configuration's data"):
        learn("single", *TWO, *sets, "--second_root", str(second))
