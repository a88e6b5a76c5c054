"""Small parts of the U-Net."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint as torch_checkpoint


def check_sizes(**values: int | Sequence[int]) -> None:
    """Raise ValueError for the first of the named sizes that is no whole number of at least 1.

    A sequence must hold one size or more.
    """
    for name, value in values.items():
        several = not isinstance(value, int)
        sizes = list(value) if isinstance(value, Sequence) else [value]
        if not sizes or not all(isinstance(size, int) and size >= 1 for size in sizes):
            what = "hold whole numbers" if several else "be a whole number"
            got = sizes if several else value
            raise ValueError(f"{name} must {what} of at least 1, got {got}")


def timestep_embedding(timesteps: Tensor, dim: int, max_period: float = 10000.0) -> Tensor:
    """Sinusoids of the timesteps [b], cosines first: float32 [b, dim] (an odd last place is 0)."""
    half = dim // 2
    rates = torch.arange(half, device=timesteps.device, dtype=torch.float32) / half
    angles = timesteps[:, None].float() * torch.exp(-math.log(max_period) * rates)[None]
    out = torch.cat([angles.cos(), angles.sin()], dim=-1)
    return torch.nn.functional.pad(out, (0, dim % 2))


def zero_module(module: nn.Module) -> nn.Module:
    """Set a module's weights to zero, so that a residual branch starts at zero."""
    for weight in module.parameters():
        nn.init.zeros_(weight)
    return module


def checkpoint(function: Callable[..., Tensor], enabled: bool, *inputs: Any) -> Tensor:
    """Call `function(*inputs)`; if `enabled`, keep no activations but compute them again.

    Gradients reach both the inputs and the function's own weights.
    """
    if enabled and torch.is_grad_enabled():
        result: Tensor = torch_checkpoint(function, *inputs, use_reentrant=False)
        return result
    return function(*inputs)


class GroupNorm32(nn.GroupNorm):
    """GroupNorm computed in float32 whatever the input's precision; the published eps is 1e-5."""

    def forward(self, x: Tensor) -> Tensor:
        if x.dtype == torch.float32 or torch.is_autocast_enabled(x.device.type):
            return super().forward(x)
        weight, bias = self.weight.float(), self.bias.float()
        out = torch.nn.functional.group_norm(x.float(), self.num_groups, weight, bias, self.eps)
        return out.to(x.dtype)
