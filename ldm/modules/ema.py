"""An exponentially averaged copy of a network's weights."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class LitEma(nn.Module):
    """Shadows of a model's trainable weights, averaged with a decay that warms up.

    Shadows are buffers named like the weights without their dots: the names of full-EMA checkpoints
    (`model_ema.diffusion_modelinput_blocks00weight`).

    Args:
        model: the network to follow.
        decay: the final decay, in [0, 1].
        use_num_upates: warm the decay up as (1+n)/(10+n); the original's spelling.
    """

    decay: Tensor
    num_updates: Tensor

    def __init__(
        self, model: nn.Module, decay: float = 0.9999, use_num_upates: bool = True
    ) -> None:
        super().__init__()
        if not 0.0 <= decay <= 1.0:
            raise ValueError(f"decay must lie in [0, 1], got {decay}")
        self.register_buffer("decay", torch.tensor(decay, dtype=torch.float32, device="cpu"))
        self.register_buffer("num_updates", torch.tensor(0 if use_num_upates else -1, device="cpu"))
        self.shadow_names: dict[str, str] = {}
        for name, weight in model.named_parameters():
            if weight.requires_grad:
                self.shadow_names[name] = name.replace(".", "")
                self.register_buffer(self.shadow_names[name], weight.detach().clone())
        self._kept: list[Tensor] = []

    def _pairs(self, model: nn.Module) -> tuple[list[Tensor], list[Tensor]]:
        weights = dict(model.named_parameters())
        shadows = [getattr(self, shadow) for shadow in self.shadow_names.values()]
        return shadows, [weights[name].data for name in self.shadow_names]

    @torch.no_grad()
    def forward(self, model: nn.Module) -> None:
        """Move each shadow towards its weight by one step."""
        decay = float(self.decay)
        if self.num_updates >= 0:
            self.num_updates += 1
            n = int(self.num_updates)
            decay = min(decay, (1 + n) / (10 + n))
        shadows, weights = self._pairs(model)
        torch._foreach_lerp_(shadows, weights, 1.0 - decay)

    @torch.no_grad()
    def copy_to(self, model: nn.Module) -> None:
        """Write the shadows into `model`."""
        shadows, weights = self._pairs(model)
        torch._foreach_copy_(weights, shadows)

    @torch.no_grad()
    def restart(self, model: nn.Module) -> None:
        """Set the averaged weights to the present weights."""
        shadows, weights = self._pairs(model)
        torch._foreach_copy_(shadows, weights)

    def store(self, model: nn.Module) -> None:
        """Keep a copy of the weights of the model, for `restore`."""
        self._kept = [weight.clone() for weight in self._pairs(model)[1]]

    @torch.no_grad()
    def restore(self, model: nn.Module) -> None:
        """Write the stored weights back."""
        torch._foreach_copy_(self._pairs(model)[1], self._kept)
        self._kept = []

    @contextmanager
    def applied_to(self, model: nn.Module) -> Iterator[None]:
        """Return a context in which `model` has the averaged weights."""
        self.store(model)
        self.copy_to(model)
        try:
            yield
        finally:
            self.restore(model)
