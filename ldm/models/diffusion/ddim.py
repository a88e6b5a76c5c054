"""DDIM sampling (Song et al., arXiv 2010.02502). The class name is public."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ldm.models.diffusion.sampler import Conditioning, Denoiser, Sampler, Step, timestep_batch
from ldm.util import one_of


class DDIMSampler(Sampler):
    """Each step uses the noise predicted at its own timestep.

    `make_schedule`, `stochastic_encode` and `decode` are what the original's img2img calls.

    Attributes:
        ddim_timesteps: int64 [S], ascending; like those below, `make_schedule` sets it.
        ddim_alphas, ddim_alphas_prev: ā at each timestep and after its transition, [S].
        ddim_sqrt_one_minus_alphas: √(1 - ā), [S].
        ddim_sigmas: standard deviation of the noise that each transition adds, [S].
    """

    name = "DDIM"
    ddim_timesteps: Tensor | None = None
    ddim_eta = 0.0

    def predictor(self, denoise: Denoiser) -> Callable[[Tensor, Step], Tensor]:
        """Return the (x, step) -> ε that evaluates the network once a step."""
        return lambda x, step: denoise(x, timestep_batch(x, step.t))

    def make_schedule(
        self,
        ddim_num_steps: int,
        ddim_discretize: str = "uniform",
        ddim_eta: float = 0.0,
        verbose: bool = True,  # noqa: ARG002
    ) -> None:
        """Choose the steps of `stochastic_encode` and `decode`; `sample` needs no such call.

        Args:
            ddim_num_steps: number of steps S, 1..num_timesteps.
            ddim_discretize: "uniform".
            ddim_eta: 0 is deterministic, 1 adds as much noise as DDPM.
            verbose: accepted for the original's scripts.

        Raises:
            ValueError: an argument out of range.
        """
        one_of(("uniform",), ddim_discretize=ddim_discretize)
        steps = self.plan(ddim_num_steps, ddim_eta)[::-1]
        device = self.model.device

        def table(values: list[float]) -> Tensor:
            return torch.tensor(values, device=device)

        self.ddim_eta = ddim_eta
        self.ddim_timesteps = torch.tensor([step.t for step in steps], device=device)
        self.ddim_alphas = table([step.alpha for step in steps])
        self.ddim_alphas_prev = table([step.alpha_prev for step in steps])
        self.ddim_sqrt_one_minus_alphas = (1 - self.ddim_alphas).sqrt()
        self.ddim_sigmas = table([step.sigma for step in steps])

    @torch.no_grad()
    def stochastic_encode(
        self,
        x0: Tensor,
        t: Tensor,
        use_original_steps: bool = False,
        noise: Tensor | None = None,
    ) -> Tensor:
        """Return clean latents with noise.

        Args:
            x0: [b, c, h, w].
            t: int64 [b], places in `ddim_timesteps`; with `use_original_steps` timesteps.
            use_original_steps: take the timesteps of the training.
            noise: like x0; the default is torch's N(0, 1).

        Raises:
            ValueError: t out of range, or no `make_schedule` before.
        """
        count = self._count(use_original_steps)
        if not 0 <= int(t.min()) <= int(t.max()) < count:
            raise ValueError(f"t must lie in 0..{count - 1}, got {int(t.max())}")
        if self.ddim_timesteps is not None and not use_original_steps:
            t = self.ddim_timesteps[t]
        return self.model.q_sample(x0, t, torch.randn_like(x0) if noise is None else noise)

    def decode(
        self,
        x_latent: Tensor,
        cond: Conditioning,
        t_start: int,
        unconditional_guidance_scale: float = 1.0,
        unconditional_conditioning: Conditioning | None = None,
        use_original_steps: bool = False,
    ) -> Tensor:
        """Return the latents [b, c, h, w] after the last `t_start` steps, from noised ones.

        Args:
            x_latent: [b, c, h, w].
            cond: as `apply_model` takes it, for b samples.
            t_start: number of steps, 1..S.
            unconditional_guidance_scale: as in `sample`.
            unconditional_conditioning: as in `sample`.
            use_original_steps: as in `stochastic_encode`.

        Raises:
            ValueError: `t_start` out of range, or no `make_schedule` before.
        """
        count = self._count(use_original_steps)
        if not 1 <= t_start <= count:
            raise ValueError(f"t_start must lie in 1..{count}, got {t_start}")
        latents, _ = self.sample(
            S=count,
            batch_size=len(x_latent),
            shape=x_latent.shape[1:],
            conditioning=cond,
            eta=self.ddim_eta,
            unconditional_guidance_scale=unconditional_guidance_scale,
            unconditional_conditioning=unconditional_conditioning,
            x_T=x_latent,
            skip=count - t_start,
            verbose=False,
        )
        return latents

    def _count(self, use_original_steps: bool) -> int:
        """Return the number of steps; ValueError where none were chosen."""
        if use_original_steps:
            return self.model.num_timesteps
        if self.ddim_timesteps is None:
            raise ValueError("call make_schedule first: it chooses the steps")
        return len(self.ddim_timesteps)
