"""Drawing from an image and a prompt: the guided initial image that figure 5 compares with.

The image's latent is noised to a timestep and the sampler goes on from there (SDEdit, Meng et
al., arXiv 2108.01073): the more noise, the more the prompt decides.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from PIL import Image

from ldm.editing.images import encode, model_size, resized
from ldm.image_io import to_pil
from ldm.inference import GeneratedImage, seeded_noise
from ldm.models.diffusion.ddim import DDIMSampler
from ldm.models.diffusion.sampler import guided_denoiser, timestep_batch


@torch.no_grad()
def from_image(
    model: Any,
    picture: Image.Image,
    prompt: str,
    seeds: Sequence[int],
    *,
    strength: float = 0.7,
    steps: int = 50,
    scale: float = 5.0,
) -> list[GeneratedImage]:
    """Draw a prompt from a noised image, once for each seed.

    Args:
        model: a `LatentDiffusion`.
        picture: of any size; scaled to the model's own.
        prompt: the text.
        seeds: of the noise, one an image.
        strength: the share of the sampler's steps that are made, in (0, 1]; 1 begins at noise.
        steps: of the whole sampler, 1..1000; at least one is made.
        scale: of classifier-free guidance.

    Raises:
        ValueError: strength out of range, or no seeds.
    """
    if not 0 < strength <= 1:
        raise ValueError(f"strength must lie in (0, 1], got {strength}")
    if not seeds:
        raise ValueError("seeds must hold at least one, got none")
    sampler = DDIMSampler(model)
    plan = sampler.plan(steps)
    plan = plan[len(plan) - max(1, round(strength * len(plan))) :]
    size = model_size(model, picture.size)
    clean = encode(model, resized(picture, size)).expand(len(seeds), -1, -1, -1)
    noise = seeded_noise(seeds)(0, clean.shape).to(clean)
    x = model.q_sample(clean, timestep_batch(clean, plan[0].t), noise)
    conditioning = model.get_learned_conditioning([prompt] * len(seeds))
    negative = model.get_learned_conditioning([""] * len(seeds)) if scale != 1 else None
    predict = sampler.predictor(guided_denoiser(model, conditioning, negative, scale))
    with model.ema_scope():
        for step in plan:
            x = step.advance(x, predict(x, step))
        decoded = model.decode_first_stage(x)
    settings = {"steps": steps, "scale": scale, "strength": strength, "sampler": "ddim"}
    return [
        GeneratedImage(to_pil(one), prompt, seed, {"prompt": prompt, "seed": seed, **settings})
        for one, seed in zip(decoded.float().cpu(), seeds, strict=True)
    ]
