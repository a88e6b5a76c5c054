"""Intervals by resampling: how much a score varies over other images of the same kind.

Percentile bootstrap (Efron 1979): n images are resampled from the n there are, with replacement,
and the score is computed again, many times. The interval holds the middle 95% of the values. A
score is written as a function of the images' weights, so that the score itself (equal weights)
and its resampled values (how often each image was chosen) come from one formula.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ldm.util import at_least

FloatArray = npt.NDArray[np.float64]
# weights [r, n], each row summing to 1 -> values [r]
Statistic = Callable[[FloatArray], FloatArray]
LEVEL = 95.0


@dataclass(frozen=True)
class Estimate:
    """A score and its 95% interval.

    Attributes:
        value: of the images as they are.
        low, high: the interval's ends. For a single image they are equal and say nothing.
    """

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Resampled:
    """A score's values [1 + resamples]: of the images as they are, and of resampled images."""

    values: FloatArray

    @property
    def estimate(self) -> Estimate:
        """The score with its interval."""
        tail = (100 - LEVEL) / 2
        low, high = np.percentile(self.values[1:], (tail, 100 - tail))
        return Estimate(float(self.values[0]), float(low), float(high))

    def centred(self) -> Resampled:
        """Shift the resampled values so that their mean is the score.

        For scores that grow with the number of different images. Of n resampled images, about a
        third are repeats, so the resampled values lie too low as a whole.
        """
        score, resampled = self.values[:1], self.values[1:]
        return Resampled(np.concatenate([score, resampled + (score - resampled.mean())]))


def resample(
    statistic: Statistic, count: int, resamples: int, rng: np.random.Generator
) -> Resampled:
    """Compute a score on `count` images and on `resamples` resamples of them, at least 1 each."""
    at_least(1, count=count, resamples=resamples)
    uniform = np.full(count, 1 / count)
    counts = rng.multinomial(count, uniform, size=resamples) / count
    return Resampled(statistic(np.concatenate([uniform[None], counts])))


def mean_of(parts: Sequence[Resampled]) -> Resampled:
    """Average scores whose images were resampled independently, as those of several prompts.

    The set of scores stays the same: prompts are chosen, not sampled from a population of prompts.
    """
    return Resampled(np.stack([part.values for part in parts]).mean(0))


def weighted_mean(values: npt.ArrayLike) -> Statistic:
    """Return the mean of values [n] as a function of weights; exact where all are equal."""
    array = np.asarray(values, np.float64)
    return lambda weights: array[0] + weights @ (array - array[0])


def cosine_of_average(unit: npt.ArrayLike, text: npt.ArrayLike) -> Statistic:
    """Return the cosine of a unit vector [d] with the average of unit vectors [n, d]."""
    rows, direction = np.asarray(unit, np.float64), np.asarray(text, np.float64)

    def statistic(weights: FloatArray) -> FloatArray:
        average = weights @ rows
        cosines: FloatArray = average @ direction / np.linalg.norm(average, axis=-1)
        return cosines

    return statistic


def mean_over(
    values: Sequence[float], concepts: Sequence[str], resamples: int = 1000, seed: int = 0
) -> Estimate:
    """Return the mean over concepts of the mean over each one's seeds, with its 95% interval.

    `concepts` holds the concept of each value.
    """
    weights = resampled_weights(concepts, resamples, np.random.default_rng(seed))
    return Resampled(weighted_mean(values)(weights)).estimate


def resampled_weights(
    concepts: Sequence[str], resamples: int, rng: np.random.Generator
) -> FloatArray:
    """Return words' weights in a two-stage bootstrap: [1 + resamples, words], rows summing to 1.

    Concepts are resampled with replacement, then the seeds of each chosen concept. Words of one
    concept resemble each other, so they are not independent. Row 0 is the words as they are.
    """
    names = list(dict.fromkeys(concepts))
    members = [[i for i, name in enumerate(concepts) if name == own] for own in names]
    counts = rng.multinomial(len(names), np.full(len(names), 1 / len(names)), size=resamples)
    weights = np.zeros((1 + resamples, len(concepts)))
    for k, own in enumerate(members):
        share = 1 / (len(names) * len(own))
        weights[0, own] = share
        seeds = rng.multinomial(counts[:, k] * len(own), np.full(len(own), 1 / len(own)))
        weights[1:, own] = seeds * share
    return weights
