"""The backgrounds of the miniature world: ten places of a few large areas each.

A scene is a function of x (right) and y (up) in [-1, 1], float32 [h, w], that returns red, green
and blue in [0, 1], float32 [h, w, 3]. Each has its own layout and its own pattern of light and
dark, so that it can be recognized without colour. Its characteristic parts are at the rim, because
the object covers the middle.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float32]
Rgb = tuple[float, float, float]


@dataclass(frozen=True)
class View:
    """The view: coordinates [h, w], a pixel's width, and the variations of this image."""

    x: Array
    y: Array
    pixel: float
    lift: float  # shifts horizons, in [-1, 1]
    phase: float  # moves what repeats, in [0, 1)


def array(values: Sequence[float] | Array) -> Array:
    """Return float32 values."""
    return np.asarray(values, np.float32)


def paint(base: Array, colour: Sequence[float] | Array, share: Array) -> Array:
    """Put a colour over `base` [h, w, 3]; it covers `share` [h, w] of each point."""
    return np.asarray(base + share[..., None] * (array(colour) - base), np.float32)


def _blend(low: Rgb, high: Rgb, share: Array) -> Array:
    return array(low) + array(np.clip(share, 0, 1))[..., None] * (array(high) - array(low))


def _cover(distance: Array, view: View, softness: float = 1.0) -> Array:
    """Turn a signed distance (negative inside) into a covered share."""
    return np.asarray(np.clip(0.5 - distance / (view.pixel * softness), 0, 1), np.float32)


def _below(view: View, level: float | Array, softness: float = 1.0) -> Array:
    return _cover(np.asarray(view.y - level, np.float32), view, softness)


def _beach(v: View) -> Array:
    image = _blend((0.80, 0.93, 1.0), (0.45, 0.76, 0.98), (v.y - 0.3) / 0.7)
    image = paint(image, (0.06, 0.42, 0.68), _below(v, 0.36 + 0.06 * v.lift))
    shore = -0.22 + 0.06 * v.lift + 0.05 * np.sin(3.5 * v.x + 6.28 * v.phase)
    image = paint(image, (1.0, 1.0, 1.0), _below(v, shore + 0.08, 2))
    return paint(image, (0.96, 0.86, 0.58), _below(v, shore, 2))


def _forest(v: View) -> Array:
    image = _blend((0.10, 0.26, 0.12), (0.30, 0.55, 0.28), 0.5 + 0.5 * v.y)
    for centre in (-0.86, -0.46, 0.46, 0.86):
        trunk = np.abs(v.x - centre - 0.05 * v.lift) - 0.075
        image = paint(image, (0.22, 0.12, 0.06), _cover(trunk, v, 1.5))
    leaves = 0.62 + 0.1 * np.abs(np.sin(5.0 * v.x + 3.1 * v.phase))
    image = paint(image, (0.08, 0.36, 0.10), 1 - _below(v, leaves, 2))
    return paint(image, (0.16, 0.22, 0.06), _below(v, -0.78 + 0.05 * v.lift, 2))


def _city(v: View) -> Array:
    image = _blend((0.36, 0.22, 0.46), (0.05, 0.06, 0.22), 0.5 + 0.6 * v.y)
    across, up = (v.x + 1) / 0.5, (v.y + 1) / 0.42
    top = 0.35 + 0.28 * np.cos(np.floor(across) * 2.4 + 2.0 * v.phase)
    walls = _below(v, top) * np.clip((0.5 - np.abs(across % 1 - 0.5)) * 12, 0, 1)
    image = paint(image, (0.10, 0.11, 0.17), walls)
    window = np.maximum(np.abs(across % 1 - 0.5) * 0.5 - 0.12, np.abs(up % 1 - 0.5) * 0.42 - 0.1)
    lit = _cover(window, v, 1.5) * walls * _below(v, top - 0.06)
    return paint(image, (1.0, 0.80, 0.36), lit)


def _desert(v: View) -> Array:
    image = _blend((1.0, 0.90, 0.66), (0.98, 0.76, 0.42), (v.y - 0.1) / 0.9)
    far = 0.25 + 0.08 * v.lift + 0.22 * np.sin(2.2 * v.x + 0.9)
    image = paint(image, (0.90, 0.56, 0.22), _below(v, far, 1.5))
    near = -0.42 + 0.06 * v.lift - 0.24 * np.sin(2.0 * v.x + 0.5)
    return paint(image, (0.70, 0.36, 0.12), _below(v, near, 1.5))


