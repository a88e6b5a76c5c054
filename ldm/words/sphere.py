"""Directions of token vectors: points of the unit sphere, and the shortest path between two.

All functions take rows: vectors [k, d], each row a vector of its own.
"""

from __future__ import annotations

import torch
from torch import Tensor

# Two directions this far from a sum of zero are opposite: every great circle joins them.
OPPOSITE = 1e-6


def directions(vectors: Tensor) -> Tensor:
    """Return the unit vectors of rows [k, d], float32 at least; ValueError for a row of zeros."""
    wide = vectors if vectors.dtype == torch.float64 else vectors.float()
    norms = wide.norm(dim=-1, keepdim=True)
    if not bool((norms > 0).all()):
        raise ValueError("vectors must not hold a row of zeros: it has no direction")
    return wide / norms


def tangent(vectors: Tensor, at: Tensor) -> Tensor:
    """Return the part of `vectors` [k, d] tangent to the sphere at the unit vectors `at` [k, d]."""
    return vectors - (vectors * at).sum(-1, keepdim=True) * at


def angles(a: Tensor, b: Tensor) -> Tensor:
    """Return the angles between unit vectors [k, d], in [0, π]: [k].

    Twice the arc tangent of ‖a − b‖ / ‖a + b‖ (Kahan), exact where the cosine is near ±1 too.
    """
    return 2 * torch.atan2((a - b).norm(dim=-1), (a + b).norm(dim=-1))


def slerp(a: Tensor, b: Tensor, t: float) -> Tensor:
    """Interpolate spherically between unit vectors (Shoemake 1985): [k, d] → [k, d].

    (sin((1 − t)·θ)·a + sin(t·θ)·b) / sin θ with θ the angle between a and b; a where t is 0, b
    where t is 1. Raises ValueError for t outside [0, 1], or opposite directions, which have no
    unique shortest path.
    """
    if not 0 <= t <= 1:
        raise ValueError(f"t must lie in [0, 1], got {t}")
    if bool(((a + b).norm(dim=-1) < OPPOSITE).any()):
        raise ValueError("a and b must not be opposite: there is no shortest way between them")
    theta = angles(a.double(), b.double())[:, None]  # k 1
    # Where a and b are equal, both quotients are 0/0, and any mean of the two is the same.
    apart = theta > 0
    sine = torch.where(apart, theta.sin(), 1.0)
    first = torch.where(apart, ((1 - t) * theta).sin() / sine, 1 - t)
    second = torch.where(apart, (t * theta).sin() / sine, t)
    return (first * a + second * b).to(a)


def blend(a: Tensor, b: Tensor, t: float) -> Tensor:
    """Mix two words, [k, d] each: directions by `slerp`, norms linearly; t is the share of b.

    Directions carry a word's meaning (Kim et al., arXiv 2512.13672, where words are blended in this
    way). Vectors on the straight line between two would be shorter than both. Errors as
    `directions` and `slerp`.
    """
    if a.shape != b.shape:
        raise ValueError(f"a and b must have one shape, got {tuple(a.shape)} and {tuple(b.shape)}")
    norms = (1 - t) * a.norm(dim=-1, keepdim=True) + t * b.norm(dim=-1, keepdim=True)
    return norms * slerp(directions(a), directions(b), t)
