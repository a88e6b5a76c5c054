"""The denoising network as `LatentDiffusion` holds it, with each condition at its place."""

from __future__ import annotations

import operator
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ldm.modules.attention import constant_context
from ldm.util import instantiate_from_config

CONDITIONING_KEYS = (None, "concat", "crossattn", "hybrid", "adm", "crossattn-adm")


class DiffusionWrapper(nn.Module):
    """Holds the U-Net under the published name `diffusion_model`.

    Args:
        conditioning_key: `crossattn` reads the condition by attention; `concat` stacks it on the
            channels of the latent; `hybrid` does both; `adm` adds a class or a vector to the time
            embedding; `crossattn-adm` reads a text and adds a vector (SDXL); None ignores it.
    """

    def __init__(self, unet_config: Mapping[str, Any], conditioning_key: str | None) -> None:
        super().__init__()
        if conditioning_key not in CONDITIONING_KEYS:
            raise ValueError(
                f"conditioning_key must be one of {CONDITIONING_KEYS}, got {conditioning_key!r}"
            )
        self.diffusion_model = instantiate_from_config(unet_config)
        self.conditioning_key = conditioning_key
        # Within `constant_context`: the last texts and the context made of them.
        self._kept: list[tuple[list[Tensor], Tensor]] | None = None

    def forward(
        self,
        x: Tensor,
        t: Tensor,
        c_concat: Sequence[Tensor] | None = None,
        c_crossattn: Sequence[Tensor] | None = None,
        c_adm: Tensor | None = None,
    ) -> Tensor:
        """Predict the noise in x [b, c, h, w] at timesteps t [b], in the precision of x.

        Args:
            x: noisy latents [b, c, h, w].
            t: timesteps [b].
            c_concat: maps [b, c', h, w].
            c_crossattn: texts [b, n, d], joined along n; with `adm`, class labels [b].
            c_adm: vectors [b, adm_in_channels] or class labels [b].
        """
        options: dict[str, Tensor] = {}
        # A network in half precision gets inputs of its own type.
        weights = next(self.diffusion_model.parameters(), x).dtype
        key, inputs = self.conditioning_key, x
        if key in ("concat", "hybrid"):
            inputs = torch.cat([x, *(c_concat or ())], dim=1)
        if key in ("crossattn", "hybrid", "crossattn-adm"):
            options["context"] = self._context(list(c_crossattn or ()), weights)
        if key in ("adm", "crossattn-adm"):
            if c_adm is None and key == "crossattn-adm":
                raise ValueError("crossattn-adm needs a vector: give {'c_crossattn', 'c_adm'}")
            options["y"] = (c_crossattn or ())[0] if c_adm is None else c_adm
        return self.diffusion_model(inputs.to(weights), t, **options).to(x.dtype)

    def _context(self, texts: list[Tensor], weights: torch.dtype) -> Tensor:
        if self._kept:
            before, context = self._kept[0]
            if len(before) == len(texts) and all(map(operator.is_, before, texts)):
                return context
        context = torch.cat(texts, dim=1).to(weights)
        if self._kept is not None:
            self._kept[:] = [(texts, context)]
        return context

    @contextmanager
    def constant_context(self) -> Iterator[None]:
        """Return a context manager for a loop over timesteps with the same texts.

        Within it the keys and values of a text are computed once. Weights and texts must not
        change.
        """
        self._kept = []
        try:
            with constant_context(self.diffusion_model):
                yield
        finally:
            self._kept = None

    def conditions(self, cond: Any) -> dict[str, Any]:
        """Name a condition (tensor, list of tensors, or a mapping) as `forward` takes it.

        In a mapping, `vector` is another name of `c_adm`.
        """
        if isinstance(cond, Mapping):
            return {"c_adm" if name == "vector" else name: part for name, part in cond.items()}
        if self.conditioning_key is None:
            return {}
        cond = list(cond) if isinstance(cond, list | tuple) else [cond]
        return {"c_concat" if self.conditioning_key == "concat" else "c_crossattn": cond}
