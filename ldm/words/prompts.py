"""Prompts as AUTOMATIC1111 reads them: weights in brackets, and texts of any length in chunks.

`(word)` is read 1.1 times as strongly, `[word]` 1.1 times more weakly, `(word:1.3)` 1.3 times; a
backslash keeps a bracket. The encoded tokens are multiplied by their weights, and the whole is
scaled back to the mean it had. `BREAK` begins a new chunk.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from ldm.words.loading import WordModel
from ldm.words.tokens import TextEmbedder

BRACKET = 1.1
# A chunk ends at a comma if one is among this many positions before its end.
BACKTRACK = 20
BREAK = "BREAK"
PIECES = re.compile(
    r"\\[()\[\]\\]|\\|\(|\[|:\s*(?P<weight>[+-]?(?:\d+\.?\d*|\.\d+))\s*\)|\)|\]|[^\\()\[\]:]+|:"
)


def parse(text: str) -> list[tuple[str, float]]:
    """Split a prompt into texts and their weights; `BREAK` is a text of its own."""
    parts: list[tuple[str, float]] = []
    opened: dict[str, list[int]] = {"(": [], "[": []}

    def scale(start: int, factor: float) -> None:
        parts[start:] = [(part, weight * factor) for part, weight in parts[start:]]

    for found in PIECES.finditer(text):
        piece, weight = found[0], found["weight"]
        if piece in opened:
            opened[piece].append(len(parts))
        elif weight is not None and opened["("]:
            scale(opened["("].pop(), float(weight))
        elif piece == ")" and opened["("]:
            scale(opened["("].pop(), BRACKET)
        elif piece == "]" and opened["["]:
            scale(opened["["].pop(), 1 / BRACKET)
        elif piece.startswith("\\") and len(piece) == 2:
            parts.append((piece[1], 1.0))
        else:
            for i, part in enumerate(re.split(rf"\s*\b{BREAK}\b\s*", piece)):
                parts += [(BREAK, 1.0)] * (i > 0) + [(part, 1.0)]
    # A bracket that is never closed ends with the text.
    for bracket, factor in (("(", BRACKET), ("[", 1 / BRACKET)):
        for start in opened[bracket]:
            scale(start, factor)
    joined: list[tuple[str, float]] = []
    for part, weight in parts:
        same = joined and joined[-1][1] == weight and BREAK not in (part, joined[-1][0])
        joined[-1:] = [(joined[-1][0] + part, weight)] if same else [*joined[-1:], (part, weight)]
    return [(part, weight) for part, weight in joined if part]


class TextModel(WordModel, Protocol):
    """What weighted prompts need of a `LatentDiffusion`: it encodes token ids [b, n] too."""

    def get_learned_conditioning(self, c: Any, **options: Any) -> Any: ...


# A token's id, the positions that it takes and their weight; a chunk is a row of them.
Token = tuple[int, int, float]


def length(chunk: Sequence[Token]) -> int:
    """Return the number of positions that tokens take."""
    return sum(span for _, span, _ in chunk)


def chunks(encoder: TextEmbedder, text: str, vectors: Mapping[int, int]) -> list[list[Token]]:
    """Split a prompt into chunks that fit a text encoder; a word's vectors stay together.

    `vectors` is the number of vectors of each word, by its token id. The chunks have no special
    tokens.
    """
    room, comma = encoder.max_length - 2, encoder.word_ids(",")
    found: list[list[Token]] = [[]]
    for part, weight in parse(text):
        if part == BREAK:
            found.append([])
            continue
        for token in encoder.word_ids(part):
            span, last = vectors.get(token, 1), found[-1]
            if length(last) + span > room:
                end = max((i + 1 for i, (old, *_) in enumerate(last) if [old] == comma), default=0)
                rest = last[end:] if end and [token] != comma else []
                if length(rest) >= BACKTRACK or length(rest) + span > room:
                    rest = []
                del last[len(last) - len(rest) :]
                found.append(rest)
            found[-1].append((token, span, weight))
    return found


def vectors_of(model: TextModel) -> dict[int, int]:
    """Return the number of vectors of each of a model's words, by its token id."""
    manager = model.embedding_manager
    if manager is None:
        return {}
    return {manager.token_id(p): len(manager.word(p)) for p in manager.placeholders}


def count_chunks(model: TextModel, texts: Sequence[str]) -> int:
    """Return how many chunks the longest of the texts needs."""
    vectors = vectors_of(model)
    return max(len(chunks(model.cond_stage_model, text, vectors)) for text in texts)


def encode_weighted(model: TextModel, texts: Sequence[str], count: int, **options: Any) -> Any:
    """Encode b prompts with weights, in `count` chunks each; shorter ones get empty chunks.

    The count is at least that of `count_chunks`; guidance needs the same for both prompts. The
    options are those of `get_learned_conditioning`. Returns a condition as `apply_model` takes it,
    with a text of count · max_length positions. A pooled text is that of the first chunk.
    """
    encoder, vectors = model.cond_stage_model, vectors_of(model)
    start, end, filling = encoder.frame
    split = [chunks(encoder, text, vectors) for text in texts]
    if any(len(text) > count for text in split):
        raise ValueError(f"count must be {max(map(len, split))} for these texts, got {count}")
    contexts: list[Tensor] = []
    first: Any = None
    for i in range(count):
        rows = torch.full((len(texts), encoder.max_length), filling)
        weights = torch.ones(rows.shape)
        for row, scales, text in zip(rows, weights, split, strict=True):
            chunk = text[i] if i < len(text) else []
            row[: len(chunk) + 2] = torch.tensor([start, *(token for token, _, _ in chunk), end])
            each = [weight for _, span, weight in chunk for _ in range(span)]
            scales[1 : len(each) + 1] = torch.tensor(each)
        encoded = model.get_learned_conditioning(rows.to(encoder.device), **options)
        context = encoded["c_crossattn"][0] if isinstance(encoded, Mapping) else encoded
        parts = context.split(encoder.widths or context.shape[-1], dim=-1)
        contexts.append(torch.cat([_weighted(part, weights.to(part)) for part in parts], dim=-1))
        first = encoded if first is None else first
    joined = torch.cat(contexts, dim=1)
    return {**first, "c_crossattn": [joined]} if isinstance(first, Mapping) else joined


def _weighted(context: Tensor, weights: Tensor) -> Tensor:
    """Multiply tokens [b, n, d] by weights [b, n], keeping each text's mean."""
    if bool((weights == 1).all()):
        return context
    scaled = context * weights[..., None]
    return scaled * (context.mean((1, 2), True) / scaled.mean((1, 2), True))
