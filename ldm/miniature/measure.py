"""Measurements of the miniature's parts on unseen images, captions and concepts.

An injected function generates the images, so that tests can use doubles. Unseen images are from the
validation split of the miniature world, or from `examples/concepts`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ldm.evaluation.similarity import own_similarity, pairwise_similarity
from ldm.evaluation.sources import ImageSource
from ldm.image_io import open_rgb, to_pil
from ldm.inference import encode_mean
from ldm.miniature.clip import PROMPTS, MiniatureClip
from ldm.miniature.grammar import SCENE_PHRASES, STYLE_PHRASES, caption, full_caption
from ldm.miniature.render import Spec, render
from ldm.miniature.world import MiniatureWorld
from ldm.models.diffusion.ddpm import LatentDiffusion
from ldm.util import UserError

COLOURFUL = ("photo", "painting")  # the media that show an object's colour as it is


@dataclass(frozen=True)
class Concept:
    """A thing or style to learn, as `examples/concepts/concepts.json` describes it."""

    name: str
    kind: str
    placeholder: str
    initializer_word: str
    words: str
    caption: str
    attributes: Mapping[str, str]
    shown_scenes: Sequence[str]
    prompt_scenes: Sequence[str]
    images: list[Image.Image] = field(repr=False, default_factory=list)

    @property
    def is_style(self) -> bool:
        """Whether the word stands for a style, not for a thing."""
        return self.kind == "style"

    def prompt(self, word: str) -> str:
        """Return a prompt that asks for the concept by a word, as the training templates do."""
        return f"a painting in the style of {word}" if self.is_style else f"a photo of a {word}"

    def scene_prompt(self, word: str, scene: str) -> str:
        """Return a prompt that asks for the concept by a word, in a scene."""
        if self.is_style:
            return f"a red star {SCENE_PHRASES[scene]} in the style of {word}"
        return f"a photo of a {word} {SCENE_PHRASES[scene]}"

    def learning_options(self, images: str) -> list[str]:
        """Return the options of main.py that learn the concept from a folder of its images."""
        options = ["--data_root", images, "--init_word", self.initializer_word]
        options += ["--placeholder_string", self.placeholder]
        style = "ldm.data.personalized_style.PersonalizedBase"
        parts = ("train", "validation") if self.is_style else ()
        return options + [f"data.params.{part}.target={style}" for part in parts]


def load_concepts(folder: str | Path, names: Sequence[str] | None = None) -> list[Concept]:
    """Read concepts and their images from a folder like `examples/concepts`; or raise UserError."""
    folder = Path(folder)
    if not (folder / "concepts.json").is_file():
        raise UserError(f"{folder} has no concepts.json: run scripts/miniature/make_concepts.py")
    records = json.loads((folder / "concepts.json").read_text(encoding="utf-8"))
    unknown = sorted(set(names or ()) - set(records))
    if unknown:
        raise UserError(f"no concept {unknown[0]!r} in {folder}: there are {', '.join(records)}")
    return [
        Concept(
            name=name,
            initializer_word=records[name].pop("first_word"),
            **records[name],
            images=[open_rgb(path) for path in sorted((folder / name).glob("*.png"))],
        )
        for name in names or records
    ]


def unseen_specs(count: int, seed: int = 0) -> list[Spec]:
    """Describe images that no training saw, uniformly over their parts."""
    world = MiniatureWorld(length=count, seed=seed, split="val", thing_share=0.0, style_share=0.0)
    return [world.spec(i) for i in range(count)]


def render_specs(specs: Sequence[Spec], size: int = 64) -> Tensor:
    """Render: float32 [n, 3, size, size] in [-1, 1]."""
    images = np.stack([render(spec, size) for spec in specs])
    return torch.from_numpy(images).permute(0, 3, 1, 2).contiguous()


@torch.no_grad()
def autoencoder_psnr(
    model: LatentDiffusion, count: int, size: int = 64
) -> tuple[float, list[Image.Image]]:
    """Measure a model's first stage on unseen images, each coded as its posterior's mean.

    Returns PSNR in dB over the mean squared error of all images (the mean of the images' own PSNRs
    would be higher), and some images, each followed by its reconstruction.
    """
    images = render_specs(unseen_specs(count), size)
    errors: list[Tensor] = []
    shown: list[Image.Image] = []
    for batch in torch.split(images, 32):
        latent = encode_mean(model, batch.to(model.device))
        again = model.decode_first_stage(latent).cpu().clamp(-1, 1)
        errors.append(((again - batch) ** 2).mean((1, 2, 3)))
        if not shown:
            shown = [to_pil(p) for pair in zip(batch[:16], again, strict=False) for p in pair]
    # Values span [-1, 1], so the peak is 2.
    return 10 * math.log10(4 / float(torch.cat(errors).mean())), shown


def truth(specs: Sequence[Spec], attribute: str) -> list[str]:
    """Return the right answers to one of the scorer's questions."""
    if attribute == "detail":
        return [
            "plain" if spec.texture == "plain" else f"{spec.second} {spec.texture}"
            for spec in specs
        ]
    return [getattr(spec, attribute) for spec in specs]


