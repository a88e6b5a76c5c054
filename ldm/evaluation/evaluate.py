"""A word's scores by the paper's protocol, with intervals: what scripts/evaluate_model.py reports.

Gal et al. (arXiv 2208.01618) §5: image similarity is the mean cosine over all pairs of an image of
"A photo of *" and a training image; text similarity compares each prompt's images with the
prompt less its placeholder, by the two definitions of `ldm.evaluation.similarity`. How images are
generated and what embeds them are injected.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from ldm.evaluation.bootstrap import (
    Estimate,
    Resampled,
    cosine_of_average,
    mean_of,
    resample,
    weighted_mean,
)
from ldm.evaluation.prompts import check_prompts
from ldm.evaluation.similarity import (
    FeatureExtractor,
    ImageExtractor,
    own_similarity,
    without_placeholders,
)
from ldm.evaluation.sources import ImageSource
from ldm.util import at_least, write_table
from ldm.words.placeholders import DEFAULT_PLACEHOLDER

IMAGE_PROMPT = "A photo of *"
# (prompt → unit features [n, d] of its images, float64) → further scores by name
Extra = Callable[[Mapping[str, Tensor]], Mapping[str, Estimate]]
CSV_COLUMNS = ("name", "score", "prompt", "value", "low", "high", "pictures")


@dataclass(frozen=True)
class PromptScore:
    """How well a prompt's images show what it asks for.

    Attributes:
        prompt: with its placeholder.
        text: what the images are compared with: the prompt less its placeholder.
        mean: mean over the images of the cosine with the text (the authors' code, the default).
        of_average: cosine of the text with the images' average embedding (the paper's words).
        images: number of images.
    """

    prompt: str
    text: str
    mean: Estimate
    of_average: Estimate
    images: int


@dataclass(frozen=True)
class Evaluation:
    """A word's scores, cosines in [-1, 1].

    The intervals resample the generated images; the training images and the prompts are given.
    Those over several prompts resample the images within each prompt.

    Attributes:
        image: mean over all pairs of an image of the image prompt and a training image.
        text: mean over the prompts of `PromptScore.mean`.
        text_of_average: mean over the prompts of `PromptScore.of_average`.
        training: mean over the pairs of different training images; None of a single one.
        prompts: each prompt's own scores, in the order given.
        dino: as `image`, by the second extractor; None where there was none.
        extra: further scores by name.
        settings: settings that decide the scores, as plain values.
    """

    image: Estimate
    text: Estimate
    text_of_average: Estimate
    training: float | None
    prompts: tuple[PromptScore, ...]
    dino: Estimate | None = None
    extra: dict[str, Estimate] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)

    @property
    def scores(self) -> dict[str, Estimate]:
        """The scores by name, those of the image prompt first."""
        dino = {} if self.dino is None else {"dino": self.dino}
        text = {"text": self.text, "text_of_average": self.text_of_average}
        return {"image": self.image, **dino, **text, **self.extra}

    def with_settings(self, **more: Any) -> Evaluation:
        """Return a copy with more settings: files' hashes, the sampler's steps and so on."""
        return dataclasses.replace(self, settings={**self.settings, **more})

    def to_json(self) -> dict[str, Any]:
        """Return everything as plain values."""
        plain = dataclasses.asdict(self)
        return {**plain, "prompts": list(plain["prompts"])}


@torch.no_grad()
def evaluate(
    source: ImageSource,
    extractor: FeatureExtractor,
    training: Sequence[Image.Image],
    prompts: Sequence[str],
    *,
    image_prompt: str = IMAGE_PROMPT,
    placeholders: Sequence[str] = (DEFAULT_PLACEHOLDER,),
    images: int = 64,
    second: ImageExtractor | None = None,
    extra: Extra | None = None,
    resamples: int = 1000,
    seed: int = 0,
) -> Evaluation:
    """Generate images and score them.

    The source is called once, with every prompt. Its images should differ in their noise between
    prompts too: the intervals take them as independent. The prompts are for the text similarity,
    the image prompt for the image similarity; each names one of the placeholders, which the
    extractor does not know. `images` counts those of each prompt. `second` embeds images for
    another image similarity; `extra` computes further scores from the features of the images.

    Raises:
        UserError: no prompts, or one without a placeholder.
        ValueError: no training images, a number below 1, or `source` gave another number.
    """
    check_prompts([image_prompt, *prompts] if prompts else [], placeholders)
    if not training:
        raise ValueError("training must hold at least one image, got none")
    at_least(1, images=images, resamples=resamples)
    texts = list(dict.fromkeys([image_prompt, *prompts]))
    generated = source(texts, images)
    if len(generated) != len(texts) * images:
        raise ValueError(
            f"source gave {len(generated)} images for {len(texts)} prompts of {images} each"
        )
    parts = torch.split(_unit(extractor.image_features(generated)), images)
    features = dict(zip(texts, parts, strict=True))
    given = _unit(extractor.image_features(training))
    rng = np.random.default_rng(seed)
    image = _image_similarity(features[image_prompt], given, resamples, rng)
    asked = [without_placeholders(prompt, placeholders) for prompt in prompts]
    directions = _unit(extractor.text_features(asked))
    scores = [
        _text_similarity(features[prompt], direction, resamples, rng)
        for prompt, direction in zip(prompts, directions, strict=True)
    ]
    dino = None
    if second is not None:
        # The image prompt stands first.
        own, theirs = second.image_features(generated[:images]), second.image_features(training)
        dino = _image_similarity(_unit(own), _unit(theirs), resamples, rng).estimate
    return Evaluation(
        image=image.estimate,
        text=mean_of([mean for mean, _ in scores]).estimate,
        text_of_average=mean_of([average for _, average in scores]).estimate,
        training=own_similarity(given) if len(given) > 1 else None,
        prompts=tuple(
            PromptScore(prompt, text, mean.estimate, average.estimate, images)
            for prompt, text, (mean, average) in zip(prompts, asked, scores, strict=True)
        ),
        dino=dino,
        extra=dict(extra({prompt: features[prompt] for prompt in prompts})) if extra else {},
        settings={
            "image_prompt": image_prompt,
            "placeholders": list(placeholders),
            "pictures": images,
            "training_pictures": len(training),
            "resamples": resamples,
            "resampling_seed": seed,
        },
    )


def _unit(features: Tensor) -> Tensor:
    """Return rows of length 1, [n, d], in double precision on the CPU."""
    return F.normalize(features.detach().to("cpu", torch.float64), dim=-1)


def _image_similarity(
    unit: Tensor, training: Tensor, resamples: int, rng: np.random.Generator
) -> Resampled:
    """Mean cosine over all pairs of unit [n, d] with training [m, d]; the n are resampled."""
    own = (unit @ training.T).mean(-1)
    return resample(weighted_mean(own), len(unit), resamples, rng)


def _text_similarity(
    unit: Tensor, text: Tensor, resamples: int, rng: np.random.Generator
) -> tuple[Resampled, Resampled]:
    """Compare unit [n, d] with a text [d] by both definitions; the n are resampled."""
    mean = resample(weighted_mean(unit @ text), len(unit), resamples, rng)
    average = resample(cosine_of_average(unit, text), len(unit), resamples, rng)
    # Differences between images cancel in their average; with more images they cancel more.
    return mean, average.centred()


def write_csv(path: str | Path, evaluations: Mapping[str, Evaluation]) -> None:
    """Write one line for each score of named evaluations: name, score, prompt, value and so on.

    A score over several prompts has an empty prompt.
    """
    rows: list[Sequence[object]] = [CSV_COLUMNS]

    def add(name: str, score: str, prompt: str, found: Estimate, images: int) -> None:
        values = (f"{v:.6f}" for v in (found.value, found.low, found.high))
        rows.append((name, score, prompt, *values, images))

    for name, evaluation in evaluations.items():
        prompt, count = evaluation.settings["image_prompt"], evaluation.settings["pictures"]
        total = sum(score.images for score in evaluation.prompts)
        for score, found in evaluation.scores.items():
            of_image = score in ("image", "dino")
            add(name, score, prompt if of_image else "", found, count if of_image else total)
        for one in evaluation.prompts:
            add(name, "text", one.prompt, one.mean, one.images)
            add(name, "text_of_average", one.prompt, one.of_average, one.images)
    write_table(path, rows)
