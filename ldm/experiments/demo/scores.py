"""What the demo measures: the images of a learned word in a few prompts, and their bounds.

The initializer word is the lower bound, the training images are the upper bound.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

from PIL import Image

from ldm.evaluation.similarity import (
    FeatureExtractor,
    own_similarity,
    pairwise_similarity,
    prompt_similarity,
    without_placeholders,
)
from ldm.util import UserError

# The prompts that test a word: (kind, prompt). {word} is the learned word, {second} a shipped one.
PROMPTS = {
    "object": (
        ("scene", "a photo of a {word} on the beach"),
        ("scene", "a photo of a {word} on the moon"),
        ("medium", "a painting of a {word} in the forest"),
        ("medium", "pixel art of a {word} at sunset"),
        ("composition", "a photo of a {word} on the beach in the style of {second}"),
    ),
    "style": (
        ("scene", "a red heart on the beach in the style of {word}"),
        ("scene", "a yellow fish in the sea in the style of {word}"),
        ("scene", "a green mug in the forest in the style of {word}"),
        ("scene", "a white star on the moon in the style of {word}"),
        ("composition", "a {second} on the beach in the style of {word}"),
    ),
}


@dataclass(frozen=True)
class ScoredPrompt:
    """A prompt, its images and their scores (cosines of the miniature's CLIP)."""

    kind: str
    prompt: str
    images: Sequence[Image.Image]
    image_similarity: float
    text_similarity: float
    text_similarity_of_average: float


class Scores:
    """Scores images against a set of at least two training images, by one CLIP.

    `placeholders` are the words that the scorer does not know.
    """

    def __init__(
        self,
        scorer: FeatureExtractor,
        training: Sequence[Image.Image],
        placeholders: Sequence[str],
    ) -> None:
        self.scorer, self.placeholders = scorer, placeholders
        self.training = scorer.image_features(training)

    def score(
        self, kind: str, prompt: str, images: Sequence[Image.Image], asked: str = ""
    ) -> ScoredPrompt:
        """Score images against the training images and against a prompt without its placeholders.

        That is the images' own prompt, or else the one `asked`; `kind` is what the prompt tests.
        """
        features = self.scorer.image_features(images)
        text = without_placeholders(asked or prompt, self.placeholders)
        mean, of_average = prompt_similarity(features, self.scorer.text_features([text]))
        return ScoredPrompt(
            kind=kind,
            prompt=prompt,
            images=images,
            image_similarity=pairwise_similarity(features, self.training),
            text_similarity=mean,
            text_similarity_of_average=of_average,
        )

    def training_own(self) -> float:
        """Return the mean similarity between different training images."""
        return own_similarity(self.training)

    def training_text(self, prompts: Sequence[str]) -> float:
        """Score the training images as if they were the images of the prompts."""
        texts = [without_placeholders(prompt, self.placeholders) for prompt in prompts]
        features = self.scorer.text_features(texts)
        return fmean(prompt_similarity(self.training, text)[0] for text in features)


def saved_words(checkpoints: Path) -> dict[int, Path]:
    """Find the word of each checkpoint: optimizer step → file, in order; UserError without any."""
    found = {
        int(match[1]): path
        for path in checkpoints.glob("embeddings_gs-*.safetensors")
        if (match := re.fullmatch(r"embeddings_gs-(\d+)", path.stem))
    }
    if not found:
        raise UserError(f"no embeddings_gs-<step>.safetensors in {checkpoints}")
    return dict(sorted(found.items()))


def read_curves(path: Path) -> dict[str, tuple[list[float], list[float]]]:
    """Read a run's `metrics.csv`: column → (steps, values), empty cells left out."""
    curves: dict[str, tuple[list[float], list[float]]] = {}
    with path.open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            for name, value in row.items():
                if value and name != "step":
                    steps, values = curves.setdefault(name, ([], []))
                    steps.append(float(row["step"]))
                    values.append(float(value))
    return curves