def clip_accuracy(scorer: MiniatureClip, count: int) -> dict[str, float]:
    """Return the scorer's share of right answers on unseen images.

    Colour, texture and detail are asked of photos and paintings only.
    """
    specs = unseen_specs(count)
    features = scorer.image_features(render_specs(specs))
    colourful = [spec.medium in COLOURFUL for spec in specs]
    accuracies = {}
    for name in PROMPTS:
        asked = colourful if name in ("colour", "texture", "detail") else [True] * count
        accuracies[name], _ = _share_seen(scorer, features, specs, name, asked)
    return accuracies


def _share_seen(
    scorer: MiniatureClip,
    features: Tensor,
    specs: Sequence[Spec],
    name: str,
    asked: Sequence[bool],
) -> tuple[float, int]:
    """Return the share of right answers on the images asked about, and the number of these."""
    answers = zip(scorer.classify(features, name), truth(specs, name), asked, strict=True)
    right = [given == wanted for given, wanted, is_asked in answers if is_asked]
    return sum(right) / max(1, len(right)), len(right)


def named(spec: Spec, text: str) -> set[str]:
    """Return which of shape, colour, scene, medium a caption fixes.

    Colour counts only where the caption also asks for a photo or a painting.
    """
    words = text.split()
    found = {"shape"} if spec.shape in words else set()
    if f" {SCENE_PHRASES[spec.scene]}" in text:
        found.add("scene")
    if STYLE_PHRASES[spec.medium].split()[-1] in words:
        found.add("medium")
        if f"{spec.colour} {spec.shape}" in text and spec.medium in COLOURFUL:
            found.add("colour")
    return found


@dataclass(frozen=True)
class Agreement:
    """Share and number of the captions whose attribute the scorer sees, by attribute."""

    share: dict[str, float]
    asked: dict[str, int]


def caption_agreement(
    generate: ImageSource, scorer: MiniatureClip, count: int, full: bool = False
) -> tuple[Agreement, list[Image.Image], list[str]]:
    """Generate one image for each of `count` captions and ask the scorer what it sees.

    The captions are the grammar's, omissions included, of unseen images, or with `full` those
    that say everything; each attribute counts where its caption names it. Returns the agreement,
    the images and the captions.
    """
    specs = unseen_specs(count, seed=1)
    texts = [
        full_caption(spec) if full else caption(spec, np.random.default_rng(i))
        for i, spec in enumerate(specs)
    ]
    images = generate(texts, 1)
    features = scorer.image_features(images)
    fixed = [named(spec, text) for spec, text in zip(specs, texts, strict=True)]
    share, asked = {}, {}
    for name in ("shape", "colour", "scene", "medium"):
        of = [name in found for found in fixed]
        share[name], asked[name] = _share_seen(scorer, features, specs, name, of)
    return Agreement(share, asked), images, texts


@dataclass(frozen=True)
class WordScore:
    """What images of a word show; similarities are the scorer's mean cosines with the training set.

    Attributes:
        image_similarity: of images of the word.
        scene: share of the scene prompts' images in which the scorer sees the scene.
        concept: share in which it sees the concept: shape and colour, or the medium of a style.
        both: share in which it sees both.
    """

    image_similarity: float
    scene: float
    concept: float
    both: float


@dataclass(frozen=True)
class ConceptScore(WordScore):
    """A learned word, measured, and what it is compared with.

    Attributes:
        training: of the training images with each other.
        initializer_word: of images of the word the learning began with.
        best_word: of images of the vocabulary's best word, generated anew after it was chosen.
        best_word_is: that word.
        caption: of images of the full description.
    """

    training: float
    initializer_word: float
    best_word: float
    best_word_is: str
    caption: float


