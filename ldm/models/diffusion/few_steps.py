"""Samplers for few steps: Euler, ancestral Euler and DPM-Solver++ 2M.

They start at the last timestep and end without noise, as `diffusers` does with "trailing" timesteps
(Lin et al., arXiv 2305.08891). Karras spacing (Karras et al., arXiv 2206.00364, eq. 5) places the
noise levels σ = √(1/ā - 1) evenly in σ^(1/7) instead. Both Euler samplers are DDIM steps on this
plan: in the variable x/√ā a DDIM step is an Euler step in σ, and η = 1 is the ancestral one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
from torch import Tensor

from ldm.models.diffusion.ddim import DDIMSampler
from ldm.models.diffusion.sampler import (
    Denoiser,
    DiffusionModel,
    Step,
    check_steps,
    host_alphas,
    make_step,
    timestep_batch,
)

RHO = 7.0


def trailing_timesteps(steps: int, num_timesteps: int = 1000) -> list[int]:
    """Choose `steps` timesteps, descending from the last: round(T - i·T/S) - 1."""
    check_steps(steps, num_timesteps)
    return [round(num_timesteps - i * num_timesteps / steps) - 1 for i in range(steps)]


def karras_levels(steps: int, lowest: float, highest: float) -> list[float]:
    """Return `steps` noise levels σ, descending, evenly spaced in σ^(1/ρ)."""
    ends = highest ** (1 / RHO), lowest ** (1 / RHO)
    return [float(level) for level in np.linspace(*ends, steps) ** RHO]


def nearest_timesteps(levels: Sequence[float], alphas_bar: Sequence[float]) -> list[int]:
    """Return the timestep nearest to each noise level σ on the logarithmic scale."""
    known = 0.5 * np.log(1 / np.asarray(alphas_bar) - 1)
    found = np.interp(np.log(levels), known, np.arange(len(known)))
    return [int(t) for t in found.round()]


class EulerSampler(DDIMSampler):
    """Euler's method for the probability-flow ODE in σ: one evaluation a step.

    Args:
        model: predicts the noise.
        karras: use Karras spacing instead of evenly spaced timesteps.
    """

    name = "Euler"
    ETA = 0.0  # of the DDIM steps

    def __init__(self, model: DiffusionModel, karras: bool = False) -> None:
        super().__init__(model)
        self.karras = karras

    def plan(self, steps: int, eta: float = 0.0) -> list[Step]:
        """The transitions of a run, which ends at ā = 1.

        Raises:
            ValueError: `steps` out of range, or eta is not 0.
        """
        if eta != 0:
            raise ValueError(f"eta must be 0 with {self.name}, got {eta}; use DDIM for eta > 0")
        alphas_bar = host_alphas(self.model)
        timesteps = trailing_timesteps(steps, self.model.num_timesteps)
        levels = [alphas_bar[t] for t in timesteps]
        if self.karras:
            ends = (alphas_bar[self._lowest(timesteps)], alphas_bar[timesteps[0]])
            sigmas = karras_levels(steps, *(math.sqrt(1 / alpha - 1) for alpha in ends))
            levels = [1 / (1 + sigma**2) for sigma in sigmas]
            timesteps = nearest_timesteps(sigmas, alphas_bar)
        following = zip(timesteps[1:] + timesteps[-1:], [*levels[1:], 1.0], strict=True)
        return [
            make_step(position, t, t_next, alpha, alpha_prev, self.ETA)
            for position, (t, alpha, (t_next, alpha_prev)) in enumerate(
                zip(timesteps, levels, following, strict=True)
            )
        ]

    def _lowest(self, timesteps: Sequence[int]) -> int:
        """Return the timestep whose noise level is the last one of Karras spacing."""
        return timesteps[-1]


class EulerAncestralSampler(EulerSampler):
    """Each Euler step goes to a lower noise level, and new noise raises it again, as in DDPM."""

    name = "Euler ancestral"
    ETA = 1.0


class DPMSolverSampler(EulerSampler):
    """DPM-Solver++ 2M (Lu et al., arXiv 2211.01095, algorithm 2): one evaluation a step."""

    name = "DPM-Solver++ 2M"

    def predictor(self, denoise: Denoiser) -> Callable[[Tensor, Step], Tensor]:
        """Extrapolate the predicted x_0 from the step before, and return the noise it implies.

        D = x̂ + (x̂ - x̂_before)·h / (2·h_before), where h is a step's change of
        λ = log(√ā / √(1-ā)). The first step and the last, for which h is infinite, take D = x̂.
        """
        before: list[tuple[Tensor, float]] = []

        def predict(x: Tensor, step: Step) -> Tensor:
            eps = denoise(x, timestep_batch(x, step.t))
            found = step.pred_x0(x, eps)
            is_last = step.alpha_prev == 1
            h = math.inf if is_last else _half_log_snr(step.alpha_prev) - _half_log_snr(step.alpha)
            if before and not is_last:
                last, h_last = before.pop()
                before.append((found, h))
                found = found + (found - last) * (h / (2 * h_last))
                return (x - math.sqrt(step.alpha) * found) / math.sqrt(1 - step.alpha)
            before[:] = [(found, h)]
            return eps

        return predict

    def _lowest(self, timesteps: Sequence[int]) -> int:  # noqa: ARG002 - the whole schedule's
        return 0


def _half_log_snr(alpha: float) -> float:
    return 0.5 * math.log(alpha / (1 - alpha))
