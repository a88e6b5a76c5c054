"""An image to edit and its mask: bring them to the model's size, generate from the image."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ldm.image_io import from_pil, open_rgb
from ldm.inference import (
    check_texts,
    encode_mean,
    fitting_batch,
    generating,
    latent_shape,
    negative_conditioning,
    sample_latents,
    side_multiple,
)
from ldm.sampling import Sampling
from ldm.util import UserError

if TYPE_CHECKING:
    from ldm.models.diffusion.ddpm import LatentDiffusion

WHITE = 128  # a mask's grey of at least this value means: edit


def open_mask(path: str | Path, size: tuple[int, int]) -> Image.Image:
    """Open a mask, white where an image of `size` (width, height) is to change: mode "1".

    Its grey value decides. Raises UserError for a mask that is unreadable, of another size, or
    without any white.
    """
    grey = open_rgb(path).convert("L")
    if grey.size != size:
        raise UserError(
            f"mask {str(path)!r} is {grey.width} x {grey.height}, but the image is {size[0]} x "
            f"{size[1]}: give a mask of the image's size"
        )
    mask = grey.point(lambda level: 255 * (level >= WHITE)).convert("1")
    if mask.getbbox() is None:
        raise UserError(
            f"mask {str(path)!r} is empty: make white (at least {WHITE} of 255) what shall change"
        )
    return mask


def fitting_size(size: tuple[int, int], side: int, unit: int) -> tuple[int, int]:
    """Return the (width, height) at which to generate an image of `size`.

    The longer side becomes that of the model's own square, `side` pixels; the shorter keeps the
    proportions as nearly as multiples of `unit` allow.
    """
    longer = max(size)
    width, height = (max(unit, round(s * side / longer / unit) * unit) for s in size)
    return width, height


def model_size(model: LatentDiffusion, size: tuple[int, int]) -> tuple[int, int]:
    """Return the (width, height) at which a `LatentDiffusion` edits an image of a size."""
    _, height, width = latent_shape(model, None, None)
    factor = model.first_stage_downsampling
    return fitting_size(size, max(height, width) * factor, side_multiple(model))


def resized(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    """Return an image at a size, bicubic as in training; a mask, nearest."""
    if image.size == size:
        return image
    is_mask = image.mode == "1"
    return image.resize(size, Image.Resampling.NEAREST if is_mask else Image.Resampling.BICUBIC)


def mask_tensor(mask: Image.Image, size: tuple[int, int]) -> Tensor:
    """Return a mask at (width, height), nearest to each point's middle: float32 [1, 1, h, w]."""
    values = np.asarray(resized(mask.convert("1"), size), dtype=np.float32)
    return torch.from_numpy(values.copy())[None, None]


@torch.no_grad()
def encode(model: LatentDiffusion, original: Image.Image) -> Tensor:
    """Return an image's scaled latent, the middle of its posterior: [1, c, h, w]."""
    return encode_mean(model, from_pil(original)[None].to(model.device)).float()


def generate_from(
    model: LatentDiffusion,
    original: Image.Image,
    prompt: str,
    sampling: Sampling,
    samples: int,
    start: Callable[[Tensor, Sequence[int]], Mapping[str, Any]],
    decode: Callable[[Tensor], Iterable[Image.Image]],
    progress: bool,
) -> list[tuple[int, Image.Image]]:
    """Generate `samples` images of a prompt from an image of a size that the model generates.

    Returns each one's seed, and the image.

    `start` takes the image's latents [b, c, h, w] and b seeds, and returns further arguments of
    `Sampler.sample`. `decode` takes latents [b, c, h, w] to images.
    """
    sampling = replace(sampling, height=original.height, width=original.width)
    check_texts(model, sampling, [prompt])
    seeds = [sampling.seed + i for i in range(samples)]
    at_once = sampling.batch_size or fitting_batch(model)
    images: list[Image.Image] = []
    with generating(model):
        clean = encode(model, original)
        for place in range(0, samples, at_once):
            some = seeds[place : place + at_once]
            z = clean.expand(len(some), -1, -1, -1)
            negative = negative_conditioning(model, sampling, len(z), [prompt])
            given = (model, sampling, [prompt] * len(z), some, z.shape[1:], negative)
            images += decode(sample_latents(*given, **start(z, some), verbose=progress))
    return list(zip(seeds, images, strict=True))


def psnr(first: Image.Image, second: Image.Image) -> float:
    """Return the peak signal-to-noise ratio of two RGB images of one size, in dB.

    It is infinite if they are equal.
    """
    a, b = (np.asarray(image.convert("RGB"), dtype=np.float64) for image in (first, second))
    error = float(((a - b) ** 2).mean())
    return float("inf") if error == 0 else float(10 * np.log10(255**2 / error))
