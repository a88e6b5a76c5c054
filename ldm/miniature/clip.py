"""The CLIP of the miniature world, which scores images against images and texts.

It is a `transformers` CLIPModel on 64 by 64 images with the miniature's tokenizer. It decides as
any CLIP does: by the text prompt whose embedding is nearest to the image's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Self

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from ldm.evaluation.clip import ClipExtractor, image_size
from ldm.miniature.grammar import (
    MEDIUM_PHRASES,
    SCENE_PHRASES,
    TEXTURE_ADJECTIVES,
    TEXTURE_PHRASES,
    texture_phrase,
    with_article,
)
from ldm.miniature.render import COLOURS
from ldm.miniature.shapes import ALL_SHAPES
from ldm.util import UserError, one_of

# What the CLIP is asked: for each attribute, the prompt of each answer.
PROMPTS: dict[str, dict[str, str]] = {
    "shape": {name: with_article(name) for name in ALL_SHAPES},
    "colour": {name: name for name in COLOURS},
    "scene": dict(SCENE_PHRASES),
    "medium": {name: phrase.removesuffix(" of") for name, phrase in MEDIUM_PHRASES.items()},
    "texture": dict(TEXTURE_ADJECTIVES),
    "detail": {"plain": "plain"}
    | {
        f"{second} {texture}": texture_phrase(texture, second)
        for texture in TEXTURE_PHRASES
        for second in COLOURS
    },
}


@dataclass(frozen=True)
class TrainingImages:
    """Which images of the world a CLIP is trained on.

    Attributes:
        seed: seed of the images, their captions and the initial weights.
        first_index: index of the first image; a CLIP reads fewer than `MOST_IMAGES` from there.
    """

    seed: int
    first_index: int


MOST_IMAGES = 2**32
# The selector chooses settings, checkpoints and words; the scorer reports results.
TRAINING = {
    "scorer": TrainingImages(seed=77, first_index=0),
    "selector": TrainingImages(seed=78, first_index=MOST_IMAGES),
}
_MEAN = (0.48145466, 0.4578275, 0.40821073)  # CLIP's own, over RGB in [0, 1]
_STD = (0.26862954, 0.26130258, 0.27577711)


def preprocess(images: Tensor, size: int) -> Tensor:
    """Resize [n, 3, h, w] in [-1, 1] to `size` and normalise as CLIP does."""
    if images.shape[-2:] != (size, size):
        images = F.interpolate(images, (size, size), mode="bicubic", antialias=True)
    mean, std = (images.new_tensor(v).view(1, 3, 1, 1) for v in (_MEAN, _STD))
    return ((images.clamp(-1, 1) + 1) / 2 - mean) / std


class MiniatureClip(ClipExtractor):
    """The miniature's CLIP, which also says what an image shows; build it with `load`."""

    @classmethod
    def load(cls, name: str | Path, device: str = "cpu", local: bool = True) -> Self:
        """Read a folder with model, configuration and tokenizer; UserError where it holds none."""
        if not (Path(name) / "model.safetensors").is_file():
            raise UserError(f"no CLIP in {name}: run scripts/miniature/train_clip.py")
        return super().load(name, device, local)

    @torch.no_grad()
    def image_features(self, images: Sequence[Image.Image] | Tensor) -> Tensor:
        """Embed images, or a tensor [n, 3, h, w] in [-1, 1]: unit vectors [n, d] on the CPU."""
        if not isinstance(images, Tensor):
            return super().image_features(images)
        size = image_size(self.model)
        return torch.cat([self.embed(preprocess(p, size)) for p in torch.split(images, 64)])

    @cached_property
    def answers(self) -> dict[str, dict[str, str]]:
        """The answers of `PROMPTS` whose words are all in this model's vocabulary."""
        unknown = self.tokenizer.unk_token_id
        return {
            name: {
                answer: text
                for answer, text in asked.items()
                if unknown not in self.tokenizer(text)["input_ids"]
            }
            for name, asked in PROMPTS.items()
        }

    @cached_property
    def _answers(self) -> dict[str, Tensor]:
        return {
            name: self.text_features(list(texts.values())) for name, texts in self.answers.items()
        }

    def scores(self, features: Tensor, attribute: str) -> Tensor:
        """Return the similarity of images [n, d] with each of `answers[attribute]`."""
        one_of(PROMPTS, attribute=attribute)
        return features.float() @ self._answers[attribute].T

    def classify(self, images: Sequence[Image.Image] | Tensor, attribute: str) -> list[str]:
        """Say of each image which shape, colour, scene, medium, texture or detail it shows.

        `images` may also be features [n, d] from `image_features`, to ask several questions.
        """
        is_features = isinstance(images, Tensor) and images.ndim == 2
        features = images if is_features else self.image_features(images)
        assert isinstance(features, Tensor)
        labels = list(self.answers[attribute]) if attribute in PROMPTS else []
        return [labels[i] for i in self.scores(features, attribute).argmax(-1).tolist()]
