"""DDIM inversion: the noise from which a sampler generates a given latent (bipartite inversion).

Sampling by DDIM without fresh noise (η = 0) is a deterministic path from x_T to x_0, and following
it backwards finds an x_T for any x_0 (Song et al., arXiv 2010.02502, section 4.3). The paper
(Gal et al., figure 11) keeps that x_T and changes the prompt.

Notation as in `ldm.models.diffusion.sampler`: ā_t is `alphas_cumprod[t]`.
"""

from __future__ import annotations

import math
from itertools import pairwise

import torch
from torch import Tensor
from tqdm import tqdm

from ldm.models.diffusion.sampler import (
    Conditioning,
    DiffusionModel,
    check_conditioning,
    guided_denoiser,
    host_alphas,
    make_timesteps,
    timestep_batch,
)
from ldm.util import at_least

STEPS = 250


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
    """Find the noise x_T that the DDIM sampler takes back to x_0.

    Without refinements this is the paper's procedure: x_0 stands at the first of S timesteps, S − 1
    transitions. The sampler comes down from (x', t') with the noise that it predicts *there*; on
    the way up x' is not known yet, and the noise predicted at (x, t) stands in for it, wrong by the
    order of a step.

    With refinements it is the sampler's mirror: one transition more, from ā_0, where the sampler
    ends. Each refinement predicts again at the x' found, a fixed-point iteration towards the x'
    that the sampler does take back to x. At few steps, or with guidance, that reconstructs far
    better, at 1 + refinements predictions a step.

    Args:
        model: predicts noise.
        x_0: clean latents, [b, c, h, w].
        conditioning: what `apply_model` takes, for b samples.
        steps: S, 2..num_timesteps.
        scale: of classifier-free guidance of ε; 1 is none.
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
