"""Generate and score a figure's images: one model, its words in turn, one scorer."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from ldm.checkpoint.loading import checkpoint_hash
from ldm.evaluation.extractors import default_extractor, extractor_facts, find_extractor
from ldm.evaluation.similarity import FeatureExtractor, without_placeholders
from ldm.experiments.figures.record import Figure, Line
from ldm.experiments.figures.request import Request
from ldm.experiments.figures.subjects import Subject, read_subject
from ldm.inference import GeneratedImage, Sampling, generate, load_model, load_words
from ldm.models.diffusion.ddpm import LatentDiffusion
from ldm.util import UserError
from ldm.words.placeholders import occurrences

log = logging.getLogger(__name__)

PLACEHOLDERS = ("*", "@")  # a line's first and second concept
ON_CPU = 16  # images at a time: more are no faster on one core


@dataclass(frozen=True)
class Scored:
    """An image and its cosines, in [-1, 1].

    Attributes:
        generated: the image with its prompt and seed.
        image_similarity: mean cosine with the training images.
        text_similarity: cosine with the prompt without its words.
    """

    generated: GeneratedImage
    image_similarity: float
    text_similarity: float

    @property
    def numbers(self) -> tuple[int, float, float]:
        """The seed and both cosines."""
        return self.generated.seed, self.image_similarity, self.text_similarity

    @property
    def mean(self) -> float:
        """The mean of both cosines, by which the best image is chosen."""
        return (self.image_similarity + self.text_similarity) / 2


@dataclass
class Session:
    """Generates and scores for one request; models are read when first needed.

    Attributes:
        request: inputs and settings of the figure.
        is_tuned: use the model and the word of pivotal tuning.
    """

    request: Request
    is_tuned: bool = False
    _subjects: dict[str, Subject] = field(default_factory=dict, repr=False)

    @cached_property
    def model(self) -> LatentDiffusion:
        """The `LatentDiffusion`, without words."""
        request = self.request
        moved = request.pivotal_files()[0] if self.is_tuned else None
        model = load_model(request.config, request.weights, weight_delta=moved)
        load_words(model, [])
        return model.to(request.device)

    @cached_property
    def extractor_name(self) -> str:
        """Where the extractor comes from."""
        return self.request.extractor or default_extractor(self.request.weights)

    @cached_property
    def extractor(self) -> FeatureExtractor:
        """The scorer in the miniature, CLIP at 1.4B."""
        return find_extractor(self.extractor_name, self.request.device)

    def facts(self, figure: Figure) -> dict[str, Any]:
        """Return the facts that decide a figure, files by their hashes."""
        request = self.request
        if "table" in figure.needs:
            return {"table": _hashed(request.table / "summary.csv")}
        if "answers" in figure.needs:
            return {"answers": [_hashed(path) for path in request.answers]}
        concepts = {name for line in request.lines(figure) for name in line.concepts}
        return {
            "model": _hashed(request.weights),
            "config": _hashed(request.config) if request.config else None,
            "words": {name: _hashed(request.word_file(name)) for name in sorted(concepts)},
            "pivotal": [_hashed(path) for path in request.pivotal_files()]
            if request.pivotal and "pivotal" in figure.needs
            else None,
            "extractor": extractor_facts(self.extractor_name, self.extractor),
            "sampling": {
                **{name: getattr(request, name) for name in ("steps", "scale", "seed")},
                "sampler": "ddim",
                "eta": 0.0,
            },
        }

    def subject(self, concept: str) -> Subject:
        """Return a concept with its images."""
        if concept not in self._subjects:
            try:
                word = self.request.word_file(concept)
            except UserError:  # figures may show a concept that has no word
                word = None
            self._subjects[concept] = read_subject(self.request.concept_folder(concept), word)
        return self._subjects[concept]

    def take_words(self, concepts: Sequence[str]) -> None:
        """Load the words of a line's concepts as `*` and `@`, in place of those before."""
        if len(concepts) > len(PLACEHOLDERS):
            raise ValueError(f"concepts must be at most {len(PLACEHOLDERS)}, got {list(concepts)}")
        named = zip(PLACEHOLDERS, concepts, strict=False)
        load_words(self.model, [f"{name}={self._word(concept)}" for name, concept in named])

    def _word(self, concept: str) -> Path:
        request = self.request
        return request.pivotal_files()[1] if self.is_tuned else request.word_file(concept)

    def generate(
        self,
        prompts: Sequence[str],
        each: int,
        *,
        concepts: Sequence[str] = (),
        scale: float | None = None,
    ) -> list[list[GeneratedImage]]:
        """Generate `each` images of every prompt and return them by prompt; image i has seed + i.

        The words of `concepts` are `*` and `@` in the prompts; without any the base model
        generates. The guidance scale is the request's own by default.
        """
        request = self.request
        if concepts:
            self.take_words(concepts)
        log.info("  %s: %d x %d images", " + ".join(concepts) or "base", len(prompts), each)
        found = generate(
            self.model,
            prompts,
            replace(self._sampling, scale=request.scale if scale is None else scale),
            samples_per_prompt=each,
            restart_seeds=True,
        )
        return [found[i * each : (i + 1) * each] for i in range(len(prompts))]

    def generate_texts(self, texts: Sequence[str]) -> list[GeneratedImage]:
        """Generate one image of each text by the base model; image i has seed + i."""
        log.info("  base: %d images", len(texts))
        return generate(self.model, texts, self._sampling)

    @property
    def _sampling(self) -> Sampling:
        request = self.request
        batch_size = ON_CPU if request.device == "cpu" else 0
        return Sampling(
            steps=request.steps, scale=request.scale, seed=request.seed, batch_size=batch_size
        )

    def generate_line(self, line: Line, each: int) -> list[list[Scored]]:
        """Generate a line's prompts with its words and score every image."""
        generated = self.generate(line.prompts, each, concepts=line.concepts)
        return [
            self.score(found, prompt, *_named(prompt, line.concepts))
            for prompt, found in zip(line.prompts, generated, strict=True)
        ]

    @torch.no_grad()
    def score(self, found: Sequence[GeneratedImage], prompt: str, *concepts: str) -> list[Scored]:
        """Score images against the prompt without its words, and concepts' training images.

        The image similarities of several concepts are averaged.
        """
        own = self.features([one.image for one in found])
        likenesses = [
            (own @ self.features(self.subject(concept).images).T).mean(-1) for concept in concepts
        ]
        images = torch.stack(likenesses).mean(0)
        texts = own @ self.text_features([without_placeholders(prompt, PLACEHOLDERS)])[0]
        return [
            Scored(one, float(image), float(text))
            for one, image, text in zip(found, images, texts, strict=True)
        ]

    def features(self, images: Sequence[Image.Image]) -> Tensor:
        """Embed images: unit vectors [n, d] on the CPU."""
        return F.normalize(self.extractor.image_features(list(images)).float().cpu(), dim=-1)

    def text_features(self, texts: Sequence[str]) -> Tensor:
        """Embed texts: unit vectors [n, d] on the CPU."""
        return F.normalize(self.extractor.text_features(list(texts)).float().cpu(), dim=-1)


def _named(prompt: str, concepts: Sequence[str]) -> list[str]:
    """Return the concepts of a line that a prompt names; the first one if it names none."""
    pairs = zip(concepts, PLACEHOLDERS, strict=False)
    named = [concept for concept, placeholder in pairs if occurrences(prompt, placeholder)]
    return named or list(concepts[:1])


def _hashed(path: Path) -> str:
    return f"{path.name} {checkpoint_hash(path)}"
