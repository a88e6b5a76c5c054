"""The noise schedule: twelve tables over the timesteps, computed in double precision."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

Table = npt.NDArray[np.float64]


def make_beta_schedule(
    schedule: str,
    timesteps: int,
    linear_start: float = 1e-4,
    linear_end: float = 2e-2,
    cosine_s: float = 8e-3,
) -> Table:
    """Return the betas, float64 [timesteps].

    Args:
        schedule: `linear` is linear in √β (the published models); `sqrt_linear` is linear in β;
            `sqrt` is the square root of that; `cosine` is that of Nichol & Dhariwal 2021.
        timesteps: number of betas.
        linear_start: the first β; for `sqrt`, its square.
        linear_end: the last β; for `sqrt`, its square.
        cosine_s: offset of `cosine`.
    """
    if schedule == "linear":
        return np.linspace(linear_start**0.5, linear_end**0.5, timesteps) ** 2
    if schedule == "sqrt_linear":
        return np.linspace(linear_start, linear_end, timesteps)
    if schedule == "sqrt":
        return np.linspace(linear_start, linear_end, timesteps) ** 0.5
    if schedule == "cosine":
        t = np.arange(timesteps + 1) / timesteps + cosine_s
        alphas = np.cos(t / (1 + cosine_s) * np.pi / 2) ** 2
        return np.clip(1 - alphas[1:] / alphas[:-1], 0, 0.999)
    raise ValueError(f"beta_schedule must be linear, sqrt_linear, sqrt or cosine, got {schedule!r}")


@dataclass(frozen=True)
class Schedule:
    """The schedule's tables, each float32 [timesteps]; field names are those of checkpoints."""

    betas: Tensor
    alphas_cumprod: Tensor
    alphas_cumprod_prev: Tensor
    sqrt_alphas_cumprod: Tensor
    sqrt_one_minus_alphas_cumprod: Tensor
    log_one_minus_alphas_cumprod: Tensor
    sqrt_recip_alphas_cumprod: Tensor
    sqrt_recipm1_alphas_cumprod: Tensor
    posterior_variance: Tensor
    posterior_log_variance_clipped: Tensor
    posterior_mean_coef1: Tensor
    posterior_mean_coef2: Tensor

    def tables(self) -> dict[str, Tensor]:
        """Return the tables by name, in the order of checkpoints."""
        return {field.name: getattr(self, field.name) for field in fields(self)}


def make_schedule(betas: Table | Sequence[float]) -> Schedule:
    """Derive every table from the betas (Ho et al. 2020, equations 4 and 7).

    Args:
        betas: β_t, each in (0, 1).

    Raises:
        ValueError: fewer than two betas, or one out of range.
    """
    betas = np.asarray(betas, dtype=np.float64)
    if betas.ndim != 1 or len(betas) < 2:
        raise ValueError(f"timesteps must be at least 2, got betas of shape {list(betas.shape)}")
    if not ((betas > 0) & (betas < 1)).all():
        raise ValueError(
            f"betas must lie between 0 and 1, got {betas.min():g} to {betas.max():g}: check "
            "linear_start and linear_end"
        )
    alphas = 1.0 - betas
    acp = np.cumprod(alphas)
    prev = np.append(1.0, acp[:-1])
    variance = betas * (1 - prev) / (1 - acp)
    tables = {
        "betas": betas,
        "alphas_cumprod": acp,
        "alphas_cumprod_prev": prev,
        "sqrt_alphas_cumprod": np.sqrt(acp),
        "sqrt_one_minus_alphas_cumprod": np.sqrt(1 - acp),
        "log_one_minus_alphas_cumprod": np.log(1 - acp),
        "sqrt_recip_alphas_cumprod": np.sqrt(1 / acp),
        "sqrt_recipm1_alphas_cumprod": np.sqrt(1 / acp - 1),
        "posterior_variance": variance,
        # The variance is 0 at the first step; its logarithm is kept finite.
        "posterior_log_variance_clipped": np.log(np.maximum(variance, 1e-20)),
        "posterior_mean_coef1": betas * np.sqrt(prev) / (1 - acp),
        "posterior_mean_coef2": (1 - prev) * np.sqrt(alphas) / (1 - acp),
    }
    # from_numpy keeps real values also where a model is built on the meta device.
    return Schedule(**{k: torch.from_numpy(v.astype(np.float32)) for k, v in tables.items()})
