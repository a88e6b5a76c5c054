"""The paper's claims about its variants (Gal et al., section 5), checked with a table's cells.

Each claim is one or more differences of means with an expected sign. A difference is taken within
concept and seed, and its 95% interval resamples concepts and the seeds in each. A claim holds if
the whole interval has the expected sign, fails if the whole interval has the other sign, and is
open if the interval contains zero. "About equal" holds within TOLERANCE.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import astuple, dataclass
from typing import TYPE_CHECKING, Any

from ldm.evaluation.bootstrap import Estimate, mean_over
from ldm.experiments import tables

if TYPE_CHECKING:
    from ldm.experiments.protocol.folder import Finished

TRAINING = "training images"  # of a concept, compared with each other
HIGHER, LOWER, ABOUT = "higher", "lower", "about equal"
# Cosines. What the paper calls about equal differs by less in Fig. 10a: .788 from .782 in claim 1,
# several vectors from one by at most .014.
TOLERANCE = 0.02
HOLDS, FAILS, OPEN = "holds", "does not hold", "open"


@dataclass(frozen=True)
class Expected:
    """One difference that a claim, of a number and a text, speaks of.

    Attributes:
        variant, against: the mean of `variant` minus that of `against`, which may be `TRAINING`.
        score: "image", "text" or "edit_accuracy".
        sign: `HIGHER`, `LOWER` or `ABOUT`.
    """

    claim: str
    text: str
    variant: str
    against: str
    score: str
    sign: str


@dataclass(frozen=True)
class Finding:
    """What a table says of a difference: its mean with the interval, over pairs of cells."""

    expected: Expected
    difference: Estimate
    cells: int

    @property
    def verdict(self) -> str:
        """The verdict of the table: `HOLDS`, `FAILS` or `OPEN`."""
        low, high = self.difference.low, self.difference.high
        if self.expected.sign == LOWER:
            low, high = -high, -low
        if self.expected.sign == ABOUT:
            inside = low >= -TOLERANCE and high <= TOLERANCE
            outside = low > TOLERANCE or high < -TOLERANCE
        else:
            inside, outside = low > 0, high < 0
        return HOLDS if inside else FAILS if outside else OPEN

    def row(self) -> tuple[Any, ...]:
        """Return it as a line of claims.csv, whose columns are `COLUMNS`."""
        return (*astuple(self.expected), *astuple(self.difference), self.cells, self.verdict)


COLUMNS = (
    *("claim", "text", "variant", "against", "score", "expected"),
    *("difference", "low", "high", "pairs", "verdict"),
)


def _both(
    claim: str, text: str, variant: str, against: str, image: str, words: str
) -> tuple[Expected, ...]:
    """Expect signs of the image similarity and of editability, by either of its scores."""
    return (
        Expected(claim, text, variant, against, "image", image),
        Expected(claim, text, variant, against, "text", words),
        Expected(claim, text, variant, against, "edit_accuracy", words),
    )


_RECONSTRUCTION = "our images are as near the training images as these are to each other"
_SEVERAL = "one vector is easier to edit than several at a similar likeness"
_RATE = "the learning rate moves a word along the curve"
_CAPTIONS = "human captions lose on both scores"
_REGULARISED = "regularisation buys editability for likeness"
_DIRECTIONAL = "a directional word reaches the paper's 5000 steps on both scores"
_FAST = "the fast preset reaches the paper's 5000 steps on both scores"
_HALF = "frozen networks in bfloat16 teach as good a word as in float32"
EXPECTED: tuple[Expected, ...] = (
    Expected("1", _RECONSTRUCTION, "ours", TRAINING, "image", ABOUT),
    Expected("1", _RECONSTRUCTION, "ours_5000", TRAINING, "image", ABOUT),
    *_both("2", _SEVERAL, "two_words", "ours", ABOUT, LOWER),
    *_both("2", _SEVERAL, "three_words", "ours", ABOUT, LOWER),
    *_both("2", _SEVERAL, "progressive", "ours", ABOUT, LOWER),
    *_both("3", _RATE, "high_lr", "ours", HIGHER, LOWER),
    *_both("3", _RATE, "low_lr", "ours", LOWER, HIGHER),
    *_both("4", _CAPTIONS, "captions_short", "ours", LOWER, LOWER),
    *_both("4", _CAPTIONS, "captions_long", "ours", LOWER, LOWER),
    *_both("5", _REGULARISED, "regularized", "ours", LOWER, HIGHER),
    *_both("beyond", _DIRECTIONAL, "directional", "ours_5000", HIGHER, HIGHER),
    *_both("beyond", _FAST, "fast", "ours_5000", HIGHER, HIGHER),
    *_both("beyond", _HALF, "bf16", "ours", ABOUT, ABOUT),
)


def find(found: Sequence[Finished], resamples: int = 1000) -> list[Finding]:
    """Return what a table's finished cells say of each claim that they speak of."""
    by_variant: dict[str, dict[tuple[str, int], Finished]] = {}
    for item in found:
        by_variant.setdefault(item.cell.variant, {})[item.unit] = item
    findings = []
    for expected in EXPECTED:
        pairs = _pairs(expected, by_variant)
        if pairs:
            concepts, differences = zip(*pairs, strict=True)
            difference = mean_over(differences, concepts, resamples)
            findings.append(Finding(expected, difference, len(pairs)))
    return findings


def _pairs(
    expected: Expected, by_variant: Mapping[str, Mapping[tuple[str, int], Finished]]
) -> list[tuple[str, float]]:
    """Return (concept, difference) of every concept and seed that both sides have."""
    pairs = []
    against = by_variant.get(expected.against, {})
    for unit, item in by_variant.get(expected.variant, {}).items():
        score, other = expected.score, None
        if expected.against == TRAINING:
            other = item.scores["training"]
        elif unit in against and against[unit].has(score):
            other = against[unit].value(score)
        if other is not None and item.has(score):
            pairs.append((item.cell.concept, item.value(score) - other))
    return pairs


def markdown(findings: Sequence[Finding]) -> str:
    """Return the findings as a Markdown table."""
    head = ("claim", "what", "score", "expected", "difference, 95% interval", "pairs", "verdict")
    rows = []
    for finding in findings:
        asked, found = finding.expected, finding.difference
        what = (asked.claim, f"{asked.variant} − {asked.against}", asked.score, asked.sign)
        size = f"{found.value:+.3f} [{found.low:+.3f}, {found.high:+.3f}]"
        rows.append((*what, size, str(finding.cells), finding.verdict))
    return tables.markdown(head, rows)
