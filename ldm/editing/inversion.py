"""DDIM inversion: the noise from which a sampler generates a given latent, and images from it.

Sampling by DDIM without fresh noise (η = 0) is a deterministic path from x_T to x_0, and following
it backwards finds an x_T for any x_0 (Song et al., arXiv 2010.02502, section 4.3). Bipartite
inversion (Gal et al., figure 11) keeps that x_T and changes the prompt. With strong guidance the
new images lose the given image, and with weak guidance they ignore the text.

Notation as in `ldm.models.diffusion.sampler`: ā_t is `alphas_cumprod[t]`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from PIL import Image
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor
from tqdm import tqdm

from ldm.editing.images import encode
from ldm.image_io import to_pil
from ldm.inference import generating
from ldm.models.diffusion.ddim import DDIMSampler
from ldm.models.diffusion.sampler import (
    Conditioning,
    DiffusionModel,
    check_conditioning,
    guided_denoiser,
    host_alphas,
    make_timesteps,
    timestep_batch,
)
from ldm.sampling import Sampling
from ldm.util import UserError, at_least, write_whole

if TYPE_CHECKING:
    from ldm.models.diffusion.ddpm import LatentDiffusion

STEPS = 250
FORMAT = "ldm-inverted-noise"
DEFAULTS = Sampling(steps=STEPS, scale=1.0)


def ascend(x: Tensor, eps: Tensor, alpha: float, alpha_next: float) -> Tensor:
    """Return x after a transition from ā to the noisier ā': DDIM eq. 12 inverted, for a known ε.

    x + √ā'·[(√(1/ā) − √(1/ā'))·x + (√(1/ā' − 1) − √(1/ā − 1))·ε], ā' being `alpha_next`.
    """
    of_x = math.sqrt(1 / alpha) - math.sqrt(1 / alpha_next)
    of_eps = math.sqrt(1 / alpha_next - 1) - math.sqrt(1 / alpha - 1)
    return x + math.sqrt(alpha_next) * (of_x * x + of_eps * eps)


@torch.no_grad()
def invert(
    model: DiffusionModel,
    x_0: Tensor,
    conditioning: Conditioning = None,
    *,
    steps: int = STEPS,
    scale: float = 1.0,
    unconditional: Conditioning | None = None,
    refinements: int = 0,
    verbose: bool = False,
) -> Tensor:
    """Find the noise x_T from which the DDIM sampler generates x_0.

    Without refinements this is the paper's procedure: x_0 is at the first of S timesteps, and there
    are S − 1 transitions. The sampler steps from (x', t') to (x, t) by the noise predicted at (x',
    t'). In the other direction x' is not known yet, so the noise predicted at (x, t) is used. Its
    error is of the order of a step.

    With refinements it inverts the sampler exactly in the limit. There is one transition more, from
    ā_0, where the sampler ends. Each refinement predicts again at the x' found: a fixed-point
    iteration towards the x' from which the sampler steps to x. With few steps, or with guidance,
    this reconstructs far better. It costs 1 + refinements predictions a step.

    Args:
        model: predicts noise.
        x_0: clean latents, [b, c, h, w].
        conditioning: what `apply_model` takes, for b samples.
        steps: S, 2..num_timesteps.
        scale: guidance scale; 1 is no guidance.
        unconditional: in the form of `conditioning`; needed for guidance.
        refinements: see above.
        verbose: show a progress bar.

    Returns:
        x_T, [b, c, h, w].

    Raises:
        ValueError: an argument out of range, or conditioning for another batch size.
    """
    if steps < 2:
        raise ValueError(f"steps must lie in 2..{model.num_timesteps}, got {steps}")
    at_least(0, refinements=refinements)
    check_conditioning("conditioning", conditioning, len(x_0))
    check_conditioning("unconditional", unconditional, len(x_0))
    timesteps = make_timesteps(steps, model.num_timesteps)
    if refinements and timesteps[0]:
        timesteps = [0, *timesteps]
    alphas, x = host_alphas(model), x_0.to(model.device)
    denoise = guided_denoiser(model, conditioning, unconditional, scale)
    pairs = list(pairwise(timesteps))
    for t, t_next in tqdm(pairs, desc="inversion", disable=not verbose, leave=False):
        found = ascend(x, denoise(x, timestep_batch(x, t)), alphas[t], alphas[t_next])
        for _ in range(refinements):
            eps = denoise(found, timestep_batch(x, t_next))
            found = ascend(x, eps, alphas[t], alphas[t_next])
        x = found
    return x


@dataclass(frozen=True)
class InvertedNoise:
    """The noise of an image, and how it was found.

    Attributes:
        noise: x_T, float32 [1, c, h, w] on the CPU.
        prompt: the prompt that describes the image.
        steps: S, the steps of the inversion and of generation.
        scale: guidance scale of the inversion.
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
    """Find the noise from which a model, with its words loaded, generates an image by DDIM.

    The image has a size that the model generates (`ldm.editing.images.model_size`). Only the number
    of steps of `sampling`, at least 2, and its guidance scale are used. `refinements` are further
    predictions a step, which reconstruct better; 0 is the paper's formula (see `invert`).
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

    The model must be the one with which the noise was found. The prompts are one batch. Scale 1 and
    the noise's own prompt reconstruct the image.
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
    """Write inverted noise as safetensors; the header says how it was found."""
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
