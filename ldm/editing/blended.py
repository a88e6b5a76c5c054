"""Local edits by Blended Latent Diffusion (Avrahami et al., arXiv 2206.02779).

An image is generated from noise and a prompt. Before each step, the given image's latent, noised to
that step's level, replaces the part outside the mask. Decoding changes the background a little, so
one of `BACKGROUNDS` keeps it.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageChops
from torch import Tensor

from ldm.editing.images import generate_from, mask_tensor
from ldm.evaluation.similarity import FeatureExtractor, prompt_similarity, without_placeholders
from ldm.image_io import from_pil, to_pil
from ldm.inference import GeneratedImage
from ldm.models.diffusion.sampler import Step
from ldm.sampling import Sampling
from ldm.util import UserError, at_least, one_of

if TYPE_CHECKING:
    from ldm.models.diffusion.ddpm import LatentDiffusion

BACKGROUNDS = ("paste", "decoder", "none")
GREY = (128, 128, 128)
DEFAULTS = Sampling()
# Of the decoder that is tuned to one image (section 4.2), and the weight of the background's error.
TUNING_STEPS, TUNING_RATE, PRESERVATION = 75, 1e-4, 100.0


@dataclass(frozen=True)
class Edit(GeneratedImage):
    """One edited image, of the given image's size.

    Its settings hold `background_error`, the largest difference from the given image outside the
    mask, in levels of 0..255.

    Attributes:
        score: cosine of its masked region with the prompt, where a scorer was given.
    """

    score: float | None = None


def mask_schedule(mask: Tensor, dilate: int, steps: int) -> Callable[[Step], Tensor]:
    """Return each step's mask, from the widest to `mask` itself over equal blocks of steps.

    `mask` [1, 1, h, w] is 1 where the image changes. The widest one is wider by `dilate` points on
    every side.
    """
    masks = [F.max_pool2d(mask, 2 * k + 1, stride=1, padding=k) for k in range(dilate, -1, -1)]
    return lambda step: masks[step.position * len(masks) // steps]


@torch.no_grad()
def edit(
    model: LatentDiffusion,
    original: Image.Image,
    mask: Image.Image,
    prompt: str,
    sampling: Sampling = DEFAULTS,
    *,
    samples: int = 4,
    dilate: int = 0,
    background: str = "paste",
    scorer: FeatureExtractor | None = None,
    progress: bool = False,
) -> list[Edit]:
    """Generate a prompt inside a mask.

    Args:
        model: with its words loaded.
        original: RGB image of a size that the model generates (`ldm.editing.images.model_size`).
        mask: mode "1", of the image's size, white where it changes.
        prompt: may name loaded words.
        sampling: the settings; the defaults are the paper's. The size is that of the image.
        samples: number of images; image i has seed + i.
        dilate: for thin masks: the mask begins this many latent points wider on every side, and
            shrinks by one after each of `dilate` + 1 equal blocks of steps, down to itself.
        background: "paste" puts the image's own pixels back outside the mask, "decoder" tunes a
            copy of the decoder for each image, "none" leaves what was decoded.
        scorer: ranks the images by what they show inside the mask.
        progress: show a bar for each batch.

    Returns:
        The edits, the scorer's best first, or else by seed.

    Raises:
        UserError: a mask that covers no point of the latent; a prompt that would lose a word.
        ValueError: a mask of another size than the image, or an argument out of range.
    """
    at_least(1, samples=samples)
    at_least(0, dilate=dilate)
    one_of(BACKGROUNDS, background=background)
    if mask.size != original.size:
        raise ValueError(f"mask must have the image's size {original.size}, got {mask.size}")
    latent_mask = latent_mask_of(model, mask).to(model.device)
    inside = mask_schedule(latent_mask, dilate, sampling.steps)

    def outside(z: Tensor, _: Sequence[int]) -> dict[str, Any]:
        return {"mask": lambda step: 1 - inside(step), "x0": z}

    def decode(latents: Tensor) -> Iterator[Image.Image]:
        for latent in torch.split(latents, 1):
            if background == "decoder":
                decoded = refined(model, latent, original, mask_tensor(mask, mask.size))
            else:
                decoded = model.decode_first_stage(latent)
            image = to_pil(decoded[0])
            yield Image.composite(image, original, mask) if background == "paste" else image

    made = generate_from(model, original, prompt, sampling, samples, outside, decode, progress)
    images = [image for _, image in made]
    scores: Sequence[float | None] = [None] * len(images)
    if scorer is not None:
        manager = model.embedding_manager
        text = without_placeholders(prompt, manager.placeholders if manager is not None else ())
        scores = masked_scores(scorer, images, mask, text)
    settings = {
        "prompt": prompt,
        **replace(sampling, height=original.height, width=original.width).metadata(),
        "samples": samples,
        "dilate": dilate,
        "background": background,
    }
    edits = []
    for (seed, image), score in zip(made, scores, strict=True):
        error = background_error(image, original, mask)
        own = {**settings, "seed": seed, "background_error": error}
        edits.append(Edit(image, prompt, seed, own, score))
    return sorted(edits, key=lambda e: 0.0 if e.score is None else -e.score)


def latent_mask_of(model: LatentDiffusion, mask: Image.Image) -> Tensor:
    """Return a mask at the latent's size, [1, 1, h, w].

    Raises UserError where it is too thin to hold the middle of any latent point.
    """
    factor = model.first_stage_downsampling
    found = mask_tensor(mask, (mask.width // factor, mask.height // factor))
    if not found.any():
        raise UserError(
            f"the mask covers no point of the model's latent, which are {factor} pixels apart in "
            f"the image at {mask.width} x {mask.height}: make it at least {factor} pixels wide"
        )
    return found


def refined(
    model: LatentDiffusion,
    latent: Tensor,
    original: Image.Image,
    mask: Tensor,
    *,
    steps: int = TUNING_STEPS,
    rate: float = TUNING_RATE,
) -> Tensor:
    """Decode a latent by a copy of the decoder, tuned for it by Adam. The model does not change.

    The loss is the mean square error to the plain decoding inside the mask, plus `PRESERVATION`
    times that to the image outside it, both over all pixels. The latent is scaled, [1, c, h, w];
    the background of `original` is kept; the mask is 1 where the decoding is kept instead,
    [1, 1, f·h, f·w]. Returns the image, [1, 3, f·h, f·w], about [−1, 1].
    """
    first_stage = copy.deepcopy(model.first_stage_model).float()
    decoder = first_stage.decoder.requires_grad_(True)
    z = latent.float() / model.scale_factor
    mask = mask.to(z)
    given = from_pil(original)[None].to(z)
    with torch.no_grad():
        wanted = torch.where(mask > 0, first_stage.decode(z), given)
    weight = torch.where(mask > 0, 1.0, PRESERVATION)
    optimizer = torch.optim.Adam(decoder.parameters(), lr=rate)
    with torch.enable_grad():
        for _ in range(steps):
            loss = (weight * (first_stage.decode(z) - wanted) ** 2).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    with torch.no_grad():
        decoded: Tensor = first_stage.decode(z)
    return decoded


def background_error(image: Image.Image, original: Image.Image, mask: Image.Image) -> int:
    """Return the largest difference of two images outside a mask, in levels of 0..255."""
    difference = np.asarray(ImageChops.difference(image.convert("RGB"), original.convert("RGB")))
    return int(difference[~np.asarray(mask)].max(initial=0))


def masked_region(image: Image.Image, mask: Image.Image) -> Image.Image:
    """Return the part of an image inside a mask: cut to its box, and grey outside the mask."""
    shown = Image.composite(image.convert("RGB"), Image.new("RGB", image.size, GREY), mask)
    return shown.crop(mask.getbbox())


def masked_scores(
    scorer: FeatureExtractor, images: Sequence[Image.Image], mask: Image.Image, text: str
) -> list[float]:
    """Return the cosine of each image's masked region with a text, in [−1, 1]."""
    features = scorer.image_features([masked_region(image, mask) for image in images])
    wanted = scorer.text_features([text])
    return [prompt_similarity(one, wanted)[0] for one in torch.split(features, 1)]
