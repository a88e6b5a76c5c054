"""Generate images from an image and a prompt (SDEdit, Meng et al., arXiv 2108.01073).

The latent of the image is noised to a timestep, and the sampler continues from there. With more
noise, the prompt decides more of the image.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from PIL import Image
from torch import Tensor

from ldm.editing.images import generate_from, model_size, resized
from ldm.image_io import to_pil
from ldm.inference import GeneratedImage, make_sampler, seeded_noise
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
    plan = make_sampler(model, sampling).plan(sampling.steps, sampling.eta)
    skip = len(plan) - max(1, round(strength * len(plan)))
    width, height = model_size(model, image.size)
    settings = {**sampling.metadata(), "height": height, "width": width, "strength": strength}

    def noised(z: Tensor, seeds: Sequence[int]) -> dict[str, Any]:
        noise = seeded_noise(seeds)(0, z.shape).to(z)
        return {"x_T": model.q_sample(z, timestep_batch(z, plan[skip].t), noise), "skip": skip}

    def decode(latents: Tensor) -> Iterator[Image.Image]:
        return map(to_pil, model.decode_first_stage(latents).float())

    original = resized(image, (width, height))
    made = generate_from(model, original, prompt, sampling, samples, noised, decode, progress)
    return [
        GeneratedImage(one, prompt, seed, {"prompt": prompt, **settings, "seed": seed})
        for seed, one in made
    ]
