"""DDIM sampling (Song et al., arXiv 2010.02502). The class name is public."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from ldm.models.diffusion.sampler import Denoiser, Sampler, Step, timestep_batch


class DDIMSampler(Sampler):
    """Each step uses the noise predicted at its own timestep."""

    name = "DDIM"

    def predictor(self, denoise: Denoiser) -> Callable[[Tensor, Step], Tensor]:
        """Return the (x, step) -> ε that evaluates the network once a step."""
        return lambda x, step: denoise(x, timestep_batch(x, step.t))