def see_concept(scorer: MiniatureClip, features: Tensor, concept: Concept) -> list[bool]:
    """Tell for each image whether the scorer sees the concept: shape and colour, or medium."""
    questions = ("medium",) if concept.is_style else ("shape", "colour")
    answers = [scorer.classify(features, question) for question in questions]
    wanted = tuple(concept.attributes[question] for question in questions)
    return [given == wanted for given in zip(*answers, strict=True)]


def _seen(
    scorer: MiniatureClip, features: Tensor, concept: Concept
) -> tuple[np.ndarray, np.ndarray]:
    """Tell of images in the concept's prompt scenes, equally many of each: scene, concept seen."""
    each = len(features) // len(concept.prompt_scenes)
    wanted = [scene for scene in concept.prompt_scenes for _ in range(each)]
    scenes = [a == b for a, b in zip(scorer.classify(features, "scene"), wanted, strict=True)]
    return np.array(scenes), np.array(see_concept(scorer, features, concept))


def rendered_share(scorer: MiniatureClip, concept: Concept, each: int = 40) -> float:
    """Return `ConceptScore.both` of rendered images, on which the scorer makes errors too."""
    asked: dict[str, Any] = {"medium": "photo", **concept.attributes}
    if concept.is_style:  # the object of `Concept.scene_prompt`
        asked |= {"shape": "star", "colour": "red", "texture": "plain", "second": ""}
    unseen = unseen_specs(each * len(concept.prompt_scenes), seed=2)
    specs = [
        replace(spec, **asked, scene=concept.prompt_scenes[i // each])
        for i, spec in enumerate(unseen)
    ]
    scenes, things = _seen(scorer, scorer.image_features(render_specs(specs)), concept)
    return float(np.mean(scenes & things))


def score_word(
    generate: ImageSource, scorer: MiniatureClip, concept: Concept, images: int = 16
) -> tuple[WordScore, list[Image.Image]]:
    """Measure a word that `generate` already knows under the concept's placeholder.

    The word gets so many images, each scene prompt half as many. Returns the scores, and images to
    show: of the word, then of the scene prompts.
    """
    training, word = scorer.image_features(concept.images), concept.placeholder
    own = generate([concept.prompt(word)], images)
    prompts = [concept.scene_prompt(word, scene) for scene in concept.prompt_scenes]
    each = max(1, images // 2)
    placed = generate(prompts, each)
    scenes, things = _seen(scorer, scorer.image_features(placed), concept)
    score = WordScore(
        image_similarity=pairwise_similarity(scorer.image_features(own), training),
        scene=float(np.mean(scenes)),
        concept=float(np.mean(things)),
        both=float(np.mean(scenes & things)),
    )
    shown = [placed[i * each + j] for j in range(min(2, each)) for i in range(len(prompts))]
    return score, own[:5] + shown


def score_concept(
    generate: ImageSource,
    scorer: MiniatureClip,
    concept: Concept,
    vocabulary: Mapping[str, Tensor],
    images: int = 16,
) -> tuple[ConceptScore, list[Image.Image]]:
    """Measure a word that `generate` already knows under the concept's placeholder.

    The word gets so many images; the words compared with it, and each scene prompt, half as many.
    `vocabulary` has the features [n, d] of images of each word to compete with; see
    `vocabulary_features`. Returns the scores, and images to show: of the word, then of the scene
    prompts.
    """
    training = scorer.image_features(concept.images)
    best = max(vocabulary, key=lambda word: pairwise_similarity(vocabulary[word], training))

    def likeness(prompt: str, count: int) -> float:
        return pairwise_similarity(scorer.image_features(generate([prompt], count)), training)

    score, shown = score_word(generate, scorer, concept, images)
    described = concept.prompt(concept.words) if concept.is_style else concept.caption
    return ConceptScore(
        **asdict(score),
        training=own_similarity(training),
        initializer_word=likeness(concept.prompt(concept.initializer_word), images // 2),
        best_word=likeness(concept.prompt(best), images // 2),
        best_word_is=best,
        caption=likeness(described, images // 2),
    ), shown


def vocabulary_features(
    generate: ImageSource,
    scorer: MiniatureClip,
    words: Sequence[str],
    prompt: Callable[[str], str],
    each: int,
) -> dict[str, Tensor]:
    """Generate `each` images of every word: features [each, d] by word."""
    features = scorer.image_features(generate([prompt(word) for word in words], each))
    return dict(zip(words, torch.split(features, each), strict=True))
