"""The autoencoder's networks: encoder and decoder of "latent diffusion" (Rombach et al. 2022).

Attribute names (`down.0.block.0.norm1`, `mid.attn_1`, …) are a public contract: they are the names
in published checkpoints.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from ldm.modules.diffusionmodules.util import check_sizes


def normalize(channels: int, num_groups: int) -> nn.GroupNorm:
    """GroupNorm with the autoencoder's and transformer's epsilon, 1e-6."""
    return nn.GroupNorm(num_groups, channels, eps=1e-6)


class Upsample(nn.Module):
    """Nearest-neighbour doubling, then a 3×3 convolution: [b, c, h, w] → [b, c, 2h, 2w]."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))


class Downsample(nn.Module):
    """Halving by a strided 3×3 convolution, padded right and below: [b,c,h,w] → [b,c,h/2,w/2]."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.pad(x, (0, 1, 0, 1)))


class ResnetBlock(nn.Module):
    """Two normalized 3×3 convolutions around a skip connection: [b,cin,h,w] → [b,cout,h,w]."""

    def __init__(self, cin: int, cout: int, dropout: float, num_groups: int) -> None:
        super().__init__()
        self.norm1 = normalize(cin, num_groups)
        self.conv1 = nn.Conv2d(cin, cout, 3, padding=1)
        self.norm2 = normalize(cout, num_groups)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = nn.Conv2d(cout, cout, 3, padding=1)
        if cin != cout:
            self.nin_shortcut = nn.Conv2d(cin, cout, 1)
        self.same_width = cin == cout

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x)))
        h = self.conv2(self.dropout(F.silu(self.norm2(h))))
        return (x if self.same_width else self.nin_shortcut(x)) + h


class AttnBlock(nn.Module):
    """Single-head self-attention over the h·w positions, around a skip connection."""

    def __init__(self, channels: int, num_groups: int) -> None:
        super().__init__()
        self.norm = normalize(channels, num_groups)
        self.q = nn.Conv2d(channels, channels, 1)
        self.k = nn.Conv2d(channels, channels, 1)
        self.v = nn.Conv2d(channels, channels, 1)
        self.proj_out = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm(x)
        q, k, v = (
            rearrange(conv(h), "b c h w -> b 1 (h w) c") for conv in (self.q, self.k, self.v)
        )
        out = F.scaled_dot_product_attention(q, k, v)
        return x + self.proj_out(rearrange(out, "b 1 (h w) c -> b c h w", h=x.shape[2]))


def make_attn(channels: int, attn_type: str, num_groups: int) -> nn.Module:
    """Build the attention of a level: `vanilla`, or `none` for a pass-through."""
    if attn_type == "vanilla":
        return AttnBlock(channels, num_groups)
    if attn_type == "none":
        return nn.Identity()
    raise ValueError(f"attn_type must be 'vanilla' or 'none', got {attn_type!r}")


def _middle(channels: int, dropout: float, attn_type: str, num_groups: int) -> nn.Module:
    mid = nn.Module()
    mid.block_1 = ResnetBlock(channels, channels, dropout, num_groups)
    mid.attn_1 = make_attn(channels, attn_type, num_groups)
    mid.block_2 = ResnetBlock(channels, channels, dropout, num_groups)
    return mid


def _through_middle(mid: nn.Module, h: Tensor) -> Tensor:
    return mid.block_2(mid.attn_1(mid.block_1(h)))  # type: ignore[operator]


class Encoder(nn.Module):
    """Image [b, in_channels, h, w] → features [b, (2·)z_channels, h/f, w/f], f = 2^(levels−1).

    Args:
        ch: width of the first level.
        out_ch: channels of the decoder's image; accepted because both read one `ddconfig`.
        ch_mult: width of each level, as a multiple of `ch`.
        num_res_blocks: residual blocks of a level; the decoder has one more.
        attn_resolutions: sides, in the grid of `resolution`, at which attention follows each block.
        dropout: share of activations dropped in the residual blocks, while training.
        in_channels: channels of the image.
        resolution: side in pixels of the images for which `attn_resolutions` is meant.
        z_channels: channels of the features.
        double_z: give twice `z_channels`: mean and log-variance.
        attn_type: `vanilla`, or `none` for no attention.
        num_groups: groups of every GroupNorm; the published models have 32.

    Raises:
        ValueError: a size below 1; the message names it.
    """

    def __init__(
        self,
        *,
        ch: int,
        out_ch: int,  # noqa: ARG002
        ch_mult: Sequence[int] = (1, 2, 4, 8),
        num_res_blocks: int,
        attn_resolutions: Sequence[int],
        dropout: float = 0.0,
        in_channels: int,
        resolution: int,
        z_channels: int,
        double_z: bool = True,
        attn_type: str = "vanilla",
        num_groups: int = 32,
    ) -> None:
        super().__init__()
        check_sizes(
            ch=ch,
            ch_mult=ch_mult,
            num_res_blocks=num_res_blocks,
            z_channels=z_channels,
            num_groups=num_groups,
        )
        self.conv_in = nn.Conv2d(in_channels, ch, 3, padding=1)
        self.down = nn.ModuleList()
        width, side = ch, resolution
        for i, mult in enumerate(ch_mult):
            level = nn.Module()
            level.block, level.attn = nn.ModuleList(), nn.ModuleList()
            for _ in range(num_res_blocks):
                level.block.append(ResnetBlock(width, ch * mult, dropout, num_groups))
                width = ch * mult
                if side in attn_resolutions:
                    level.attn.append(make_attn(width, attn_type, num_groups))
            if i < len(ch_mult) - 1:
                level.downsample = Downsample(width)
                side //= 2
            self.down.append(level)
        self.mid = _middle(width, dropout, attn_type, num_groups)
        self.norm_out = normalize(width, num_groups)
        self.conv_out = nn.Conv2d(width, 2 * z_channels if double_z else z_channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv_in(x)
        for level in self.down:
            for i, block in enumerate(level.block):  # type: ignore[arg-type]
                h = block(h)
                if len(level.attn):  # type: ignore[arg-type]
                    h = level.attn[i](h)  # type: ignore[index,operator]
            if hasattr(level, "downsample"):
                h = level.downsample(h)  # type: ignore[operator]
        h = _through_middle(self.mid, h)
        return self.conv_out(F.silu(self.norm_out(h)))


class Decoder(nn.Module):
    """Latent [b, z_channels, h, w] → image [b, out_ch, f·h, f·w]; arguments as `Encoder`'s."""

    def __init__(
        self,
        *,
        ch: int,
        out_ch: int,
        ch_mult: Sequence[int] = (1, 2, 4, 8),
        num_res_blocks: int,
        attn_resolutions: Sequence[int],
        dropout: float = 0.0,
        in_channels: int,  # noqa: ARG002
        resolution: int,
        z_channels: int,
        double_z: bool = True,  # noqa: ARG002
        attn_type: str = "vanilla",
        num_groups: int = 32,
    ) -> None:
        super().__init__()
        width, side = ch * ch_mult[-1], resolution // 2 ** (len(ch_mult) - 1)
        self.conv_in = nn.Conv2d(z_channels, width, 3, padding=1)
        self.mid = _middle(width, dropout, attn_type, num_groups)
        levels = []
        for i, mult in reversed(list(enumerate(ch_mult))):
            level = nn.Module()
            level.block, level.attn = nn.ModuleList(), nn.ModuleList()
            for _ in range(num_res_blocks + 1):
                level.block.append(ResnetBlock(width, ch * mult, dropout, num_groups))
                width = ch * mult
                if side in attn_resolutions:
                    level.attn.append(make_attn(width, attn_type, num_groups))
            if i > 0:
                level.upsample = Upsample(width)
                side *= 2
            levels.append(level)
        # Published names count levels from the finest, so the list is stored in that order.
        self.up = nn.ModuleList(reversed(levels))
        self.norm_out = normalize(width, num_groups)
        self.conv_out = nn.Conv2d(width, out_ch, 3, padding=1)

    @property
    def last_layer(self) -> Tensor:
        """The last convolution's weight, at which an adversarial loss balances its gradients."""
        return self.conv_out.weight

    def forward(self, z: Tensor) -> Tensor:
        h = _through_middle(self.mid, self.conv_in(z))
        for level in reversed(list(self.up)):
            for i, block in enumerate(level.block):  # type: ignore[arg-type]
                h = block(h)
                if len(level.attn):  # type: ignore[arg-type]
                    h = level.attn[i](h)  # type: ignore[index,operator]
            if hasattr(level, "upsample"):
                h = level.upsample(h)  # type: ignore[operator]
        return self.conv_out(F.silu(self.norm_out(h)))
