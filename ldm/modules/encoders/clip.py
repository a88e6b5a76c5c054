"""The text encoders of CLIP: OpenAI's (Stable Diffusion 1, SDXL) and OpenCLIP's (2, SDXL).

The attribute names `transformer` and `model`, and the names below `model`, are those of published
checkpoints.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import cast

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from ldm.modules.encoders.base import TextEncoder
from ldm.modules.encoders.vocabulary import load_tokenizer
from ldm.modules.x_transformer import EmbeddingHook, known
from ldm.util import UserError, one_of

VOCABULARY = "openai/clip-vit-large-patch14"  # OpenCLIP's text encoders have the same
# The published text encoders of OpenCLIP: width, layers, heads.
ARCHITECTURES = {"ViT-H-14": (1024, 24, 16), "ViT-bigG-14": (1280, 32, 20)}
LAYERS = ("last", "penultimate")


class CLIPTextEncoder(TextEncoder):
    """The common part of the CLIP text encoders.

    Args:
        tokenizer: a folder or hub name of the vocabulary.
        layers: number of blocks.
        layer: the block that conditions, `last` or `penultimate`.
        max_length: tokens in a row.
        vocab_size: rows of the token table.

    Raises:
        UserError: the tokenizer has more entries than the token table.
    """

    def __init__(
        self, tokenizer: str, layers: int, layer: str, max_length: int, vocab_size: int
    ) -> None:
        one_of(LAYERS, layer=layer)
        super().__init__(load_tokenizer("CLIPTokenizerFast", tokenizer))
        if len(self.tokenizer) > vocab_size:
            raise UserError(
                f"tokenizer {tokenizer!r} has {len(self.tokenizer)} entries, "
                f"more than vocab_size {vocab_size}: give the one that belongs to the weights"
            )
        self.layers, self.layer, self.max_length = layers, layer, max_length

    def freeze(self) -> None:
        """Set evaluation mode, without gradients for the weights."""
        self.eval()
        self.requires_grad_(False)

    @property
    def unknown_id(self) -> int | None:
        """None: CLIP spells out unknown words."""
        return None

    def blocks(self, clip_skip: int) -> int:
        """Return how many blocks a text passes through.

        A `clip_skip` of 1 is the model's own layer, 2 the one before it, as AUTOMATIC1111 counts.
        """
        count = self.layers - LAYERS.index(self.layer) - (clip_skip - 1)
        if not 1 <= count <= self.layers:
            most = self.layers - LAYERS.index(self.layer)
            raise UserError(f"clip_skip must lie in 1..{most} for this model, got {clip_skip}")
        return count


def _accept_both_clip_names(
    module: nn.Module, state: dict[str, Tensor], prefix: str, *_: object
) -> None:
    """Rename a file's CLIP entries to the installed `transformers`, before they are loaded.

    Old versions keep the encoder below `text_model.`, new ones do not.
    """
    nested = f"{prefix}text_model."
    ours_nested = any(name.startswith("text_model.") for name, _ in module.named_parameters())
    for name in [n for n in state if n.startswith(prefix)]:
        if name.startswith(nested) == ours_nested:
            continue
        renamed = name.replace(nested, prefix) if not ours_nested else nested + name[len(prefix) :]
        state[renamed] = state.pop(name)


class FrozenCLIPEmbedder(CLIPTextEncoder):
    """CLIP's text encoder from `transformers`; by default ViT-L/14 as Stable Diffusion 1 has it.

    Its weights come with the checkpoint of the diffusion model.

    Args:
        version: hub name of the vocabulary.
        tokenizer: a folder or hub name to use instead of `version`.
        max_length: tokens in a row.
        width: size of a token's vector.
        layers: number of transformer blocks.
        heads: heads of attention in a block.
        vocab_size: number of tokens.
        hidden_act: the perceptron's activation, by its name in `transformers`.
        layer: the block that conditions, `last` or `penultimate`.
        final_norm: apply the final norm to its output; SDXL does not.
        device: accepted for old configurations; the encoder follows its module's device.
    """

    family = "clip"

    def __init__(
        self,
        version: str = VOCABULARY,
        device: str | None = None,  # noqa: ARG002
        max_length: int = 77,
        tokenizer: str | None = None,
        *,
        width: int = 768,
        layers: int = 12,
        heads: int = 12,
        vocab_size: int = 49408,
        hidden_act: str = "quick_gelu",
        layer: str = "last",
        final_norm: bool = True,
    ) -> None:
        super().__init__(tokenizer or version, layers, layer, max_length, vocab_size)
        from transformers import CLIPTextConfig, CLIPTextModel

        if width % heads:
            raise ValueError(f"width {width} must be a multiple of heads {heads}")
        self.width, self.final_norm = width, final_norm
        config = CLIPTextConfig(
            hidden_size=width,
            intermediate_size=4 * width,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            hidden_act=hidden_act,
            max_position_embeddings=max_length,
            vocab_size=vocab_size,
            eos_token_id=vocab_size - 1,
            bos_token_id=vocab_size - 2,
        )
        self.transformer = CLIPTextModel(config)
        self.transformer.register_load_state_dict_pre_hook(_accept_both_clip_names)  # type: ignore[no-untyped-call]
        self.freeze()

    @property
    def _token_embedding(self) -> nn.Module:
        return self.transformer.get_input_embeddings()

    @property
    def vocab_table(self) -> Tensor:
        """The vocabulary's vectors: [vocab_size, width]."""
        return cast(Tensor, self._token_embedding.weight)

    def embed(
        self, ids: Tensor, embedding_manager: EmbeddingHook | None, clip_skip: int = 1
    ) -> Tensor:
        """Encode ids [b, n] to [b, n, width]; `clip_skip` as in `blocks`."""
        if embedding_manager is None:
            return self._encode(ids, clip_skip)
        manager = embedding_manager

        def splice(_: nn.Module, __: tuple[Tensor, ...], vectors: Tensor) -> Tensor:
            return manager(ids, vectors)

        # `transformers` takes no token vectors here. A hook on the lookup replaces them, before
        # positions are added.
        handle = self._token_embedding.register_forward_hook(splice)
        try:
            return self._encode(ids, clip_skip)
        finally:
            handle.remove()

    def _encode(self, ids: Tensor, clip_skip: int) -> Tensor:
        ids, blocks = known(ids, self.vocab_table), self.blocks(clip_skip)
        if blocks == self.layers and self.final_norm:
            return self.transformer(input_ids=ids).last_hidden_state
        states = self.transformer(input_ids=ids, output_hidden_states=True).hidden_states
        if not self.final_norm:
            return states[blocks]
        network = getattr(self.transformer, "text_model", self.transformer)
        return network.final_layer_norm(states[blocks])


