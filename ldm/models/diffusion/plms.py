"""PLMS sampling: pseudo linear multistep (Liu et al., arXiv 2202.09778); a public class name."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

import torch
from torch import Tensor

from ldm.models.diffusion.sampler import Denoiser, Sampler, Step, timestep_batch

# Adams-Bashforth weights of the newest prediction and the ones before it, by how many there are.
ADAMS_BASHFORTH = {
    2: (3 / 2, -1 / 2),
    3: (23 / 12, -16 / 12, 5 / 12),
    4: (55 / 24, -59 / 24, 37 / 24, -9 / 24),
}


class PLMSSampler(Sampler):
    """Each step extrapolates from up to four predictions; S steps take S + 1 evaluations."""

    name = "PLMS"

    def plan(self, steps: int, eta: float = 0.0) -> list[Step]:
        """Return the transitions of a run; the method is an ODE solver, so no step adds noise.

        Raises:
            ValueError: eta is not 0.
        """
        if eta != 0:
            raise ValueError(f"eta must be 0 with PLMS, got {eta}; use DDIM for eta > 0")
        return super().plan(steps, eta)

    def predictor(self, denoise: Denoiser) -> Callable[[Tensor, Step], Tensor]:
        """Return improved Euler first, then Adams-Bashforth of order 2, 3, 4 (eqs. 9 and 12)."""
        predictions: deque[Tensor] = deque(maxlen=4)  # newest first

        def predict(x: Tensor, step: Step) -> Tensor:
            eps = denoise(x, timestep_batch(x, step.t))
            predictions.appendleft(eps)
            if len(predictions) == 1:
                ahead = step.advance(x, eps)
                return (eps + denoise(ahead, timestep_batch(x, step.t_next))) / 2
            weights = ADAMS_BASHFORTH[len(predictions)]
            return torch.stack([w * e for w, e in zip(weights, predictions, strict=True)]).sum(
                dim=0
            )

        return predict