def _snow(v: View) -> Array:
    image = _blend((0.74, 0.81, 0.90), (0.56, 0.66, 0.80), 0.5 + 0.5 * v.y)
    peaks = 0.72 - 1.15 * np.abs(np.abs(v.x + 0.06 * v.lift) - 0.72)
    image = paint(image, (0.36, 0.43, 0.55), _below(v, peaks, 1.5))
    image = paint(image, (0.97, 0.98, 1.0), _below(v, peaks, 1.5) * (1 - _below(v, 0.42, 2)))
    ground = -0.10 + 0.05 * v.lift + 0.07 * np.sin(3.0 * v.x + 6.28 * v.phase)
    return paint(image, (0.95, 0.97, 1.0), _below(v, ground, 2))


def _moon(v: View) -> Array:
    image = _blend((0.02, 0.02, 0.05), (0.05, 0.05, 0.12), 0.5 + 0.5 * v.y)
    stars = ((-0.82, 0.75), (-0.35, 0.88), (0.42, 0.84), (0.85, 0.5), (-0.88, 0.2), (0.9, 0.02))
    for sx, sy in stars:
        star = np.hypot(v.x - sx - 0.03 * v.lift, v.y - sy) - 0.045
        image = paint(image, (1.0, 1.0, 0.95), _cover(star, v, 1.5))
    ground = -0.34 + 0.04 * v.lift - 0.12 * v.x * v.x
    image = paint(image, (0.66, 0.66, 0.64), _below(v, ground))
    for cx, cy, radius in ((-0.72, -0.72, 0.2), (0.74, -0.68, 0.17), (0.05, -0.88, 0.18)):
        crater = np.hypot(v.x - cx - 0.05 * v.lift, (v.y - cy) * 1.7) - radius
        image = paint(image, (0.40, 0.40, 0.40), _cover(crater, v, 1.5))
    return image


def _meadow(v: View) -> Array:
    image = _blend((0.66, 0.86, 1.0), (0.25, 0.56, 0.96), v.y)
    for cx, cy in ((-0.62, 0.76), (0.66, 0.66)):
        cloud = np.hypot((v.x - cx - 0.1 * v.lift) * 0.55, v.y - cy) - 0.15
        image = paint(image, (1.0, 1.0, 1.0), _cover(cloud, v, 3))
    hill = 0.02 + 0.06 * v.lift + 0.16 * np.cos(2.6 * v.x + 1.2)
    image = paint(image, (0.45, 0.80, 0.22), _below(v, hill, 1.5))
    return paint(image, (0.20, 0.56, 0.12), _below(v, -0.5 - 0.15 * np.cos(2.4 * v.x), 2))


def _sea(v: View) -> Array:
    image = _blend((0.01, 0.10, 0.34), (0.20, 0.80, 0.84), 0.42 + 0.6 * v.y)
    rays = 0.5 + 0.5 * np.sin(7.0 * (v.x + 0.45 * v.y) + 6.28 * v.phase)
    image = paint(image, (0.72, 1.0, 0.96), 0.42 * rays * np.clip(0.35 + 0.65 * v.y, 0, 1))
    for bx, by, radius in ((-0.82, 0.1, 0.1), (0.84, -0.2, 0.11), (-0.76, -0.6, 0.09)):
        bubble = np.abs(np.hypot(v.x - bx, v.y - by - 0.06 * v.lift) - radius) - 0.025
        image = paint(image, (0.70, 0.94, 1.0), 0.8 * _cover(bubble, v, 1.5))
    return image


def _sunset(v: View) -> Array:
    horizon = -0.38 + 0.05 * v.lift
    share = (v.y - horizon) / (1 - horizon)
    image = _blend((1.0, 0.50, 0.16), (0.80, 0.16, 0.34), share * 2)
    image = paint(image, (0.26, 0.08, 0.36), np.clip(share * 1.7 - 0.7, 0, 1))
    side = -1.0 if v.phase < 0.5 else 1.0
    sun = np.hypot(v.x - 0.72 * side, v.y - horizon - 0.12) - 0.3
    image = paint(image, (1.0, 0.92, 0.42), _cover(sun, v, 2))
    return paint(image, (0.13, 0.05, 0.16), _below(v, horizon))


def _kitchen(v: View) -> Array:
    tile = np.sin(v.x * np.pi / 0.4 + 0.3 * v.lift) * np.sin((v.y - 0.1) * np.pi / 0.4)
    image = _blend((0.97, 0.96, 0.90), (0.52, 0.76, 0.70), 0.5 + tile * 0.12 / v.pixel)
    image = paint(image, (0.95, 0.80, 0.60), _below(v, -0.40 + 0.04 * v.lift))
    return paint(image, (0.50, 0.27, 0.13), _below(v, -0.50 + 0.04 * v.lift))


_ALL = (_beach, _forest, _city, _desert, _snow, _moon, _meadow, _sea, _sunset, _kitchen)
SCENES: dict[str, Callable[[View], Array]] = {scene.__name__[1:]: scene for scene in _ALL}
