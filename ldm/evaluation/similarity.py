"""The paper's two scores: similarity of images to the training set, and to their prompt.

Gal et al. (arXiv 2208.01618) §5: cosines between CLIP embeddings. The feature extractor is
injected: the paper's CLIP, or the CLIP that comes with a small model.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from ldm.words.placeholders import replace


class ImageExtractor(Protocol):
    """An object that embeds images, such as DINO."""

    def image_features(self, images: Sequence[Image.Image]) -> Tensor:
        """Embed images of any size: [len(images), d]; any length of vector."""
        ...


class FeatureExtractor(ImageExtractor, Protocol):
    """An object that embeds images and texts into one space, such as CLIP."""

    def text_features(self, texts: Sequence[str]) -> Tensor:
        """Embed texts: [len(texts), d]; any length of vector."""
        ...


def _unit(features: Tensor, name: str) -> Tensor:
    if features.ndim != 2 or not len(features):
        raise ValueError(f"{name} must be features [n, d] with n >= 1, got {list(features.shape)}")
    return F.normalize(features.float(), dim=-1)


def pairwise_similarity(generated: Tensor, training: Tensor) -> float:
    """Return the mean cosine over all pairs of rows of two sets of features [n, d], [m, d]."""
    return float((_unit(generated, "generated") @ _unit(training, "training").T).mean())


def own_similarity(features: Tensor) -> float:
    """Return the mean cosine between different rows of one set of features [n, d], n >= 2.

    For training images this is the score that a perfect word could reach.
    """
    n = len(features)
    if n < 2:
        raise ValueError(f"features must hold at least two images, got {n}")
    unit = _unit(features, "features")
    cosines = unit @ unit.T
    return float((cosines.sum() - cosines.trace()) / (n * (n - 1)))


def prompt_similarity(images: Tensor, prompt: Tensor) -> tuple[float, float]:
    """Compare features of images [n, d] with those of their prompt [d] or [1, d], in [-1, 1].

    Returns:
        The mean over the images of the cosine with the prompt: what the authors' code computes, and
        the score meant where only one is given. Then the cosine of the prompt with the images'
        average embedding: what the paper says. The average's own length is lost, so this is never
        smaller in absolute value.
    """
    unit = _unit(images, "pictures")
    text = _unit(prompt.reshape(1, -1), "prompt")[0]
    average = F.normalize(unit.mean(0), dim=-1)
    return float((unit @ text).mean()), float(average @ text)


def without_placeholders(prompt: str, placeholders: Sequence[str]) -> str:
    """Take the placeholders out: "A photo of * on the moon" -> "A photo of on the moon"."""
    for placeholder in placeholders:
        prompt = replace(prompt, placeholder, "")
    return " ".join(prompt.split())
