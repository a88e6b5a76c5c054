"""Where an evaluation's images come from: a model with its word, or the paper's references.

Each function returns an `ImageSource`: (prompts, images of each) → images, a prompt's side by side.
Image i of a call begins from the noise of seed + i whatever the source, so that variants are
compared on the same noises.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from PIL import Image
from tqdm import tqdm

from ldm.evaluation.similarity import without_placeholders
from ldm.inference import GeneratedImage, Sampling, generate
from ldm.util import UserError, quote
from ldm.words.placeholders import replace

if TYPE_CHECKING:
    from ldm.models.diffusion.ddpm import LatentDiffusion

# (prompts, images of each) -> images, those of one prompt side by side.
ImageSource = Callable[[Sequence[str], int], list[Image.Image]]


def from_model(
    model: LatentDiffusion,
    sampling: Sampling,
    *,
    keep: Callable[[Sequence[GeneratedImage]], None] | None = None,
    progress: bool = False,
) -> ImageSource:
    """Generate with a model that has its words loaded; `keep` is given each batch, to save it."""

    def source(prompts: Sequence[str], each: int) -> list[Image.Image]:
        with tqdm(total=len(prompts) * each, unit=" images", disable=not progress) as bar:

            def kept(batch: Sequence[GeneratedImage]) -> None:
                bar.update(len(batch))
                if keep is not None:
                    keep(batch)

            made = generate(model, prompts, sampling, samples_per_prompt=each, keep=kept)
        return [one.image for one in made]

    return source


def from_captions(
    source: ImageSource, captions: Sequence[str], placeholders: Sequence[str]
) -> ImageSource:
    """Generate with a human's captions in the word's place (paper, section 4.2), by turns.

    Image i of each prompt has caption i mod n.
    """
    if not captions:
        raise ValueError("captions must hold at least one text, got none")

    def generated(prompts: Sequence[str], each: int) -> list[Image.Image]:
        return source(captioned(prompts, each, captions, placeholders), 1)

    return generated


def captioned(
    prompts: Sequence[str], each: int, captions: Sequence[str], placeholders: Sequence[str]
) -> list[str]:
    """Return each prompt `each` times with a caption in the place of every placeholder."""
    texts = []
    for prompt in prompts:
        for i in range(each):
            text = prompt
            for placeholder in placeholders:
                text = replace(text, placeholder, captions[i % len(captions)])
            texts.append(text)
    return texts


def from_prompts(source: ImageSource, placeholders: Sequence[str]) -> ImageSource:
    """Leave the word out of the prompts: the reference for text similarity (paper, section 4.2)."""

    def generated(prompts: Sequence[str], each: int) -> list[Image.Image]:
        return source([without_placeholders(prompt, placeholders) for prompt in prompts], each)

    return generated


def from_images(training: Sequence[Image.Image]) -> ImageSource:
    """Give the training images as if generated: the reference for image similarity (section 4.2).

    Images of a prompt are the training images in their order, from the first again after the
    last; each is compared with itself too, as a random image of the set would be.
    """
    if not training:
        raise ValueError("training must hold at least one image, got none")

    def generated(prompts: Sequence[str], each: int) -> list[Image.Image]:
        return [training[i % len(training)] for _ in prompts for i in range(each)]

    return generated


def check_lengths(model: LatentDiffusion, texts: Sequence[str]) -> None:
    """Raise UserError for the first text that a model's encoder would cut.

    The texts are without learned words, whose vectors this does not count.
    """
    encoder = model.cond_stage_model
    for text in dict.fromkeys(texts):
        count = encoder.count_tokens(text)
        if count > encoder.max_length:
            raise UserError(
                f"prompt {quote(text)} has {count} tokens and the model reads "
                f"{encoder.max_length}: shorten the caption"
            )
