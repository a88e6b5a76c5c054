"""Generate images from an image and a prompt (SDEdit, Meng et al., arXiv 2108.01073).

The latent of the image is noised to a timestep, and the sampler continues from there. With more
noise, the prompt decides more of the image.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from PIL import Image

from ldm.editing.images import encode, model_size, resized
from ldm.image_io import to_pil
from ldm.inference import (
    GeneratedImage,
    check_texts,
    fitting_batch,
    generating,
    make_sampler,
    negative_conditioning,
    sample_latents,
    seeded_noise,
)
from ldm.models.diffusion.sampler import timestep_batch
from ldm.sampling import Sampling
from ldm.util import at_least

if TYPE_CHECKING:
    from ldm.models.diffusion.ddpm import LatentDiffusion


def from_image(
    model: LatentDiffusion,
    image: Image.Image,
    prompt: str,
    sampling: Sampling,
    *,
    samples: int = 1,
    strength: float = 0.75,
    progress: bool = False,
) -> list[GeneratedImage]:
    """Generate images of a prompt that start from a noised image.

    Args:
        model: with its words loaded.
        image: RGB of any size; it is scaled to the model's own.
        prompt: the text.
        sampling: the settings; `steps` counts the whole run. The size is that of the image.
        samples: number of images; image i has seed + i.
        strength: share of the steps to take, in (0, 1], at least one step. 1 starts from pure
            noise.
        progress: show a bar for each batch.

    Raises:
        ValueError: strength or samples out of range.
    """
    if not 0 < strength <= 1:
        raise ValueError(f"strength must lie in (0, 1], got {strength}")
    at_least(1, samples=samples)
    check_texts(model, sampling, [prompt])
    plan = make_sampler(model, sampling).plan(sampling.steps, sampling.eta)
    skip = len(plan) - max(1, round(strength * len(plan)))
    width, height = model_size(model, image.size)
    settings = {**sampling.metadata(), "height": height, "width": width, "strength": strength}
    seeds = [sampling.seed + i for i in range(samples)]
    at_once = sampling.batch_size or fitting_batch(model)
    made: list[GeneratedImage] = []
    with generating(model):
        clean = encode(model, resized(image, (width, height)))
        for start in range(0, samples, at_once):
            some = seeds[start : start + at_once]
            b = len(some)
            z = clean.expand(b, -1, -1, -1)
            noise = seeded_noise(some)(0, z.shape).to(z)
            latents = sample_latents(
                model,
                sampling,
                [prompt] * b,
                some,
                z.shape[1:],
                negative_conditioning(model, sampling, b, [prompt]),
                x_T=model.q_sample(z, timestep_batch(z, plan[skip].t), noise),
                skip=skip,
                verbose=progress,
            )
            for one, seed in zip(model.decode_first_stage(latents).float(), some, strict=True):
                own = {"prompt": prompt, **settings, "seed": seed}
                made.append(GeneratedImage(to_pil(one), prompt, seed, own))
    return made
