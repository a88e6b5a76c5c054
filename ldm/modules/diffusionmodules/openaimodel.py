"""The denoising U-Net, after "Diffusion Models Beat GANs" with text read by cross-attention.

`UNetModel` and its attribute names are a public contract: YAML files name the class, and
checkpoints name the attributes.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from functools import partial
from typing import Literal, cast

import torch
from torch import Tensor, nn

from ldm.modules.attention import SpatialTransformer
from ldm.modules.diffusionmodules.unet_blocks import (
    AttentionBlock,
    Downsample,
    ResBlock,
    TimestepEmbedSequential,
    Upsample,
)
from ldm.modules.diffusionmodules.util import (
    GroupNorm32,
    check_sizes,
    timestep_embedding,
    zero_module,
)

__all__ = ["AttentionBlock", "Downsample", "ResBlock", "TimestepEmbedSequential", "UNetModel"]


class UNetModel(nn.Module):
    """U-Net that predicts the noise of a latent from time, and from text, class or vector.

    Args:
        in_channels: channels of the latent, with those of a concatenated condition.
        out_channels: channels of the output.
        model_channels: width of the first level.
        channel_mult: width of each level, as a multiple of `model_channels`.
        num_res_blocks: residual blocks of a level on the way down; one more on the way up.
        attention_resolutions: downsampling factors at which attention follows each block.
        dropout: share of activations dropped in the residual blocks, while training.
        num_heads: heads of attention; −1 leaves the number to `num_head_channels`.
        num_head_channels: width of a head; −1 leaves it to `num_heads`.
        use_spatial_transformer: attention is a transformer that reads a context.
        transformer_depth: blocks of a transformer; a list gives a number for each level, where 0
            means no attention. The middle has as many as the last level.
        context_dim: width of the context; needs `use_spatial_transformer`. A list holds one width.
        use_linear_in_transformer: project into the transformer by linear layers, not convolutions
            (Stable Diffusion 2, SDXL). The function is the same; the shapes of weights differ.
        num_classes: number of class labels to embed; `sequential` embeds a vector instead (SDXL).
        adm_in_channels: length of that vector.
        use_checkpoint: compute the activations of each block again in the backward pass. With
            `auto` a training run does so where they do not fit into memory.
        use_scale_shift_norm: the time embedding scales and shifts a norm; default: it is added.
        resblock_updown: resize by residual blocks; default: by convolutions.
        num_groups: groups of every GroupNorm; published models have 32.
        image_size, legacy, use_fp16: accepted for old configurations. The network takes any size,
            and the trainer or the sampler sets the precision.

    Raises:
        ValueError: options that contradict each other, or a size below 1; the message names them.
    """

    def __init__(
        self,
        *,
        in_channels: int,
        model_channels: int,
        out_channels: int,
        num_res_blocks: int,
        attention_resolutions: Collection[int],
        dropout: float = 0.0,
        channel_mult: Sequence[int] = (1, 2, 4, 8),
        num_classes: int | Literal["sequential"] | None = None,
        adm_in_channels: int | None = None,
        use_checkpoint: bool | Literal["auto"] = False,
        num_heads: int = -1,
        num_head_channels: int = -1,
        use_scale_shift_norm: bool = False,
        resblock_updown: bool = False,
        use_spatial_transformer: bool = False,
        use_linear_in_transformer: bool = False,
        transformer_depth: int | Sequence[int] = 1,
        context_dim: int | Sequence[int] | None = None,
        num_groups: int = 32,
        image_size: int | None = None,  # noqa: ARG002
        legacy: bool = True,  # noqa: ARG002
        use_fp16: bool = False,  # noqa: ARG002
    ) -> None:
        super().__init__()
        if use_checkpoint not in (True, False, "auto"):
            raise ValueError(f"use_checkpoint must be true, false or auto, got {use_checkpoint!r}")
        self.use_checkpoint, recompute = use_checkpoint, use_checkpoint is True
        self.in_channels, self.out_channels = in_channels, out_channels
        self.model_channels, self.num_classes = model_channels, num_classes
        self.context_dim = _one_width(context_dim)
        check_sizes(
            channel_mult=channel_mult,
            model_channels=model_channels,
            num_res_blocks=num_res_blocks,
            num_groups=num_groups,
        )
        _check_heads(num_heads, num_head_channels, use_spatial_transformer, self.context_dim)
        depths = _depths(transformer_depth, len(channel_mult))
        emb_dim = model_channels * 4
        self.time_embed = _perceptron(model_channels, emb_dim)
        if num_classes is not None:
            self.label_emb = _label_embedding(num_classes, adm_in_channels, emb_dim)

        residual = partial(
            ResBlock,
            emb_channels=emb_dim,
            dropout=dropout,
            use_checkpoint=recompute,
            use_scale_shift_norm=use_scale_shift_norm,
            num_groups=num_groups,
        )

        def attention(width: int, depth: int) -> nn.Module:
            heads, dim_head = _heads(width, num_heads, num_head_channels)
            if not use_spatial_transformer:
                return AttentionBlock(width, heads, recompute, num_groups)
            return SpatialTransformer(
                width,
                heads,
                dim_head,
                depth,
                context_dim=self.context_dim,
                use_checkpoint=recompute,
                num_groups=num_groups,
                use_linear=use_linear_in_transformer,
            )

        def stage(cin: int, cout: int, level: int) -> list[nn.Module]:
            """Build a residual block, and the attention of its level."""
            layers: list[nn.Module] = [residual(cin, out_channels=cout)]
            if 2**level in attention_resolutions and depths[level]:
                layers.append(attention(cout, depths[level]))
            return layers

        def resize(width: int, up: bool) -> nn.Module:
            if resblock_updown:
                return residual(width, out_channels=width, up=up, down=not up)
            return Upsample(width) if up else Downsample(width)

        widths = [model_channels * mult for mult in channel_mult]
        blocks: list[Iterable[nn.Module]] = [[nn.Conv2d(in_channels, model_channels, 3, padding=1)]]
        skips = [width := model_channels]  # the width of each block's output
        for level, wide in enumerate(widths):
            for _ in range(num_res_blocks):
                blocks.append(stage(width, wide, level))
                skips.append(width := wide)
            if level < len(widths) - 1:
                blocks.append([resize(width, up=False)])
                skips.append(width)
        self.input_blocks = _module_list(blocks)

        self.middle_block = TimestepEmbedSequential(
            residual(width, out_channels=width),
            attention(width, depths[-1]),
            residual(width, out_channels=width),
        )

        blocks = []
        for level, wide in reversed(list(enumerate(widths))):
            for i in range(num_res_blocks + 1):
                layers = stage(width + skips.pop(), wide, level)
                width = wide
                if level > 0 and i == num_res_blocks:
                    layers.append(resize(width, up=True))
                blocks.append(layers)
        self.output_blocks = _module_list(blocks)
        self.out = nn.Sequential(
            GroupNorm32(num_groups, width),
            nn.SiLU(),
            zero_module(nn.Conv2d(width, out_channels, 3, padding=1)),
        )

    def forward(
        self, x: Tensor, timesteps: Tensor, context: Tensor | None = None, y: Tensor | None = None
    ) -> Tensor:
        """Predict the noise in `x`.

        Args:
            x: noisy latents [b, in_channels, h, w].
            timesteps: [b], in [0, num_timesteps).
            context: [b, n, context_dim], read by cross-attention.
            y: class labels [b], or vectors [b, adm_in_channels] with `sequential`; required if and
                only if `num_classes` was given.

        Returns:
            [b, out_channels, h, w].
        """
        if (y is not None) != (self.num_classes is not None):
            raise ValueError(
                f"y must be given exactly where num_classes is, got num_classes={self.num_classes}"
            )
        sinusoids = timestep_embedding(timesteps, self.model_channels)
        weight = cast(Tensor, self.time_embed[0].weight)
        emb = self.time_embed(sinusoids.to(weight.dtype))
        if y is not None:
            emb = emb + self.label_emb(y.to(weight.dtype) if y.is_floating_point() else y)
        hs, h = [], x
        for block in self.input_blocks:
            h = block(h, emb, context)
            hs.append(h)
        h = self.middle_block(h, emb, context)
        for block in self.output_blocks:
            h = block(torch.cat([h, hs.pop()], dim=1), emb, context)
        return self.out(h)


def _module_list(blocks: Iterable[Iterable[nn.Module]]) -> nn.ModuleList:
    return nn.ModuleList(TimestepEmbedSequential(*layers) for layers in blocks)


def _perceptron(cin: int, cout: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(cin, cout), nn.SiLU(), nn.Linear(cout, cout))


def _label_embedding(
    num_classes: int | Literal["sequential"], adm_in_channels: int | None, emb_dim: int
) -> nn.Module:
    if isinstance(num_classes, int):
        return nn.Embedding(num_classes, emb_dim)
    if num_classes != "sequential" or adm_in_channels is None:
        raise ValueError(
            "num_classes must be a number, or 'sequential' with adm_in_channels; got "
            f"{num_classes!r} with {adm_in_channels}"
        )
    return nn.Sequential(_perceptron(adm_in_channels, emb_dim))


def _one_width(context_dim: int | Sequence[int] | None) -> int | None:
    """Return the width of the context, given as a number or as a list."""
    if context_dim is None or isinstance(context_dim, int):
        return context_dim
    if len(widths := set(context_dim)) != 1:
        raise ValueError(f"context_dim must hold one width, got {list(context_dim)}")
    return int(widths.pop())


def _depths(depth: int | Sequence[int], levels: int) -> list[int]:
    """Return the number of transformer blocks for each level."""
    depths = [depth] * levels if isinstance(depth, int) else list(depth)
    if len(depths) != levels or min(depths) < 0 or depths[-1] < 1:
        raise ValueError(
            f"transformer_depth must be a number, or one for each of the {levels} levels of "
            f"channel_mult with at least 1 in the last; got {depth}"
        )
    return depths


def _heads(width: int, num_heads: int, num_head_channels: int) -> tuple[int, int]:
    """Return the number of heads, and the channels of a head."""
    name, divisor = "num_head_channels", num_head_channels
    if num_head_channels == -1:
        name, divisor = "num_heads", num_heads
    if width % divisor:
        raise ValueError(f"{name} must divide the {width} channels of a level, got {divisor}")
    other = width // divisor
    return (divisor, other) if num_head_channels == -1 else (other, divisor)


def _check_heads(
    num_heads: int, num_head_channels: int, spatial_transformer: bool, context_dim: int | None
) -> None:
    for name, value in (("num_heads", num_heads), ("num_head_channels", num_head_channels)):
        if value < 1 and value != -1:
            raise ValueError(f"{name} must be -1 or a whole number of at least 1, got {value}")
    if num_heads == -1 and num_head_channels == -1:
        raise ValueError("give num_heads or num_head_channels, got -1 for both")
    if spatial_transformer and context_dim is None:
        raise ValueError("use_spatial_transformer needs context_dim, got none")
    if context_dim is not None and not spatial_transformer:
        raise ValueError(
            f"context_dim {context_dim} needs use_spatial_transformer: true, got false"
        )
