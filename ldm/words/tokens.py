"""What the words need of a text encoder, and the checks of words against its vocabulary."""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping, Sequence
from typing import Protocol

import torch
from torch import Tensor

from ldm.util import UserError, quote
from ldm.words.placeholders import PER_IMAGE_PLACEHOLDERS, occurrences

logger = logging.getLogger(__name__)

INITIALIZER_MODES = ("mean", "sequence")


class TextEmbedder(Protocol):
    """The part of a text encoder that words are made from.

    `vocab_table` is the token embedding [V, d], without positions; `unknown_id` the id that text
    outside the vocabulary becomes, None where the tokenizer knows every byte (CLIP).
    `placeholders` are the words in use, which the encoder separates from their neighbours before
    it tokenizes; `special_ids` the tokens that are no text, such as padding.
    """

    placeholders: tuple[str, ...]

    max_length: int
    family: str
    width: int

    @property
    def unknown_id(self) -> int | None: ...
    @property
    def special_ids(self) -> Collection[int]: ...
    @property
    def vocab_table(self) -> Tensor: ...
    def count_tokens(self, text: str) -> int: ...
    def word_ids(self, word: str) -> list[int]: ...
    def text_from(self, text: str, token: int) -> str: ...


def placeholder_id(embedder: TextEmbedder, placeholder: str, others: Mapping[str, int]) -> int:
    """Return the one token id that stands for `placeholder`.

    Args:
        embedder: the encoder whose vocabulary counts.
        placeholder: the string that shall stand for a word.
        others: placeholders in use → their token ids.

    Raises:
        UserError: the placeholder is empty, not exactly one token, unknown to the vocabulary (so
            that every unknown character would share its id), a special token, or the token of
            another placeholder.
    """
    ids = embedder.word_ids(placeholder) if placeholder.strip() else []
    vocabulary = f"the {embedder.family} vocabulary"
    advice = "choose one symbol that captions do not use, such as * or @"
    if len(ids) != 1:
        raise UserError(
            f"placeholder {placeholder!r} becomes {len(ids)} tokens of {vocabulary} and must be "
            f"exactly one: {advice}"
        )
    if ids[0] == embedder.unknown_id:
        raise UserError(
            f"placeholder {placeholder!r} is unknown to {vocabulary}, so every other unknown "
            f"character would name it too: {advice}"
        )
    if ids[0] in embedder.special_ids:
        raise UserError(
            f"placeholder {placeholder!r} is a special token of {vocabulary}, which every prompt "
            f"may contain: {advice}"
        )
    same = [other for other, taken in others.items() if taken == ids[0]]
    if same:
        raise UserError(
            f"placeholders {same[0]!r} and {placeholder!r} are the same token of {vocabulary}: "
            "choose another for one of them"
        )
    if len(placeholder) > 1 and placeholder.isalnum():
        logger.warning(
            "placeholder %r is a word of %s: while the learned word is loaded, prompts lose that "
            "word's own meaning",
            placeholder,
            vocabulary,
        )
    return ids[0]


def per_image_placeholders(
    embedder: TextEmbedder, names: Sequence[str] | None = None
) -> tuple[str, ...]:
    """Return the placeholders of per-image words; UserError where the vocabulary lacks them.

    Args:
        embedder: the encoder whose vocabulary counts.
        names: the placeholders; None for the released code's, the 22 Hebrew letters.
    """
    whose = "the 22 Hebrew letters" if names is None else "per_image_placeholders"
    chosen = PER_IMAGE_PLACEHOLDERS if names is None else tuple(names)
    for name in chosen:
        ids = embedder.word_ids(name)
        if len(ids) != 1 or ids[0] == embedder.unknown_id:
            raise UserError(
                f"per_image_tokens names its words by {whose}, and {name!r} is no token of the "
                f"{embedder.family} vocabulary: list others as per_image_placeholders, or set "
                "per_image_tokens to false"
            )
    return chosen


