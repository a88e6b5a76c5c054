"""The denoising network as `LatentDiffusion` holds it: conditions go where the model wants them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ldm.util import instantiate_from_config

CONDITIONING_KEYS = (None, "concat", "crossattn", "hybrid", "adm")


class DiffusionWrapper(nn.Module):
    """Holds the U-Net under the published name `diffusion_model`.

    Args:
        conditioning_key: `crossattn` reads the condition by attention, `concat` stacks it on the
            latent's channels, `hybrid` does both, `adm` adds a class to the time embedding, none
            ignores it.
    """

    def __init__(self, unet_config: Mapping[str, Any], conditioning_key: str | None) -> None:
        super().__init__()
        if conditioning_key not in CONDITIONING_KEYS:
            raise ValueError(
                f"conditioning_key must be one of {CONDITIONING_KEYS}, got {conditioning_key!r}"
            )
        self.diffusion_model = instantiate_from_config(unet_config)
        self.conditioning_key = conditioning_key

    def forward(
        self,
        x: Tensor,
        t: Tensor,
        c_concat: Sequence[Tensor] | None = None,
        c_crossattn: Sequence[Tensor] | None = None,
    ) -> Tensor:
        """Predict the noise in x [b, c, h, w] at timesteps t [b], in the precision of x."""
        options: dict[str, Tensor] = {}
        # A network held in half precision is handed what it computes with.
        weights = next(self.diffusion_model.parameters(), x).dtype
        inputs = x
        if self.conditioning_key in ("concat", "hybrid"):
            inputs = torch.cat([x, *(c_concat or ())], dim=1)
        if self.conditioning_key in ("crossattn", "hybrid"):
            options["context"] = torch.cat(list(c_crossattn or ()), dim=1).to(weights)
        if self.conditioning_key == "adm":
            options["y"] = (c_crossattn or ())[0]
        return self.diffusion_model(inputs.to(weights), t, **options).to(x.dtype)

    def conditions(self, cond: Any) -> dict[str, Any]:
        """Name a condition (tensor, tensors, or already a mapping) as `forward` takes it."""
        if isinstance(cond, Mapping):
            return dict(cond)
        if self.conditioning_key is None:
            return {}
        cond = list(cond) if isinstance(cond, list | tuple) else [cond]
        return {"c_concat" if self.conditioning_key == "concat" else "c_crossattn": cond}
