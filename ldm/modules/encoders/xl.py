"""The conditioner of Stable Diffusion XL: two text encoders, a pooled text, sizes and crops.

The names below `embedders` are those of published checkpoints, which keep them under
`conditioner.` (`ldm.checkpoint.names`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from ldm.modules.diffusionmodules.util import timestep_embedding
from ldm.modules.encoders.base import TextEncoder
from ldm.modules.encoders.clip import VOCABULARY, FrozenCLIPEmbedder, FrozenOpenCLIPEmbedder
from ldm.modules.x_transformer import EmbeddingHook, known

# Width of the embedding of each of the six numbers: heights, widths and the crop's corner.
SIZE_WIDTH = 256
Size = tuple[int, int]


class FrozenXLEmbedder(TextEncoder):
    """CLIP ViT-L/14 and OpenCLIP ViT-bigG/14, each read at its penultimate block without norm.

    A word has one vector for both encoders: the first columns are the CLIP part, the rest the
    OpenCLIP part. So the embedding manager holds it as it holds any other word.

    Args:
        tokenizer: a folder or hub name of the vocabulary, which both encoders share.
        clip_l: arguments of `FrozenCLIPEmbedder` that differ from those of SDXL; or target and
            params, as a configuration has them.
        clip_g: arguments of `FrozenOpenCLIPEmbedder`, in the same way.
        size_width: width of the embedding of each of the six sizes.
        device: accepted as by the other encoders; the encoder follows its module's device.
    """

    family = "sdxl"
    reads_size = True

    def __init__(
        self,
        tokenizer: str = VOCABULARY,
        clip_l: Mapping[str, Any] | None = None,
        clip_g: Mapping[str, Any] | None = None,
        size_width: int = SIZE_WIDTH,
        device: str | None = None,  # noqa: ARG002
    ) -> None:
        shared = {"tokenizer": tokenizer, "layer": "penultimate", "final_norm": False}
        first = FrozenCLIPEmbedder(**{**shared, **_params(clip_l)})
        second = FrozenOpenCLIPEmbedder(**{**shared, "arch": "ViT-bigG-14", **_params(clip_g)})
        super().__init__(first.tokenizer)
        self.embedders = nn.ModuleList([first, second])
        self.width, self.max_length = first.width + second.width, first.max_length
        self.size_width = size_width

    @property
    def _both(self) -> tuple[FrozenCLIPEmbedder, FrozenOpenCLIPEmbedder]:
        first, second = self.embedders
        return cast(FrozenCLIPEmbedder, first), cast(FrozenOpenCLIPEmbedder, second)

    @property
    def widths(self) -> tuple[int, int]:
        """Widths of a word's two parts, `clip_l` and `clip_g`."""
        first, second = self._both
        return first.width, second.width

    @property
    def vocab_table(self) -> Tensor:
        """The vocabulary's vectors of both encoders, side by side: [vocab_size, width]."""
        return torch.cat([encoder.vocab_table for encoder in self._both], dim=1)

    @property
    def vocab_size(self) -> int:
        """The number of tokens in the vocabulary; ids from here on are added tokens."""
        return self._both[0].vocab_size

    @property
    def unknown_id(self) -> int | None:
        """None: CLIP spells out unknown words."""
        return None

    @property
    def special_ids(self) -> frozenset[int]:
        """Ids of the tokens that are no text, of both encoders."""
        first, second = self._both
        return first.special_ids | second.special_ids

    @property
    def device(self) -> torch.device:
        """Device of the encoders."""
        return self._both[0].device

    def token_vectors(self, ids: Sequence[int]) -> Tensor:
        """Return the vocabulary's vectors of n ids: [n, width]."""
        return torch.cat([encoder.token_vectors(ids) for encoder in self._both], dim=1)

    def embed(
        self,
        ids: Tensor,
        embedding_manager: EmbeddingHook | None,
        clip_skip: int = 1,
        size: Size | None = None,
        original_size: Size | None = None,
        crop: Size = (0, 0),
    ) -> dict[str, Any]:
        """Encode ids [b, n] to {"c_crossattn": [[b, n, width]], "c_adm": [b, vector]}.

        The vector is the pooled text and the embeddings of the original size, the crop and the
        target size.

        Args:
            ids: as `tokenize` gives them.
            embedding_manager: takes ids and token vectors of both encoders, side by side.
            clip_skip: as `CLIPTextEncoder.blocks` counts.
            size: the image's height and width in pixels.
            original_size: height and width of the image before it was resized; `size` by default.
            crop: top and left edge of the crop from the original.

        Raises:
            ValueError: no size.
        """
        if size is None:
            raise ValueError("SDXL reads the image's size: give size=(height, width)")
        first, second = self._both
        _, end, _ = self.frame
        ends = _place(ids, end)
        # The second encoder's rows are filled with another id.
        after = torch.arange(ids.shape[1], device=ids.device) > ends[:, None]
        other = torch.where(after, second.frame[2], ids)
        hooks: list[EmbeddingHook | None] = [None, None]
        if embedding_manager is not None:
            hooks = [_constant(v) for v in self._spliced(ids, other, embedding_manager)]
            ends = self._shifted(ids, ends, embedding_manager)
        blocks = second.blocks(clip_skip)
        states = second.states(other, hooks[1], second.layers)
        texts = [first.embed(ids, hooks[0], clip_skip), second.normed(states[blocks - 1])]
        pooled = second.pooled(states[-1], ends)
        sizes = torch.tensor([*(original_size or size), *crop, *size], device=ids.device)
        numbers = timestep_embedding(sizes, self.size_width).reshape(1, -1).to(pooled)
        vector = torch.cat([pooled, numbers.expand(len(ids), -1)], dim=1)
        return {"c_crossattn": [torch.cat(texts, dim=-1)], "c_adm": vector}

    def without_text(self, condition: Mapping[str, Any]) -> dict[str, Any]:
        """Return a condition of `embed` with zeros for both texts and its sizes as they are.

        The published SDXL is guided away from this where no negative prompt is given
        (`force_zeros_for_empty_prompt` of diffusers).
        """
        vector = condition["c_adm"].clone()
        vector[:, : vector.shape[1] - 6 * self.size_width] = 0
        texts = [torch.zeros_like(text) for text in condition["c_crossattn"]]
        return {"c_crossattn": texts, "c_adm": vector}

    def _spliced(self, ids: Tensor, other: Tensor, manager: EmbeddingHook) -> tuple[Tensor, ...]:
        """Return the token vectors of each encoder with the words in them."""
        vectors = [
            torch.nn.functional.embedding(known(row, encoder.vocab_table), encoder.vocab_table)
            for row, encoder in zip((ids, other), self._both, strict=True)
        ]
        spliced = manager(ids, torch.cat(vectors, dim=-1))
        return tuple(torch.split(spliced, list(self.widths), dim=-1))

    @torch.no_grad()
    def _shifted(self, ids: Tensor, ends: Tensor, manager: EmbeddingHook) -> Tensor:
        """Return the positions of the end tokens [b] after words of several vectors moved them.

        An end that is pushed out of the row is at its last position. The manager moves a mark of 1
        and a mark of 2 to the same place, and words do not change between the two.
        """
        mark = torch.zeros(*ids.shape, self.width, device=ids.device)
        mark[torch.arange(len(ids)), ends] = 1
        moved = (manager(ids, 2 * mark) - manager(ids, mark)).any(-1)
        last = torch.full_like(ends, ids.shape[1] - 1)
        return torch.where(moved.any(-1), moved.int().argmax(-1), last)


def _params(part: Mapping[str, Any] | None) -> Mapping[str, Any]:
    """Return the arguments of an encoder, given as they are or beside its target."""
    part = part or {}
    return (part.get("params") or {}) if "target" in part else part


def _constant(vectors: Tensor) -> EmbeddingHook:
    return lambda _ids, _vectors: vectors


def _place(ids: Tensor, token: int) -> Tensor:
    """Return the first position of `token` in each row [b, n]; the last one where it is not."""
    there = ids == token
    return torch.where(there.any(-1), there.int().argmax(-1), ids.shape[1] - 1)
