"""What the demo measures: a learned word drawn in a few prompts, scored beside what bounds it.

Below it stands the vocabulary's own word that it began from; above it, the training images.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from PIL import Image

from ldm.evaluation.similarity import (
    FeatureExtractor,
    own_similarity,
    pairwise_similarity,
    prompt_similarity,
    without_placeholders,
)
from ldm.inference import Sampling, generate, load_words
from ldm.util import UserError
from ldm.words.manager import EmbeddingManager

# What is asked of a word: (kind, prompt). {word} is the learned word, {second} a shipped one.
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
class Drawing:
    """A prompt, its images and their scores (cosines of the judge's embeddings)."""

    kind: str
    prompt: str
    pictures: Sequence[Image.Image]
    image_similarity: float
    text_similarity: float
    text_similarity_of_average: float


@dataclass(frozen=True)
class Painter:
    """A model and how it draws: every prompt from the same noises, so that only the text differs.

    Attributes:
        model: a `LatentDiffusion`.
        samples: images a prompt.
        steps, scale, seed: as `ldm.sampling.Sampling` has them.
    """

    model: Any
    samples: int = 8
    steps: int = 50
    scale: float = 5.0
    seed: int = 42

    def draw(
        self, prompt: str, words: Mapping[Path, Mapping[str, str]] | None = None, samples: int = 0
    ) -> list[Image.Image]:
        """Draw one prompt with the words of some files and no others.

        Args:
            prompt: the text.
            words: embedding file → its placeholders' new names.
            samples: images, or 0 for the painter's own number.
        """
        encoder = self.model.cond_stage_model
        self.model.embedding_manager = EmbeddingManager(encoder, placeholder_strings=[])
        for path, rename in (words or {}).items():
            load_words(self.model, path, rename=dict(rename) or None)
        count = samples or self.samples
        drawn = generate(
            self.model,
            [prompt],
            Sampling(steps=self.steps, scale=self.scale, seed=self.seed, batch_size=min(count, 32)),
            samples_per_prompt=count,
        )
        return [picture.image for picture in drawn]


class Scores:
    """Scores against one set of training images and by one judge.

    Args:
        judge: embeds images and texts.
        training: the training images, at least two.
        placeholders: the words that the judge does not know.
    """

    def __init__(
        self,
        judge: FeatureExtractor,
        training: Sequence[Image.Image],
        placeholders: Sequence[str],
    ) -> None:
        self.judge, self.placeholders = judge, placeholders
        self.training = judge.image_features(training)

    def drawing(
        self, kind: str, prompt: str, pictures: Sequence[Image.Image], asked: str = ""
    ) -> Drawing:
        """Score images against the training images and against a prompt less its placeholders.

        Args:
            kind: what the prompt tries.
            prompt: what the images were drawn from.
            pictures: the images.
            asked: the prompt to compare with, where it is not the one drawn from.
        """
        features = self.judge.image_features(pictures)
        text = without_placeholders(asked or prompt, self.placeholders)
        similarity = prompt_similarity(features, self.judge.text_features([text]))
        return Drawing(
            kind=kind,
            prompt=prompt,
            pictures=pictures,
            image_similarity=pairwise_similarity(features, self.training),
            text_similarity=similarity.mean,
            text_similarity_of_average=similarity.of_average,
        )

    def training_own(self) -> float:
        """Return the mean similarity between different training images."""
        return own_similarity(self.training)

    def training_text(self, prompts: Sequence[str]) -> float:
        """Score the training images as if they had been drawn from the prompts."""
        texts = [without_placeholders(prompt, self.placeholders) for prompt in prompts]
        features = self.judge.text_features(texts)
        return fmean(prompt_similarity(self.training, text).mean for text in features)


def saved_words(checkpoints: Path) -> dict[int, Path]:
    """Find the word as it was at each save: optimiser step → file, in order.

    Raises:
        UserError: there is none.
    """
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
