"""The paper's values, read off its figures, to compare with ours.

Measured from Figures 10a and 12 of Gal et al. (arXiv 2208.01618), cosines of CLIP ViT-B/32, about
±0.001; ranks from Figure 10b, about ±0.02.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Published:
    """A point of the paper: mean cosines, or mean ranks with 5 the best."""

    text: float
    image: float


# Figure 10a, by the names of `configs/variants` and of the protocol.
TRADE_OFF: Mapping[str, Published] = {
    "ours": Published(0.268, 0.788),
    "high_lr": Published(0.257, 0.798),
    "low_lr": Published(0.275, 0.769),
    "two_words": Published(0.244, 0.798),
    "three_words": Published(0.239, 0.802),
    "progressive": Published(0.249, 0.802),
    "per_image_tokens": Published(0.265, 0.776),
    "regularized": Published(0.284, 0.724),
    "captions_short": Published(0.236, 0.604),
    "captions_long": Published(0.230, 0.624),
    "image_only": Published(0.184, 0.782),
    "prompt_only": Published(0.289, 0.453),
}
# Figure 12: by the number of training images, and its references.
SET_SIZE: Mapping[int, Published] = {
    1: Published(0.278, 0.787),
    5: Published(0.285, 0.785),
    10: Published(0.278, 0.792),
    15: Published(0.263, 0.795),
    20: Published(0.260, 0.783),
    25: Published(0.258, 0.807),
}
SET_SIZE_REFERENCES: dict[str, Published] = {
    "image_only": Published(0.210, 0.869),
    "prompt_only": Published(0.289, 0.488),
    "captions_long": Published(0.264, 0.661),
    "captions_short": Published(0.278, 0.640),
}
# Figure 10b: mean ranks of five, 5 the best.
RANKS: Mapping[str, Published] = {
    "ours": Published(3.18, 4.24),
    "three_words": Published(2.48, 4.47),
    "regularized": Published(3.68, 2.33),
    "captions_short": Published(2.90, 2.04),
    "captions_long": Published(2.77, 1.95),
}
# Names of the variants in the figures.
LABELS: Mapping[str, str] = {
    "ours": "ours",
    "high_lr": "high rate",
    "low_lr": "low rate",
    "two_words": "2 words",
    "three_words": "3 words",
    "progressive": "3 words, progressive",
    "per_image_tokens": "per-image tokens",
    "regularized": "regularised",
    "captions_short": "short captions",
    "captions_long": "long captions",
    "image_only": "image only",
    "prompt_only": "prompt only",
    "ours_5000": "ours, 5000 steps",
    "directional": "directional",
    "directional_1": "directional, 1 vector",
    "directional_3": "directional, 3 vectors",
}


def label(name: str) -> str:
    """Return the name of a variant in the figures."""
    return LABELS.get(name, name.replace("_", " "))