class CausalAttention(nn.Module):
    """Self-attention in which a token sees itself and the tokens before it."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.in_proj_weight = nn.Parameter(torch.empty(3 * width, width).normal_(std=width**-0.5))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * width))
        self.out_proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Map [b, n, width] to the same shape."""
        qkv = F.linear(x, self.in_proj_weight, self.in_proj_bias)
        q, k, v = rearrange(qkv, "b n (three h d) -> three b h n d", three=3, h=self.heads)
        out = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.out_proj(rearrange(out, "b h n d -> b n (h d)"))


class ResidualAttentionBlock(nn.Module):
    """Attention and a perceptron, each x + f(norm(x))."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.ln_1, self.attn = nn.LayerNorm(width), CausalAttention(width, heads)
        self.ln_2 = nn.LayerNorm(width)
        layers = {
            "c_fc": nn.Linear(width, 4 * width),
            "gelu": nn.GELU(),
            "c_proj": nn.Linear(4 * width, width),
        }
        self.mlp = nn.Sequential(OrderedDict(layers))

    def forward(self, x: Tensor) -> Tensor:
        """Map [b, n, width] to the same shape."""
        x = x + self.attn(self.ln_1(x))
        return x + self.mlp(self.ln_2(x))


class OpenCLIPText(nn.Module):
    """The text network of OpenCLIP, with its names."""

    def __init__(
        self, width: int, layers: int, heads: int, vocab_size: int, max_length: int
    ) -> None:
        super().__init__()
        self.token_embedding = nn.Embedding(vocab_size, width)
        nn.init.normal_(self.token_embedding.weight, std=0.02)
        self.positional_embedding = nn.Parameter(torch.empty(max_length, width).normal_(std=0.01))
        blocks = nn.ModuleList(ResidualAttentionBlock(width, heads) for _ in range(layers))
        self.transformer = nn.ModuleDict({"resblocks": blocks})
        self.ln_final = nn.LayerNorm(width)
        self.text_projection = nn.Parameter(torch.empty(width, width).normal_(std=width**-0.5))
        # Never used to condition; published checkpoints carry it.
        self.logit_scale = nn.Parameter(torch.tensor(1 / 0.07).log())

    def forward(self, vectors: Tensor, blocks: int) -> list[Tensor]:
        """Return the outputs of the first `blocks` blocks for token vectors [b, n, width]."""
        states = [vectors + self.positional_embedding[: vectors.shape[1]]]
        for block in list(cast(nn.ModuleList, self.transformer["resblocks"]))[:blocks]:
            states.append(block(states[-1]))
        return states[1:]


class FrozenOpenCLIPEmbedder(CLIPTextEncoder):
    """OpenCLIP's text encoder; by default ViT-H/14 as Stable Diffusion 2 has it.

    Its weights come with the checkpoint of the diffusion model. Rows are padded with id 0, as
    OpenCLIP does. "!" is id 256 there and here; the tokenizers that diffusers' folders of these
    models hold read "!" as the padding.

    Args:
        arch: `ViT-H-14` or `ViT-bigG-14`; gives the sizes that are not given.
        layer: the block that conditions, `last` or `penultimate`.
        final_norm: apply `ln_final` to its output; SDXL does not.
        max_length: tokens in a row.
        tokenizer: a folder or hub name of the vocabulary.
        width: size of a token's vector; by default that of `arch`.
        layers: number of transformer blocks; by default that of `arch`.
        heads: heads of attention in a block; by default that of `arch`.
        vocab_size: number of tokens.
        version: accepted for old configurations; the weights come with the checkpoint.
        device: accepted for old configurations; the encoder follows its module's device.
        freeze: accepted for old configurations; the encoder is always frozen.
    """

    family = "openclip-h"
    padding_id = 0

    def __init__(
        self,
        arch: str = "ViT-H-14",
        version: str | None = None,  # noqa: ARG002
        device: str | None = None,  # noqa: ARG002
        max_length: int = 77,
        freeze: bool = True,  # noqa: ARG002
        layer: str = "penultimate",
        tokenizer: str = VOCABULARY,
        *,
        final_norm: bool = True,
        width: int | None = None,
        layers: int | None = None,
        heads: int | None = None,
        vocab_size: int = 49408,
    ) -> None:
        one_of(ARCHITECTURES, arch=arch)
        sizes = zip((width, layers, heads), ARCHITECTURES[arch], strict=True)
        self_width, self_layers, self_heads = (own if own else default for own, default in sizes)
        super().__init__(tokenizer, self_layers, layer, max_length, vocab_size)
        self.width, self.final_norm = self_width, final_norm
        self.model = OpenCLIPText(self_width, self_layers, self_heads, vocab_size, max_length)
        self.freeze()

    @property
    def vocab_table(self) -> Tensor:
        """The vocabulary's vectors: [vocab_size, width]."""
        return self.model.token_embedding.weight

    def embed(
        self, ids: Tensor, embedding_manager: EmbeddingHook | None, clip_skip: int = 1
    ) -> Tensor:
        """Encode ids [b, n] to [b, n, width]; `clip_skip` as in `blocks`."""
        return self.normed(self.states(ids, embedding_manager, self.blocks(clip_skip))[-1])

    def states(
        self, ids: Tensor, embedding_manager: EmbeddingHook | None, blocks: int
    ) -> list[Tensor]:
        """Return the outputs [b, n, width] of the first `blocks` blocks for ids [b, n]."""
        vectors = self.model.token_embedding(known(ids, self.vocab_table))
        if embedding_manager is not None:
            vectors = embedding_manager(ids, vectors)
        return self.model(vectors, blocks)

    def normed(self, state: Tensor) -> Tensor:
        """Apply the final norm, if the encoder has one."""
        return self.model.ln_final(state) if self.final_norm else state

    def pooled(self, last: Tensor, ends: Tensor) -> Tensor:
        """Return the projected output of the last block at the end of each text: [b, width].

        `last` is the output [b, n, width], `ends` the position of each text's end token [b].
        """
        rows = torch.arange(len(last), device=last.device)
        return self.model.ln_final(last)[rows, ends] @ self.model.text_projection
