"""`merge_embeddings.py --blend A=0.5 B=0.5`: blend two words into one.

Directions by spherical interpolation, as Directional Textual Inversion blends words (Kim et al.,
arXiv 2512.13672), norms linearly, vector by vector.
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from ldm.util import UserError

if TYPE_CHECKING:
    from torch import Tensor

logger = logging.getLogger(__name__)

# Shares may differ from a sum of 1 by this much, so that 0.333 and 0.667 are accepted.
TOLERANCE = 1e-6


def read_blend(
    given: Sequence[str] | None, name: str | None
) -> tuple[Mapping[str, float], str] | None:
    """Read `--blend` and `--blend_name`: two words' shares, at least 0 with sum 1, and a name.

    None where nothing is to be blended; UserError for anything else.
    """
    if given is None:
        if name is not None:
            raise UserError(
                "--blend_name names a blended word: say of which with --blend A=0.5 B=0.5"
            )
        return None
    shares: dict[str, float] = {}
    for text in given:
        word, _, number = text.rpartition("=")
        try:
            share = float(number)
        except ValueError:
            share = math.nan
        if not word or not 0 <= share <= 1:
            raise UserError(f"--blend takes WORD=SHARE with a share of 0 to 1, got {text!r}")
        if word in shares:
            raise UserError(f"--blend names {word!r} twice: it blends two different words")
        shares[word] = share
    if len(shares) != 2:
        raise UserError(f"--blend takes two words, such as A=0.5 B=0.5, got {' '.join(given)}")
    if abs(sum(shares.values()) - 1) > TOLERANCE:
        total = f"{sum(shares.values()):g}"
        raise UserError(f"--blend {' '.join(given)}: the shares must sum to 1, not to {total}")
    return shares, name or next(iter(shares))


def blend_words(
    vectors: Mapping[str, Tensor], wanted: Mapping[str, float], name: str
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return the blended word alone, under a name, and what its file should say about it.

    `vectors` has [k, d] of each word, of one width; `wanted` two words' shares. Raises UserError
    for a word that is not there, words of unlike numbers of vectors, or opposite vectors.
    """
    absent = [word for word in wanted if word not in vectors]
    if absent:
        held = ", ".join(map(repr, vectors))
        raise UserError(f"--blend: there is no word {absent[0]!r}; the files bring {held}")
    (first, _), (second, share) = wanted.items()
    counts = [len(vectors[word]) for word in (first, second)]
    if counts[0] != counts[1]:
        raise UserError(
            f"--blend: {first!r} has {counts[0]} vectors and {second!r} {counts[1]}: only words of "
            "as many vectors can be blended"
        )

    from ldm.words.sphere import blend

    try:
        mixed = blend(vectors[first], vectors[second], share)
    except ValueError as error:
        raise UserError(f"--blend: {first!r} and {second!r} have no blend: {error}") from error
    norms = [vectors[first].norm(dim=-1), vectors[second].norm(dim=-1), mixed.norm(dim=-1)]
    shares = " + ".join(f"{share:g} {word}" for word, share in wanted.items())
    sizes = ", ".join(f"{norm.mean():.3f}" for norm in norms)
    logger.info("%s: %s, norms %s", name, shares, sizes)
    facts = {
        "placeholders": json.dumps([name], ensure_ascii=False),
        "blended_from": json.dumps(dict(wanted), ensure_ascii=False),
    }
    return {name: mixed}, facts
