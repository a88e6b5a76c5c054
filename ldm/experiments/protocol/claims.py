"""The paper's claims about its variants (Gal et al., section 5), compared with a table's cells.

A claim consists of one or more differences of means. Each has an expected sign. A difference is
that of two cells of the same concept and seed. Its 95% interval resamples the concepts, and the
seeds within each concept. A claim holds if the whole interval has the expected sign. It does not
hold if the whole interval has the other sign. It is open if the interval contains zero. "About
equal" holds if the whole interval is within `TOLERANCE`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import astuple, dataclass
from typing import TYPE_CHECKING, Any

from ldm.evaluation.bootstrap import Estimate, mean_over
from ldm.experiments import tables

if TYPE_CHECKING:
    from ldm.experiments.protocol.folder import Finished

TRAINING = "training images"  # similarity of a concept's training images to each other
HIGHER, LOWER, ABOUT = "higher", "lower", "about equal"
# A difference of cosines. In Fig. 10a, values that the paper calls about equal differ by less: .788
# and .782 in claim 1; several vectors and one vector by at most .014.
TOLERANCE = 0.02
HOLDS, FAILS, OPEN = "holds", "does not hold", "open"


@dataclass(frozen=True)
class Expected:
    """One difference of a claim.

    Attributes:
        claim: the number of the claim, or "beyond" for one that is not the paper's.
        text: the claim as a sentence.
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
    """A difference in a table: its mean with the interval, and the number of pairs of cells."""

    expected: Expected
    difference: Estimate
    cells: int

    @property
    def verdict(self) -> str:
        """What the table shows: `HOLDS`, `FAILS` or `OPEN`."""
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
        """Return the finding as a line of claims.csv, whose columns are `COLUMNS`."""
        return (*astuple(self.expected), *astuple(self.difference), self.cells, self.verdict)


COLUMNS = (
    *("claim", "text", "variant", "against", "score", "expected"),
    *("difference", "low", "high", "pairs", "verdict"),
)


def _both(
    claim: str, text: str, variant: str, against: str, image: str, words: str
) -> tuple[Expected, ...]:
    """Expect the sign `image` of image similarity, and `words` of both scores of editability."""
    return (
        Expected(claim, text, variant, against, "image", image),
        Expected(claim, text, variant, against, "text", words),
        Expected(claim, text, variant, against, "edit_accuracy", words),
    )


_RECONSTRUCTION = "our images are as near the training images as these are to each other"
_SEVERAL = "one vector is easier to edit than several, at about the same image similarity"
_RATE = "a higher learning rate raises image similarity and lowers editability"
_CAPTIONS = "human captions have lower scores than a word"
_REGULARIZED = "regularization raises editability and lowers image similarity"
_DIRECTIONAL = "a directional word has higher scores than the paper's 5000 steps"
_FAST = "a word of the variant fast has higher scores than the paper's 5000 steps"
_SAME = "the variant's word has the same scores as that of the paper's settings"
_HALF = "frozen networks in bfloat16 give a word with the same scores as in float32"
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
    *_both("5", _REGULARIZED, "regularized", "ours", LOWER, HIGHER),
    *_both("beyond", _DIRECTIONAL, "directional", "ours_5000", HIGHER, HIGHER),
    *_both("beyond", _FAST, "fast", "ours_5000", HIGHER, HIGHER),
    *_both("beyond", _SAME, "fast", "ours", ABOUT, ABOUT),
    *_both("beyond", _SAME, "directional", "ours", ABOUT, ABOUT),
    *_both("beyond", _HALF, "bf16", "ours", ABOUT, ABOUT),
)


def find(found: Sequence[Finished], resamples: int = 1000) -> list[Finding]:
    """Return a finding for each expected difference that finished cells of a table have."""
    cells = {(item.cell.variant, item.unit): item for item in found}
    findings = []
    for expected in EXPECTED:
        pairs = _pairs(expected, cells)
        if pairs:
            concepts, differences = zip(*pairs, strict=True)
            difference = mean_over(differences, concepts, resamples)
            findings.append(Finding(expected, difference, len(pairs)))
    return findings


def _pairs(
    expected: Expected, cells: Mapping[tuple[str, tuple[str, int]], Finished]
) -> list[tuple[str, float]]:
    """Return (concept, difference) for each concept and seed that both variants have."""
    pairs, score = [], expected.score
    for (variant, unit), item in cells.items():
        other, value = cells.get((expected.against, unit)), None
        if expected.against == TRAINING:
            value = item.scores["training"]
        elif other and other.has(score):
            value = other.value(score)
        if variant == expected.variant and value is not None and item.has(score):
            pairs.append((item.cell.concept, item.value(score) - value))
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
