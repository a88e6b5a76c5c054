"""Intervals: closed forms, and what holds for any images."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ldm.evaluation.bootstrap import (
    Estimate,
    Resampled,
    cosine_of_average,
    mean_of,
    resample,
    weighted_mean,
)

finite = st.floats(-1, 1)


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


@given(finite, st.integers(1, 70))
def test_constant_scores_have_an_interval_of_no_width(value: float, count: int) -> None:
    found = resample(weighted_mean([value] * count), count, 100, rng()).estimate
    assert found == Estimate(value, value, value)


@given(st.lists(finite, min_size=1, max_size=20), st.integers(0, 2**32))
def test_a_mean_and_its_interval_lie_among_the_scores(values: list[float], seed: int) -> None:
    found = resample(weighted_mean(values), len(values), 50, rng(seed)).estimate
    assert found.value == pytest.approx(np.mean(values), abs=1e-12)
    assert min(values) - 1e-12 <= found.low <= found.high <= max(values) + 1e-12


def test_the_interval_is_that_of_the_normal_limit() -> None:
    values = rng(1).normal(0.3, 0.1, 400)
    found = resample(weighted_mean(values), 400, 20_000, rng()).estimate
    half = 1.96 * values.std() / math.sqrt(400)
    assert found.high - found.value == pytest.approx(half, rel=0.05)
    assert found.value - found.low == pytest.approx(half, rel=0.05)


def test_the_interval_of_two_scores_is_exact() -> None:
    """Two images are generated again as (2, 0), (1, 1), (0, 2): the ends are the scores."""
    found = resample(weighted_mean([0.0, 1.0]), 2, 1000, rng()).estimate
    assert found == Estimate(0.5, 0.0, 1.0)


def test_independent_parts_narrow_the_interval_of_their_mean() -> None:
    values = rng(1).normal(0, 1, 200)
    generator = rng()
    parts = [resample(weighted_mean(values), 200, 4000, generator) for _ in range(4)]
    whole, single = mean_of(parts).estimate, parts[0].estimate
    assert whole.value == pytest.approx(single.value)
    assert whole.high - whole.low == pytest.approx((single.high - single.low) / 2, rel=0.1)


def test_the_cosine_of_the_average_is_that_of_the_weighted_sum() -> None:
    unit = np.eye(2)
    statistic = cosine_of_average(unit, [1.0, 0.0])
    assert statistic(np.array([[0.5, 0.5], [1.0, 0.0]])) == pytest.approx([math.sqrt(0.5), 1.0])


def test_the_same_seed_gives_the_same_interval() -> None:
    values = rng(1).normal(size=9)
    one, two, other = (
        resample(weighted_mean(values), 9, 50, rng(seed)).estimate for seed in (3, 3, 4)
    )
    assert one == two != other
    assert one.value == other.value


def test_centring_takes_the_shift_of_repeats_away() -> None:
    """Of images at right angles the average of fewer scores less: every resample is too low."""
    unit, text = np.eye(8), np.full(8, 8**-0.5)
    found = resample(cosine_of_average(unit, text), 8, 500, rng())
    assert found.estimate.high < found.estimate.value == pytest.approx(1)
    centred = found.centred()
    assert centred.values[0] == found.values[0]
    assert centred.values[1:].mean() == pytest.approx(1)
    width = found.estimate.high - found.estimate.low
    assert centred.estimate.high - centred.estimate.low == pytest.approx(width)


@pytest.mark.parametrize(("count", "resamples"), [(0, 5), (5, 0)])
def test_nothing_to_resample_is_an_error(count: int, resamples: int) -> None:
    with pytest.raises(ValueError, match="at least 1"):
        resample(weighted_mean([0.0]), count, resamples, rng())


def test_an_estimate_cuts_both_tails_alike() -> None:
    found = Resampled(np.concatenate([[7.0], np.arange(1001)])).estimate
    assert found == Estimate(7.0, 25.0, 975.0)