def first_word_ids(embedder: TextEmbedder, word: str, vectors: int, mode: str) -> list[int]:
    """Return the token ids of a first word of one or several tokens.

    Raises:
        UserError: the vocabulary does not know the word, or a part of it; or `mode` is "sequence"
            and there are more tokens than `vectors`.
    """
    ids = embedder.word_ids(word)
    if not ids or embedder.unknown_id in ids:
        raise UserError(
            f"first word {word!r} is unknown to the {embedder.family} vocabulary: choose a coarse, "
            "common word for the object, such as 'cat' or 'sculpture'"
        )
    if mode == "sequence" and len(ids) > vectors:
        raise UserError(
            f"first word {word!r} has {len(ids)} tokens: initializer_mode 'sequence' needs as many "
            f"vectors, got {vectors}; raise num_vectors_per_token or use 'mean'"
        )
    return ids


def first_vectors(embedder: TextEmbedder, word: str, vectors: int, mode: str) -> Tensor:
    """Return what a word of `vectors` vectors starts from: [vectors, d], no gradient.

    "mean": each vector is the mean of the word's tokens. "sequence": vector i is token i, the last
    token repeated for what is left.
    """
    ids = first_word_ids(embedder, word, vectors, mode)
    table = embedder.vocab_table.detach()
    if mode == "sequence":
        return table[[ids[min(i, len(ids) - 1)] for i in range(vectors)]]
    return table[ids].mean(0, keepdim=True).expand(vectors, -1)


def vocabulary_norms(table: Tensor) -> dict[str, float]:
    """Return mean and percentiles of the rows' norms of a token table [V, d]."""
    norms = table.detach().float().norm(dim=-1).cpu()
    low, middle, high = norms.quantile(torch.tensor([0.05, 0.5, 0.95])).tolist()
    return {
        "vocabulary/mean": norms.mean().item(),
        "vocabulary/p05": low,
        "vocabulary/p50": middle,
        "vocabulary/p95": high,
    }


def check_prompts(
    embedder: TextEmbedder,
    prompts: Sequence[str],
    words: Mapping[str, tuple[int, int]],
    files: Mapping[str, str] | None = None,
) -> dict[str, str]:
    """Check that each learned word which a prompt names reaches the text encoder whole.

    Words are counted by tokens, as the encoder meets them: "*" in "S*" is a word too.

    Args:
        embedder: the encoder whose tokenizer and length count.
        prompts: the texts.
        words: placeholder → (token id, number of vectors).
        files: prompt → the file that it comes from, for messages.

    Returns:
        The ends that the encoder does not read: a message for each prompt that has one.

    Raises:
        UserError: a placeholder in the text is no longer there after tokenizing, or (part of) its
            vectors would fall behind the encoder's last position.
    """
    lost: dict[str, str] = {}
    for prompt in dict.fromkeys(prompts):
        file = (files or {}).get(prompt)
        where = f"prompt {quote(prompt)}" if file is None else f"caption {file!r}"
        ids = embedder.word_ids(prompt)
        kept = _kept_tokens(embedder, prompt, ids, dict(words.values()))
        for placeholder, (token, k) in words.items():
            found, named = ids.count(token), occurrences(prompt, placeholder)
            if found < named:
                raise UserError(
                    f"{where}: placeholder {placeholder!r} stands there {named} times but {found} "
                    "times after tokenizing: part it from other characters with spaces"
                )
            if token in ids[kept:]:
                raise UserError(
                    f"{where} has {len(ids)} tokens: placeholder {placeholder!r} ({k} vectors) is "
                    f"cut off at the encoder's {embedder.max_length} positions: shorten the prompt "
                    "or move the word forwards"
                )
        if kept < len(ids):
            end = " ".join(embedder.text_from(prompt, kept).split())
            lost[prompt] = (
                f"{where} has {len(ids)} tokens, and the text encoder reads the first {kept} of "
                f"them. Its end is cut off: {quote(end, 300)}"
            )
    return lost


def _kept_tokens(
    embedder: TextEmbedder, prompt: str, ids: Sequence[int], vectors: Mapping[int, int]
) -> int:
    """Return how many of a text's tokens reach the encoder with all their vectors."""
    length = embedder.max_length
    # A tokenizer puts one special token before the text and one behind it, and cuts the text for
    # both to fit; splicing then pushes what follows a word further back.
    special = embedder.count_tokens(prompt) - len(ids)
    end = special // 2
    for place, token in enumerate(ids):
        end += vectors.get(token, 1)
        if place >= length - special or end > length:
            return place
    return len(ids)
