"""The learned words' vectors by placeholder, which may be any text, and their place in a text."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# PyTorch keeps dots for the levels of a name. They are stored as a private-use character.
DOT = "\ue000"
# The prefix of a name that the class uses itself, such as "keys" or "train".
RESERVED = "\ue001"
TAKEN = frozenset(dir(nn.ParameterDict()))


def stored_name(placeholder: str) -> str:
    """Return a placeholder's name in the state dict: itself, if PyTorch accepts it."""
    return (RESERVED if placeholder in TAKEN else "") + placeholder.replace(".", DOT)


def placeholder_of(name: str) -> str:
    """Return the placeholder that `stored_name` gave a name."""
    return name.removeprefix(RESERVED).replace(DOT, ".")


class WordVectors(nn.ParameterDict):
    """Placeholder → vectors [k, d]; a `ParameterDict` whose keys may be any text."""

    def _key_to_attr(self, key: str) -> str:
        return stored_name(key)


def splice(ids: Tensor, vectors: Tensor, token_ids: Tensor, words: Sequence[Tensor]) -> Tensor:
    """Put the words' vectors where their tokens stand (paper, section 4; reference, section 1).

    A word of k vectors takes k positions; what follows shifts right, and the row is cut at n.

    Args:
        ids: token ids [b, n].
        vectors: the tokens' own vectors [b, n, d]; not changed.
        token_ids: id of each word's placeholder [w], distinct.
        words: w tensors [k_i, d].

    Returns:
        [b, n, d] in the type of `vectors`.
    """
    batch, n = ids.shape
    counts = torch.tensor([len(word) for word in words], device=ids.device)
    first_row = counts.cumsum(0) - counts
    match = ids[..., None] == token_ids  # b n w
    is_word, which = match.any(-1), match.int().argmax(-1)  # b n
    span = torch.where(is_word, counts[which], 1)
    end = span.cumsum(1)
    position = torch.arange(n, device=ids.device).repeat(batch, 1)
    # source[b, p]: the token whose span covers output position p. Spans are at least 1, so every
    # position up to n is covered.
    source = torch.searchsorted(end, position, right=True)
    taken = is_word.gather(1, source)
    row = first_row[which].gather(1, source) + position - (end - span).gather(1, source)
    learned = F.embedding(torch.where(taken, row, 0), torch.cat(list(words)))  # b n d
    kept = vectors[torch.arange(batch, device=ids.device)[:, None], source]
    return torch.where(taken[..., None], learned.to(vectors.dtype), kept)
