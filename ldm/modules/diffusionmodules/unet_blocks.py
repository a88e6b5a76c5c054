"""The blocks of the denoising U-Net: residual, attending, resizing.

Attribute names (`in_layers.0`, `emb_layers.1`, `qkv`, …) are those of published checkpoints.
"""

from __future__ import annotations

import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from ldm.modules.attention import SpatialTransformer
from ldm.modules.diffusionmodules.util import GroupNorm32, checkpoint, zero_module


class TimestepEmbedSequential(nn.Sequential):
    """Layers in a row; each gets the time embedding or the context if it takes one."""

    def forward(self, x: Tensor, emb: Tensor, context: Tensor | None = None) -> Tensor:  # type: ignore[override]
        for layer in self:
            if isinstance(layer, ResBlock):
                x = layer(x, emb)
            elif isinstance(layer, SpatialTransformer):
                x = layer(x, context)
            else:
                x = layer(x)
        return x


class Upsample(nn.Module):
    """Nearest-neighbour doubling, then a 3×3 convolution: [b, c, h, w] → [b, c, 2h, 2w]."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(_doubled(x))


class Downsample(nn.Module):
    """Halving by a strided 3×3 convolution: [b, c, h, w] → [b, c, h/2, w/2]."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.op = nn.Conv2d(channels, channels, 3, stride=2, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.op(x)


def _doubled(x: Tensor) -> Tensor:
    return F.interpolate(x, scale_factor=2.0, mode="nearest")


class ResBlock(nn.Module):
    """Residual block conditioned on the time embedding.

    Args:
        use_scale_shift_norm: the embedding scales and shifts the second norm; default: it is added
            before that norm.
        up, down: also double or halve the map.
    """

    def __init__(
        self,
        channels: int,
        emb_channels: int,
        dropout: float,
        out_channels: int,
        use_scale_shift_norm: bool = False,
        use_checkpoint: bool = False,
        up: bool = False,
        down: bool = False,
        num_groups: int = 32,
    ) -> None:
        super().__init__()
        self.use_checkpoint, self.use_scale_shift_norm = use_checkpoint, use_scale_shift_norm
        self.up, self.down = up, down
        self.in_layers = nn.Sequential(
            GroupNorm32(num_groups, channels),
            nn.SiLU(),
            nn.Conv2d(channels, out_channels, 3, padding=1),
        )
        emb_out = 2 * out_channels if use_scale_shift_norm else out_channels
        self.emb_layers = nn.Sequential(nn.SiLU(), nn.Linear(emb_channels, emb_out))
        self.out_layers = nn.Sequential(
            GroupNorm32(num_groups, out_channels),
            nn.SiLU(),
            nn.Dropout(dropout),
            zero_module(nn.Conv2d(out_channels, out_channels, 3, padding=1)),
        )
        if out_channels == channels:
            self.skip_connection: nn.Module = nn.Identity()
        else:
            self.skip_connection = nn.Conv2d(channels, out_channels, 1)

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        """Map [b, channels, h, w] and embedding [b, emb_channels] → [b, out_channels, h', w']."""
        return checkpoint(self._forward, self.use_checkpoint, x, emb)

    def _forward(self, x: Tensor, emb: Tensor) -> Tensor:
        h = self.in_layers[1](self.in_layers[0](x))
        h = self.in_layers[2](self._resized(h))
        e = rearrange(self.emb_layers(emb).to(h.dtype), "b c -> b c 1 1")
        if self.use_scale_shift_norm:
            scale, shift = e.chunk(2, dim=1)
            h = self.out_layers[0](h) * (1 + scale) + shift
            h = self.out_layers[1:](h)
        else:
            h = self.out_layers(h + e)
        return self.skip_connection(self._resized(x)) + h

    def _resized(self, x: Tensor) -> Tensor:
        if self.up:
            return _doubled(x)
        return F.avg_pool2d(x, 2) if self.down else x


class AttentionBlock(nn.Module):
    """Self-attention over the positions of a map, for models without a text context."""

    def __init__(
        self,
        channels: int,
        num_heads: int,
        use_checkpoint: bool = False,
        num_groups: int = 32,
    ) -> None:
        super().__init__()
        self.num_heads, self.use_checkpoint = num_heads, use_checkpoint
        self.norm = GroupNorm32(num_groups, channels)
        self.qkv = nn.Conv1d(channels, 3 * channels, 1)
        self.proj_out = zero_module(nn.Conv1d(channels, channels, 1))

    def forward(self, x: Tensor) -> Tensor:
        return checkpoint(self._forward, self.use_checkpoint, x)

    def _forward(self, x: Tensor) -> Tensor:
        flat = x.flatten(2)
        qkv = self.qkv(self.norm(flat))
        q, k, v = rearrange(qkv, "b (h k d) n -> k b h n d", k=3, h=self.num_heads)
        h = rearrange(F.scaled_dot_product_attention(q, k, v), "b h n d -> b (h d) n")
        return (flat + self.proj_out(h)).reshape(x.shape)
