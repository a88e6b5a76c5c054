"""Bipartite inversion of an image: find its noise once, then generate from it with other prompts.

Gal et al., figure 11: under strong guidance the new images drift away, under weak guidance they
ignore the text.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from PIL import Image
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from ldm.editing.images import encode
from ldm.editing.inversion import STEPS, invert
from ldm.image_io import to_pil
from ldm.inference import generating
from ldm.models.diffusion.ddim import DDIMSampler
from ldm.sampling import Sampling
from ldm.util import UserError, write_whole

if TYPE_CHECKING:
    from ldm.models.diffusion.ddpm import LatentDiffusion

FORMAT = "ldm-inverted-noise"
DEFAULTS = Sampling(steps=STEPS, scale=1.0)


@dataclass(frozen=True)
class InvertedNoise:
    """An image's noise, and how it was found.

    Attributes:
        noise: x_T, float32 [1, c, h, w] on the CPU.
        prompt: that describes the image.
        steps: S; generation from the noise takes as many.
        scale: of guidance on the way.
        refinements: further predictions a step; 0 is the paper's formula.
        facts: where it comes from, as texts: image, checkpoint, words.
    """

    noise: Tensor
    prompt: str
    steps: int = STEPS
    scale: float = 1.0
    refinements: int = 0
    facts: dict[str, str] | None = None


def invert_image(
    model: LatentDiffusion,
    original: Image.Image,
    prompt: str,
    sampling: Sampling = DEFAULTS,
    *,
    refinements: int = 0,
    progress: bool = False,
) -> InvertedNoise:
    """Find the noise from which a model generates an image by DDIM.

    Args:
        model: with its words loaded.
        original: image of a size that the model generates (`ldm.editing.images.model_size`).
        prompt: such as "a photo of *".
        sampling: its number of steps, at least 2, and its guidance scale; DDIM with eta 0.
        refinements: further predictions a step, which reconstruct better; 0 is the paper's formula
            (see `ldm.editing.inversion.invert`).
        progress: show a bar.
    """
    if sampling.sampler != "ddim" or sampling.eta:
        raise ValueError(f"sampler must be ddim with eta 0, got {sampling.sampler}, {sampling.eta}")
    steps, scale = sampling.steps, sampling.scale
    with generating(model):
        noise = invert(
            model,
            encode(model, original),
            model.get_learned_conditioning([prompt]),
            steps=steps,
            scale=scale,
            unconditional=model.get_learned_conditioning([""]) if scale != 1 else None,
            refinements=refinements,
            verbose=progress,
        )
    return InvertedNoise(noise.float().cpu(), prompt, steps, scale, refinements)


def regenerate(
    model: LatentDiffusion,
    noise: InvertedNoise,
    prompts: Sequence[str],
    scale: float = 1.0,
    *,
    progress: bool = False,
) -> list[Image.Image]:
    """Generate images of prompts from inverted noise, in as many steps as the inversion took.

    The model is the one that the noise was found with; the prompts are one batch. With scale 1 and
    the noise's own prompt the image comes back.
    """
    b = len(prompts)
    with generating(model):
        empty = model.get_learned_conditioning([""] * b) if scale != 1 else None
        latents, _ = DDIMSampler(model).sample(
            S=noise.steps,
            batch_size=b,
            shape=noise.noise.shape[1:],
            conditioning=model.get_learned_conditioning(list(prompts)),
            unconditional_guidance_scale=scale,
            unconditional_conditioning=empty,
            x_T=noise.noise.expand(b, -1, -1, -1),
            verbose=progress,
        )
        return [to_pil(decoded) for decoded in model.decode_first_stage(latents)]


@torch.no_grad()
def reconstruction(model: LatentDiffusion, original: Image.Image) -> Image.Image:
    """Return an image through the autoencoder alone: the best that any inversion can reach."""
    return to_pil(model.decode_first_stage(encode(model, original))[0])


def write_noise(path: Path, found: InvertedNoise) -> None:
    """Write inverted noise as safetensors, how it was found in the header."""
    settings = {k: v for k, v in asdict(found).items() if k != "noise"}
    data = save(
        {"noise": found.noise.contiguous()},
        {"format": FORMAT, "inversion": json.dumps(settings, ensure_ascii=False)},
    )
    write_whole(path, data)


def read_noise(path: str | Path) -> InvertedNoise:
    """Read what `write_noise` wrote; UserError for any other file."""
    path = Path(path)
    if not path.is_file():
        raise UserError(f"noise {str(path)!r} does not exist: make it with scripts/invert.py")
    try:
        with safe_open(path, framework="pt") as file:
            header = file.metadata() or {}
            if header.get("format") != FORMAT:
                raise UserError(f"{str(path)!r} holds no inverted noise: scripts/invert.py does")
            return InvertedNoise(file.get_tensor("noise"), **json.loads(header["inversion"]))
    except (SafetensorError, KeyError, TypeError, ValueError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{str(path)!r} is damaged: make it again with scripts/invert.py") from None
