"""The common part of the samplers: timesteps, guidance, masks and the loop to a latent.

A sampler is a small loop over a *denoiser*, which predicts the noise in x_t, and a *noise source*.
`sample` builds the denoiser from the model, the conditioning and the guidance scale. A caller gives
a noise source if each image shall depend on its own seed alone.

Notation, after DDIM (Song et al., arXiv 2010.02502): ā_t is `alphas_cumprod[t]`,
x_t = √ā_t·x_0 + √(1-ā_t)·ε.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor
from tqdm import tqdm

# (x_t [b,c,h,w], t [b] int64) -> predicted noise [b,c,h,w]
Denoiser = Callable[[Tensor, Tensor], Tensor]
# Conditioning as `apply_model` takes it: a tensor, a list of them, or a mapping of lists.
Conditioning = Any


class NoiseSource(Protocol):
    """Gives a sampler its random numbers, N(0, 1).

    `number` counts them within one call of `sample`: 0 is the starting noise, 1 + 2i the noise that
    step i adds (eta > 0), and 2 + 2i the noise on the part that a mask keeps at step i.
    """

    def __call__(self, number: int, shape: Sequence[int]) -> Tensor:
        """Return noise number `number`."""
        ...


class DiffusionModel(Protocol):
    """The part of a model that a sampler uses."""

    num_timesteps: int

    @property
    def alphas_cumprod(self) -> Tensor:
        """ā_t, [num_timesteps]."""
        ...

    @property
    def device(self) -> torch.device:
        """Device of the latents."""
        ...

    def apply_model(self, x: Tensor, t: Tensor, cond: Conditioning) -> Tensor:
        """Predict the noise in x."""
        ...

    def q_sample(self, x_start: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        """Return x_start noised to t."""
        ...


@dataclass(frozen=True)
class Step:
    """One transition, from timestep t to the one before it.

    Attributes:
        position: place in the loop, 0 for the noisiest.
        t: the timestep that the network sees.
        t_next: the timestep of the next transition; the last one repeats its own.
        alpha: ā at t.
        alpha_prev: ā after the transition.
        sigma: standard deviation of the noise added.
    """

    position: int
    t: int
    t_next: int
    alpha: float
    alpha_prev: float
    sigma: float

    def pred_x0(self, x: Tensor, eps: Tensor) -> Tensor:
        """Return the clean latent that x and its noise imply: (x - √(1-ā_t)·ε) / √ā_t."""
        return (x - math.sqrt(1 - self.alpha) * eps) / math.sqrt(self.alpha)

    def advance(self, x: Tensor, eps: Tensor) -> Tensor:
        """Return the mean of x after the transition: √ā_prev·x̂_0 + √(1-ā_prev-σ²)·ε (eq. 12)."""
        towards_x = math.sqrt(max(1 - self.alpha_prev - self.sigma**2, 0.0))
        return math.sqrt(self.alpha_prev) * self.pred_x0(x, eps) + towards_x * eps


def make_timesteps(steps: int, num_timesteps: int = 1000) -> list[int]:
    """Choose `steps` timesteps, ascending: t_i = floor(i·T/S) + 1.

    If S divides T, they are those of the original, `range(0, T, T // S)` plus one. If S is T, there
    is no room for the shift by one.

    Raises:
        ValueError: `steps` is not in 1..num_timesteps.
    """
    check_steps(steps, num_timesteps)
    shift = 1 if steps < num_timesteps else 0
    return [i * num_timesteps // steps + shift for i in range(steps)]


def check_steps(steps: int, num_timesteps: int) -> None:
    """Raise ValueError where a number of steps is not in 1..num_timesteps."""
    if not 1 <= steps <= num_timesteps:
        raise ValueError(f"S must lie in 1..{num_timesteps}, got {steps}")


def host_alphas(model: DiffusionModel) -> Sequence[float]:
    """Return ā_t in double precision on the host.

    A model that has `alphas_bar` keeps them there, so that sampling copies nothing from the device.
    """
    kept: Sequence[float] | None = getattr(model, "alphas_bar", None)
    return model.alphas_cumprod.detach().cpu().double().tolist() if kept is None else kept


def make_steps(timesteps: Sequence[int], alphas_bar: Sequence[float], eta: float) -> list[Step]:
    """Plan the transitions from the noisiest of `timesteps` (ascending) down.

    The last transition ends at ā_0, as in the original.

    Args:
        timesteps: ascending.
        alphas_bar: ā_t for every timestep of the schedule.
        eta: 0 adds no noise, 1 as much as DDPM.
    """
    plan = []
    for position, index in enumerate(reversed(range(len(timesteps)))):
        alpha = alphas_bar[timesteps[index]]
        alpha_prev = alphas_bar[timesteps[index - 1] if index else 0]
        t_next = timesteps[max(index - 1, 0)]
        plan.append(make_step(position, timesteps[index], t_next, alpha, alpha_prev, eta))
    return plan


def make_step(
    position: int, t: int, t_next: int, alpha: float, alpha_prev: float, eta: float
) -> Step:
    """Make a transition whose noise is σ_t = η·√((1-ā_prev)/(1-ā_t))·√(1-ā_t/ā_prev) (eq. 16)."""
    variance = (1 - alpha_prev) / (1 - alpha) * (1 - alpha / alpha_prev)
    return Step(position, t, t_next, alpha, alpha_prev, eta * math.sqrt(max(variance, 0.0)))


def map_conditioning(function: Callable[..., Tensor], *given: Conditioning) -> Conditioning:
    """Apply a function to the tensors of conditionings of one form; None stays None."""
    first = given[0]
    if isinstance(first, Mapping):
        return {key: map_conditioning(function, *(c[key] for c in given)) for key in first}
    if isinstance(first, list | tuple):
        return [map_conditioning(function, *parts) for parts in zip(*given, strict=True)]
    return None if first is None else function(*given)


def join_conditioning(first: Conditioning, second: Conditioning) -> Conditioning:
    """Stack two conditionings of the same form along the batch."""
    return map_conditioning(lambda *parts: torch.cat(parts), first, second)


def check_conditioning(name: str, conditioning: Conditioning, batch_size: int) -> None:
    """Raise ValueError if a tensor of the conditioning is not for `batch_size` samples."""
    if isinstance(conditioning, Mapping):
        conditioning = list(conditioning.values())
    if isinstance(conditioning, list | tuple):
        for part in conditioning:
            check_conditioning(name, part, batch_size)
    elif isinstance(conditioning, Tensor) and conditioning.shape[0] != batch_size:
        raise ValueError(
            f"{name} is for {conditioning.shape[0]} samples, but batch_size is {batch_size}"
        )


def guided_denoiser(
    model: DiffusionModel,
    conditioning: Conditioning,
    unconditional: Conditioning | None = None,
    scale: float = 1.0,
) -> Denoiser:
    """Predict noise with classifier-free guidance: ε_u + s·(ε_c - ε_u) (Ho & Salimans, 2207.12598).

    Both halves go through the network as one batch, the unconditional half first. Without an
    unconditional conditioning, or with scale 1, the prediction needs no second half.
    """
    if unconditional is None or scale == 1.0:
        return lambda x, t: model.apply_model(x, t, conditioning).to(x.dtype)
    both = join_conditioning(unconditional, conditioning)

    def denoise(x: Tensor, t: Tensor) -> Tensor:
        eps = model.apply_model(torch.cat([x, x]), torch.cat([t, t]), both).to(x.dtype)
        without, with_ = eps.chunk(2)
        return without + scale * (with_ - without)

    return denoise


class Sampler(ABC):
    """The loop from noise to a latent; a subclass chooses the noise prediction of a step."""

    name = "sampler"

    def __init__(self, model: DiffusionModel) -> None:
        self.model = model

    @abstractmethod
    def predictor(self, denoise: Denoiser) -> Callable[[Tensor, Step], Tensor]:
        """Return the (x, step) -> ε of one run; it may remember earlier predictions."""

    @torch.no_grad()
    def sample(
        self,
        S: int,
        batch_size: int,
        shape: Sequence[int],
        conditioning: Conditioning = None,
        *,
        eta: float = 0.0,
        unconditional_guidance_scale: float = 1.0,
        unconditional_conditioning: Conditioning | None = None,
        x_T: Tensor | None = None,
        mask: Tensor | Callable[[Step], Tensor] | None = None,
        x0: Tensor | None = None,
        log_every_t: int = 100,
        verbose: bool = True,
        callback: Callable[[int], object] | None = None,
        img_callback: Callable[[Tensor, int], object] | None = None,
        noise_source: NoiseSource | None = None,
        skip: int = 0,
    ) -> tuple[Tensor, dict[str, list[Tensor]]]:
        """Sample `batch_size` latents in exactly S steps.

        Args:
            S: number of steps, 1..num_timesteps.
            batch_size: number of latents b.
            shape: [c, h, w] of one latent.
            conditioning: as `apply_model` takes it, for b samples.
            eta: 0 is deterministic (DDIM), 1 adds as much noise as DDPM.
            unconditional_guidance_scale: 1 is no guidance.
            unconditional_conditioning: in the form of `conditioning`; needed for guidance.
            x_T: starting noise [b,c,h,w]; by default from `noise_source`.
            mask: broadcasts to [b,c,h,w]; 1 keeps x0, 0 samples anew; or a function of the step.
            x0: clean latent [b,c,h,w] that the mask keeps.
            log_every_t: keep the first step and, counted from the last, one in so many.
            verbose: show a progress bar.
            callback: called with the step's number after each step.
            img_callback: called with (predicted x_0, the step's number).
            noise_source: gives the noise; default: torch's global generator.
            skip: number of steps left out at the noisy end; x_T is then the latent at that level.

        Returns:
            The latents [b,c,h,w], and {"x_inter": [...], "pred_x0": [...]}.

        Raises:
            ValueError: S out of range, a mask without x0, conditioning for another batch size.
        """
        if (mask is None) != (x0 is None):
            raise ValueError("mask and x0 go together: give both or neither")
        check_conditioning("conditioning", conditioning, batch_size)
        check_conditioning("unconditional_conditioning", unconditional_conditioning, batch_size)
        steps = self.plan(S, eta)[skip:]
        noise = noise_source or _global_noise
        size = (batch_size, *shape)
        device = self.model.device
        x = x_T if x_T is not None else noise(0, size)
        if tuple(x.shape) != size:
            raise ValueError(f"x_T must have shape {size}, got {tuple(x.shape)}")
        x = x.to(device)
        predict = self.predictor(
            guided_denoiser(
                self.model, conditioning, unconditional_conditioning, unconditional_guidance_scale
            )
        )
        intermediates = {"x_inter": [x], "pred_x0": [x]}
        once = getattr(self.model, "constant_context", nullcontext)
        with once():
            for step in _progress(steps, self.name, verbose):
                if mask is not None and x0 is not None:
                    fresh = noise(2 + 2 * step.position, size).to(x)
                    kept = self.model.q_sample(x0, timestep_batch(x, step.t), fresh)
                    keep = mask(step) if callable(mask) else mask
                    x = kept * keep + (1 - keep) * x
                eps = predict(x, step)
                pred_x0, x = step.pred_x0(x, eps), step.advance(x, eps)
                if step.sigma > 0:
                    x = x + step.sigma * noise(1 + 2 * step.position, size).to(x)
                if callback is not None:
                    callback(step.position)
                if img_callback is not None:
                    img_callback(pred_x0, step.position)
                remaining = S - 1 - step.position
                if remaining % log_every_t == 0 or step.position == skip:
                    intermediates["x_inter"].append(x)
                    intermediates["pred_x0"].append(pred_x0)
        return x, intermediates

    def plan(self, steps: int, eta: float = 0.0) -> list[Step]:
        """Return the transitions of a run of `steps` steps, noisiest first."""
        timesteps = make_timesteps(steps, self.model.num_timesteps)
        return make_steps(timesteps, host_alphas(self.model), eta)


def timestep_batch(x: Tensor, t: int) -> Tensor:
    """Repeat a timestep for each of x's samples: int64 [b]."""
    return torch.full((x.shape[0],), t, device=x.device, dtype=torch.long)


def _global_noise(number: int, shape: Sequence[int]) -> Tensor:  # noqa: ARG001 - NoiseSource's form
    return torch.randn(*shape)


def _progress(steps: list[Step], name: str, verbose: bool) -> Iterable[Step]:
    bar: Iterable[Step] = tqdm(steps, desc=name, disable=not verbose, leave=False)
    return bar
