"""Means over concepts and seeds, and their intervals."""

from __future__ import annotations

import numpy as np
import pytest
from drive import small_table
from hypothesis import given
from hypothesis import strategies as st

from ldm.evaluation.bootstrap import mean_over, resampled_weights
from ldm.experiments.protocol.cells import Cell
from ldm.experiments.protocol.table import Finished, summarise


@given(st.lists(st.sampled_from("abc"), min_size=1, max_size=9), st.integers(0, 99))
def test_weights_are_shares_and_a_concept_counts_once_however_many_seeds(
    concepts: list[str], seed: int
) -> None:
    weights = resampled_weights(concepts, 20, np.random.default_rng(seed))
    np.testing.assert_allclose(weights.sum(1), 1)
    assert (weights >= 0).all()
    for name in set(concepts):
        own = [weights[0, i] for i, concept in enumerate(concepts) if concept == name]
        assert sum(own) == pytest.approx(1 / len(set(concepts)))


def test_the_mean_is_that_of_the_concepts_means() -> None:
    found = mean_over([1.0, 3.0, 10.0], ["a", "a", "b"])
    assert found.value == pytest.approx(6)
    assert found.low < found.value < found.high


def test_seeds_of_one_concept_are_no_independent_cells() -> None:
    """Copies of a concept's scores narrow the interval no further than the concept itself."""
    few = mean_over([0.0, 1.0], ["a", "b"], 4000)
    many = mean_over([0.0] * 8 + [1.0] * 8, ["a"] * 8 + ["b"] * 8, 4000)
    assert (many.low, many.high) == (few.low, few.high) == (0, 1)


def scored(cell: Cell, value: float) -> Finished:
    estimate = {"value": value, "low": value, "high": value}
    scores = {"image": estimate, "text": estimate, "text_of_average": estimate}
    return Finished(cell, {**scores, "training": None, "word_norm": value, "vocabulary_norm": None})


def test_differences_are_taken_within_concept_and_seed() -> None:
    """Concepts lie far apart, variants by 0.25 in each: the difference has no spread."""
    cells = small_table()
    found = [
        scored(cell, (cell.concept == "dog") + 0.25 * (cell.variant != "ours")) for cell in cells
    ]
    ours, other = summarise(found, "ours")
    assert ours.differences["text"].value == 0
    difference = other.differences["image"]
    assert (difference.value, difference.low, difference.high) == (0.25, 0.25, 0.25)
    assert other.scores["image"].high - other.scores["image"].low > 0.5
    assert (ours.cells, ours.concepts, ours.training, ours.word_norm) == (4, 2, None, 0.5)


def test_a_reference_that_is_not_finished_gives_no_differences() -> None:
    found = [scored(cell, 0.5) for cell in small_table() if cell.variant != "ours"]
    (only,) = summarise(found, "ours")
    assert only.differences == {}
