"""DDIM inversion: the noise from which a sampler generates a given latent (bipartite inversion).

Sampling by DDIM without fresh noise (η = 0) is a deterministic path from x_T to x_0, and following
it backwards finds an x_T for any x_0 (Song et al., arXiv 2010.02502, section 4.3). The paper
(Gal et al., figure 11) keeps that x_T and changes the prompt.

Notation as in `ldm.models.diffusion.sampler`: ā_t is `alphas_cumprod[t]`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor
from tqdm import tqdm

from ldm.models.diffusion.ddim import DDIMSampler
from ldm.models.diffusion.sampler import (
    Conditioning,
    Denoiser,
    DiffusionModel,
    check_conditioning,
    guided_denoiser,
    host_alphas,
    make_timesteps,
    timestep_batch,
)
from ldm.util import at_least

STEPS = 250


@dataclass(frozen=True)
class Ascent:
    """One transition, from timestep t to the noisier t_next; alpha and alpha_next are ā there."""

    t: int
    t_next: int
    alpha: float
    alpha_next: float

    def advance(self, x: Tensor, eps: Tensor) -> Tensor:
        """Return x after the transition, the inverse of DDIM eq. 12 for a known ε.

        x + √ā'·[(√(1/ā) − √(1/ā'))·x + (√(1/ā' − 1) − √(1/ā − 1))·ε], ā' being `alpha_next`.
        """
        of_x = math.sqrt(1 / self.alpha) - math.sqrt(1 / self.alpha_next)
        of_eps = math.sqrt(1 / self.alpha_next - 1) - math.sqrt(1 / self.alpha - 1)
        return x + math.sqrt(self.alpha_next) * (of_x * x + of_eps * eps)


def make_ascents(timesteps: Sequence[int], alphas_bar: Sequence[float]) -> list[Ascent]:
    """Plan the transitions between `timesteps`, ascending: one fewer than there are."""
    return [Ascent(t, u, alphas_bar[t], alphas_bar[u]) for t, u in pairwise(timesteps)]


def ascend(
    denoise: Denoiser,
    x: Tensor,
    ascents: Sequence[Ascent],
    refinements: int = 0,
    callback: Callable[[int], object] | None = None,
) -> Tensor:
    """Follow transitions from x [b, c, h, w] to its noise, [b, c, h, w], the least noisy first.

    The sampler comes down from (x', t') with the noise that it predicts *there*; on the way up x'
    is not known yet, and the noise predicted at (x, t) stands in for it, wrong by the order of a
    step. Each refinement predicts again at the x' found, which closes in on the x' that the sampler
    does take back to x: a fixed-point iteration. `callback` gets each transition's number after it.
    """
    for number, ascent in enumerate(ascents):
        found = ascent.advance(x, denoise(x, timestep_batch(x, ascent.t)))
        for _ in range(refinements):
            found = ascent.advance(x, denoise(found, timestep_batch(x, ascent.t_next)))
        x = found
        if callback is not None:
            callback(number)
    return x


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
    """Find the noise x_T that `resample` takes back to x_0.

    Without refinements this is the paper's procedure: x_0 stands at the first of S timesteps, S − 1
    transitions. With refinements it is the sampler's mirror: one transition more, from ā_0, where
    the sampler ends, and each solved as `ascend` says; at few steps, or with guidance, that
    reconstructs far better, at 1 + refinements predictions a step.

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
    ascents = make_ascents(timesteps, host_alphas(model))
    denoise = guided_denoiser(model, conditioning, unconditional, scale)
    with tqdm(total=len(ascents), desc="inversion", disable=not verbose, leave=False) as bar:
        return ascend(denoise, x_0.to(model.device), ascents, refinements, lambda _: bar.update())


def resample(
    model: DiffusionModel,
    x_T: Tensor,
    conditioning: Conditioning = None,
    *,
    steps: int = STEPS,
    scale: float = 1.0,
    unconditional: Conditioning | None = None,
    verbose: bool = False,
) -> Tensor:
    """Sample latents from inverted noise by DDIM, η = 0; arguments as in `invert`."""
    latents, _ = DDIMSampler(model).sample(
        S=steps,
        batch_size=len(x_T),
        shape=x_T.shape[1:],
        conditioning=conditioning,
        unconditional_guidance_scale=scale,
        unconditional_conditioning=unconditional,
        x_T=x_T,
        verbose=verbose,
    )
    return latents
