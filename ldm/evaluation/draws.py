"""Where an evaluation's images come from: a model with its word, or what the paper compares with.

Each function returns a `Draw`: (prompts, images of each) → images, a prompt's side by side.
Image i of a call begins from the noise of seed + i whatever the source, so that variants are
compared on the same noises.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from PIL import Image
from tqdm import tqdm

from ldm.evaluation.similarity import without_placeholders
from ldm.inference import GeneratedImage, generate
from ldm.util import UserError
from ldm.words.placeholders import replace

log = logging.getLogger(__name__)

# (prompts, images of each) -> images, those of one prompt side by side.
Draw = Callable[[Sequence[str], int], list[Image.Image]]

# A generous guess of what drawing an image takes on a GPU, in bytes for each of its pixels: the
# decoder's last level holds 128 channels of 4 bytes, about a dozen times. A batch that turns out
# too large is halved, so a wrong guess costs one failed batch.
BYTES_A_PIXEL = 8 * 1024
MOST = 64
ON_CPU = 32


@dataclass(frozen=True)
class Sampling:
    """How images are drawn; as `ldm.inference.generate` takes it, with the paper's defaults.

    Attributes:
        batch_size: images at a time, which does not change them; 0 fills the device.
    """

    steps: int = 50
    scale: float = 5.0
    seed: int = 42
    eta: float = 0.0
    sampler: str = "ddim"
    precision: str = "full"
    batch_size: int = 0

    def settings(self) -> dict[str, Any]:
        """Return what decides the images, as plain values."""
        plain = asdict(self)
        del plain["batch_size"]
        return plain


def fitting_batch(model: Any) -> int:
    """Return how many images a model's device holds at a time, at most 64."""
    if model.device.type != "cuda":
        return ON_CPU
    side = model.image_size if isinstance(model.image_size, int) else max(model.image_size)
    pixels = (side * model.first_stage_downsampling) ** 2
    free, _ = torch.cuda.mem_get_info(model.device)
    return max(1, min(MOST, free // (BYTES_A_PIXEL * pixels)))


def from_model(
    model: Any,
    sampling: Sampling,
    *,
    keep: Callable[[Sequence[GeneratedImage]], None] | None = None,
    progress: bool = False,
) -> Draw:
    """Draw with a model that has its words loaded.

    Args:
        model: a `LatentDiffusion`.
        sampling: how.
        keep: is given each batch, to save it.
        progress: show a bar.
    """

    def draw(prompts: Sequence[str], each: int) -> list[Image.Image]:
        texts = [prompt for prompt in prompts for _ in range(each)]
        size = sampling.batch_size or fitting_batch(model)
        images: list[Image.Image] = []
        with tqdm(total=len(texts), unit=" images", disable=not progress) as bar:
            while len(images) < len(texts):
                done = len(images)
                try:
                    found = generate(
                        model,
                        texts[done : done + size],
                        batch_size=size,
                        **{**sampling.settings(), "seed": sampling.seed + done},
                    )
                except torch.OutOfMemoryError as error:
                    size = _smaller(size, sampling.batch_size, error)
                    continue
                if keep is not None:
                    keep(found)
                images += [picture.image for picture in found]
                bar.update(len(found))
        return images

    return draw


def _smaller(size: int, asked: int, error: Exception) -> int:
    """Return half a batch that was too large, unless it is the user's own."""
    if asked or size == 1:
        advice = "lower --batch_size" if size > 1 else "give --precision autocast"
        raise UserError(f"out of memory for {size} images at a time: {advice}") from error
    log.info("out of memory for %d images at a time: trying %d", size, size // 2)
    return size // 2


def from_captions(draw: Draw, captions: Sequence[str], placeholders: Sequence[str]) -> Draw:
    """Draw with a human's captions in the word's place (paper, section 4.2), by turns.

    Image i of each prompt has caption i mod n.
    """
    if not captions:
        raise ValueError("captions must hold at least one text, got none")

    def drawn(prompts: Sequence[str], each: int) -> list[Image.Image]:
        return draw(captioned(prompts, each, captions, placeholders), 1)

    return drawn


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


def from_prompts(draw: Draw, placeholders: Sequence[str]) -> Draw:
    """Draw the prompts without the word: the reference for text similarity (paper, section 4.2)."""

    def drawn(prompts: Sequence[str], each: int) -> list[Image.Image]:
        return draw([without_placeholders(prompt, placeholders) for prompt in prompts], each)

    return drawn


def from_images(training: Sequence[Image.Image]) -> Draw:
    """Give the training images as if drawn: the reference for image similarity (section 4.2).

    Images of a prompt are the training images in their order, from the first again after the
    last; each is compared with itself too, as an image drawn at random from the set would be.
    """
    if not training:
        raise ValueError("training must hold at least one image, got none")

    def drawn(prompts: Sequence[str], each: int) -> list[Image.Image]:
        return [training[i % len(training)] for _ in prompts for i in range(each)]

    return drawn


def check_lengths(model: Any, texts: Sequence[str]) -> None:
    """Raise UserError for the first text that a model's encoder would cut.

    Args:
        model: a `LatentDiffusion` with a text encoder.
        texts: without learned words, whose vectors this does not count.
    """
    encoder = model.cond_stage_model
    for text in dict.fromkeys(texts):
        count = encoder.count_tokens(text)
        if count > encoder.max_length:
            raise UserError(
                f"prompt {text!r} has {count} tokens and the model reads {encoder.max_length}: "
                "shorten the caption"
            )
