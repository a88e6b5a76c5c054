"""The choice among saved steps: the rule in closed form, and what is written."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from ldm.evaluation.bootstrap import Estimate
from ldm.evaluation.evaluate import Evaluation
from ldm.evaluation.selection import choose, write_best, write_curve
from ldm.words.files import read_words, write_words

scores = st.dictionaries(
    st.integers(1, 6100), st.tuples(st.floats(-1, 1), st.floats(-1, 1)), min_size=1, max_size=12
)


def curve(found: Mapping[int, tuple[float, float]]) -> dict[int, Evaluation]:
    """Scores of steps with nothing but (image, text)."""
    return {
        step: Evaluation(
            Estimate(image, image, image), Estimate(text, text, text), Estimate(0, 0, 0), None, (),
            settings={"pictures": 2},
        )
        for step, (image, text) in found.items()
    }  # fmt: skip


def test_the_best_text_of_the_steps_near_the_best_image() -> None:
    found = {100: (0.60, 0.30), 200: (0.79, 0.27), 300: (0.80, 0.25), 400: (0.785, 0.28)}
    selection = choose(curve(found), 0.02)
    assert selection.eligible == (200, 300, 400)
    assert selection.chosen == 400
    assert choose(curve(found), 0.0).chosen == 300
    assert choose(curve(found), 1.0).chosen == 100


@given(scores, st.floats(0, 2))
def test_the_choice_keeps_the_rule(found: dict[int, tuple[float, float]], tolerance: float) -> None:
    selection = choose(curve(found), tolerance)
    best = max(image for image, _ in found.values())
    image, text = found[selection.chosen]
    assert image >= best - tolerance
    for step, (other_image, other_text) in found.items():
        if other_image >= best - tolerance:
            assert (text, -selection.chosen) >= (other_text, -step)


def test_of_equal_steps_the_earliest() -> None:
    assert choose(curve({300: (0.5, 0.5), 100: (0.5, 0.5), 200: (0.5, 0.5)}), 0.1).chosen == 100


def test_what_cannot_be_chosen_from() -> None:
    with pytest.raises(ValueError, match="at least one step"):
        choose({}, 0.1)
    for tolerance in (-0.1, float("nan")):
        with pytest.raises(ValueError, match="tolerance must be at least 0"):
            choose(curve({1: (0.0, 0.0)}), tolerance)


def test_what_is_written_says_how_it_was_chosen(tmp_path: Path) -> None:
    word, vectors = tmp_path / "embeddings_gs-200.safetensors", torch.randn(2, 4)
    write_words(word, {"*": vectors}, metadata={"step": "200", "seed": "23"})
    selection = choose(curve({100: (0.6, 0.3), 200: (0.8, 0.25)}), 0.02)
    best = tmp_path / "best.safetensors"
    write_best(best, word, selection, {"selection_seed": "7"})
    content = read_words(best)
    assert torch.equal(content.words["*"], vectors)
    said = content.metadata
    assert (said["step"], said["seed"]) == ("200", "23")
    assert (said["selected_step"], said["selected_from"]) == ("200", "[100, 200]")
    assert said["selection_seed"] == "7"
    assert "within 0.02 of the best image similarity" in said["selected_by"]

    write_curve(tmp_path, selection, {"seed": 7})
    with (tmp_path / "selection.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["step"], row["image"], row["chosen"]) for row in rows] == [
        ("100", "0.600000", "0"), ("200", "0.800000", "1"),
    ]  # fmt: skip
    plain = json.loads((tmp_path / "selection.json").read_text())
    assert (plain["chosen"], plain["eligible"], plain["settings"]) == (200, [200], {"seed": 7})
    assert plain["steps"]["100"] == selection.curve[100].to_json()
    with Image.open(tmp_path / "selection.png") as image:
        assert image.format == "PNG"
        assert min(image.size) > 300
