"""The silhouettes and textures of the miniature world, as signed distances.

A shape is a function of local coordinates x (right) and y (up), float32 [h, w], that fills about
[-1, 1]²; it returns a distance in the same unit, negative inside. Far from the edge it need not be
exact: it serves for antialiased fills, outlines and glows near the edge.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float32]
Shape = Callable[[Array, Array], Array]


def _disc(x: Array, y: Array, cx: float, cy: float, radius: float) -> Array:
    return np.asarray(np.hypot(x - cx, y - cy) - radius, np.float32)


def _box(x: Array, y: Array, cx: float, cy: float, half_w: float, half_h: float) -> Array:
    dx, dy = np.abs(x - cx) - half_w, np.abs(y - cy) - half_h
    outside = np.hypot(np.maximum(dx, 0), np.maximum(dy, 0))
    return np.asarray(outside + np.minimum(np.maximum(dx, dy), 0), np.float32)


def _polygon(x: Array, y: Array, corners: Sequence[tuple[float, float]]) -> Array:
    """Exact signed distance to a simple polygon: nearest edge, sign by crossing parity."""
    a = np.asarray(corners, np.float32)
    edge = np.roll(a, -1, axis=0) - a
    ax, ay, ex, ey = (v[:, None, None] for v in (a[:, 0], a[:, 1], edge[:, 0], edge[:, 1]))
    wx, wy = x[None] - ax, y[None] - ay  # e h w
    along = np.clip((wx * ex + wy * ey) / (ex * ex + ey * ey), 0, 1)
    squared = (wx - along * ex) ** 2 + (wy - along * ey) ** 2
    spans = (wy >= 0) != (wy >= ey)
    slope = ex / np.where(ey == 0, np.float32(1), ey)
    inside = (spans & (wx < wy * slope)).sum(0) % 2 == 1
    distance = np.sqrt(squared.min(0))
    return np.asarray(np.where(inside, -distance, distance), np.float32)


def _star(x: Array, y: Array) -> Array:
    corners = []
    for i in range(10):
        radius, angle = (1.12 if i % 2 == 0 else 0.46), math.pi * (0.5 + i / 5)
        corners.append((radius * math.cos(angle), radius * math.sin(angle) - 0.07))
    return _polygon(x, y, corners)


def _heart(x: Array, y: Array) -> Array:
    """A square standing on its corner, with a disc on each of its upper sides."""
    half = 0.56
    u, v = (x + y + 0.2) * math.sqrt(0.5), (y - x + 0.2) * math.sqrt(0.5)
    body = _box(u, v, 0, 0, half, half)
    return np.minimum(body, np.minimum(_disc(u, v, half, 0, half), _disc(u, v, 0, half, half)))


def _arrow(x: Array, y: Array) -> Array:
    half = [(0.0, 1.05), (1.0, 0.05), (0.36, 0.05), (0.36, -1.0)]
    return _polygon(x, y, half + [(-px, py) for px, py in half[:0:-1]])


def _flower(x: Array, y: Array) -> Array:
    """Five round petals: the angle is folded onto one of them."""
    sector = 2 * math.pi / 5
    angle = (np.arctan2(x, y) + sector / 2) % sector - sector / 2
    radius = np.hypot(x, y)
    petal = np.hypot(radius * np.cos(angle) - 0.63, radius * np.sin(angle)) - 0.385
    return np.asarray(np.minimum(petal, radius - 0.4), np.float32)


def _fish(x: Array, y: Array) -> Array:
    """A lens (two overlapping discs) and a forked tail."""
    body = np.hypot(x + 0.22, np.abs(y) + 0.35) - np.float32(0.95)
    tail = _polygon(x, y, [(0.3, 0.0), (1.1, 0.72), (0.85, 0.0), (1.1, -0.72)])
    return np.asarray(np.minimum(body, tail), np.float32)


def _mug(x: Array, y: Array) -> Array:
    handle = np.abs(np.hypot((x - 0.42) * 1.05, y) - np.float32(0.47)) - np.float32(0.14)
    handle = np.maximum(handle, 0.3 - x)
    return np.asarray(np.minimum(_box(x, y, -0.25, 0, 0.68, 0.88), handle), np.float32)


def _butterfly(x: Array, y: Array) -> Array:
    side = np.abs(x)
    wings = np.minimum(_disc(side, y, 0.58, 0.45, 0.5), _disc(side, y, 0.45, -0.48, 0.4))
    return np.minimum(wings, _box(x, y, 0, -0.05, 0.12, 0.85))


def _spiral(x: Array, y: Array) -> Array:
    """An Archimedean band of two turns, cut by the unit disc."""
    radius, turn = np.hypot(x, y), np.arctan2(y, x) / (2 * math.pi)
    pitch = 0.56
    offset = (radius / pitch - turn) % 1.0
    band = np.abs(offset - 0.5) * pitch - 0.16
    return np.asarray(np.maximum(band, radius - 1.02), np.float32)


# The shapes the models are trained on, and those held out of training altogether.
SHAPES: dict[str, Shape] = {
    "circle": lambda x, y: _disc(x, y, 0, 0, 0.97),
    "square": lambda x, y: _box(x, y, 0, 0, 0.84, 0.84),
    "triangle": lambda x, y: _polygon(x, y, [(0.0, 0.98), (1.08, -0.85), (-1.08, -0.85)]),
    "star": _star,
    "heart": _heart,
    "ring": lambda x, y: np.abs(np.hypot(x, y) - np.float32(0.73)) - np.float32(0.26),
    "cross": lambda x, y: np.minimum(_box(x, y, 0, 0, 0.34, 1), _box(x, y, 0, 0, 1, 0.34)),
    "crescent": lambda x, y: np.maximum(_disc(x, y, -0.05, 0, 1), -_disc(x, y, 0.45, 0, 0.82)),
    "arrow": _arrow,
    "flower": _flower,
    "fish": _fish,
    "mug": _mug,
}
EXTRA_SHAPES: dict[str, Shape] = {"butterfly": _butterfly, "spiral": _spiral}
ALL_SHAPES = SHAPES | EXTRA_SHAPES

# Six ways to fill a shape; all but the first use a second colour. The elements are large, so that
# an eightfold smaller latent can still hold them; the first colour always covers the larger part.
TEXTURES = ("plain", "stripes", "dots", "checks", "fade", "border")


def second_colour_share(texture: str, x: Array, y: Array, inside: Array, pixel: float) -> Array:
    """Return how much of the second colour each point has: float32 [h, w] in [0, 1].

    x, to the right, and y, upwards, are local coordinates [h, w]; `inside` is the signed distance
    to the shape's edge [h, w]; `pixel` is the width of a pixel, over which edges are softened.
    """
    if texture == "stripes":
        distance = np.abs((y + 0.1) / 0.74 % 1.0 - 0.5) * 0.74 - 0.155
    elif texture == "dots":
        # Every second row is shifted by half a period.
        row = np.floor(y / 0.62 + 0.5)
        shifted = (x / 0.72 + 0.5 * (row % 2) + 0.5) % 1.0 - 0.5
        distance = np.hypot(shifted * 0.72, y - row * 0.62) - 0.225
    elif texture == "checks":
        u, v = np.sin(x * (math.pi / 0.5) + 0.8), np.sin(y * (math.pi / 0.5) + 0.8)
        distance = 0.03 - u * v * 0.3
    elif texture == "fade":
        ramp = np.clip((0.15 - y) / 0.75, 0, 1)
        return np.asarray(ramp * ramp * (3 - 2 * ramp), np.float32)
    elif texture == "border":
        distance = -inside - 0.14
    else:
        return np.zeros_like(x)
    return np.asarray(np.clip(0.5 - distance / pixel, 0, 1), np.float32)
