"""Render one image of the miniature world from its description."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from ldm.miniature.scenes import SCENES, Rgb, View, array, paint
from ldm.miniature.shapes import ALL_SHAPES, TEXTURES, second_colour_share
from ldm.util import at_least, one_of

Array = NDArray[np.float32]

# sRGB in 0..255, chosen to lie far apart in Lab.
COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (225, 28, 30),
    "orange": (255, 132, 0),
    "yellow": (255, 226, 20),
    "lime": (160, 232, 30),
    "green": (12, 138, 40),
    "teal": (0, 128, 128),
    "cyan": (40, 224, 244),
    "blue": (25, 85, 240),
    "navy": (12, 18, 96),
    "purple": (125, 28, 165),
    "lavender": (190, 160, 252),
    "magenta": (238, 30, 205),
    "pink": (255, 165, 192),
    "maroon": (120, 8, 36),
    "brown": (130, 78, 32),
    "olive": (124, 122, 14),
    "beige": (238, 214, 168),
    "black": (16, 16, 18),
    "white": (252, 252, 252),
    "gray": (134, 134, 136),
}
MEDIA = ("photo", "painting", "sketch", "pixel", "neon")
EXTRA_MEDIA = ("sepia", "blueprint", "stamp", "riso")  # held out of training altogether
# Two inks, sRGB in 0..255: what dark and light parts of an image are printed in. Where the first
# is the lighter one, the image is a negative.
TONES: dict[str, tuple[tuple[int, int, int], tuple[int, int, int]]] = {
    "rose": ((96, 10, 60), (255, 214, 226)),
    "ice": ((16, 44, 110), (226, 244, 255)),
    "moss": ((24, 52, 16), (226, 236, 188)),
    "amber": ((84, 36, 0), (255, 220, 140)),
    "violet": ((48, 16, 92), (236, 216, 255)),
    "ash": ((24, 24, 28), (232, 232, 232)),
    "candy": ((20, 60, 160), (255, 190, 210)),
    "night": ((214, 226, 255), (8, 14, 52)),
    "ember": ((255, 214, 150), (70, 10, 6)),
    "lagoon": ((190, 255, 236), (0, 60, 70)),
}
GREY = array([0.299, 0.587, 0.114])
PIXEL_BLOCKS = 16


@dataclass(frozen=True)
class Spec:
    """What an image shows: one object, where, and how it is rendered.

    `second` is the texture's second colour, empty for a plain object. `dx`, `dy` shift the object
    (in half images), `scale` is its half width, `angle` its tilt in radians, `lift` and `phase`
    vary the scene, `light` the brightness. `tone` names the image's two inks, empty where
    it has its own colours.
    """

    shape: str
    colour: str
    texture: str = "plain"
    second: str = ""
    scene: str = "beach"
    medium: str = "photo"
    dx: float = 0.0
    dy: float = 0.0
    scale: float = 0.6
    angle: float = 0.0
    lift: float = 0.0
    phase: float = 0.5
    light: float = 1.0
    tone: str = ""

    def __post_init__(self) -> None:
        one_of(ALL_SHAPES, shape=self.shape)
        one_of(COLOURS, colour=self.colour)
        one_of(TEXTURES, texture=self.texture)
        one_of(("",) if self.texture == "plain" else COLOURS, second=self.second)
        one_of(SCENES, scene=self.scene)
        one_of(MEDIA + EXTRA_MEDIA, medium=self.medium)
        one_of(("", *TONES), tone=self.tone)

    @property
    def look(self) -> tuple[str, str, str, str]:
        """The object without its surroundings: shape, colour, texture, second colour."""
        return self.shape, self.colour, self.texture, self.second


@dataclass(frozen=True)
class _Layers:
    """An image before it is put together: background, object colours, distance to the edge."""

    view: View
    scene: Array  # [h, w, 3]
    fill: Array  # [h, w, 3]
    second: Array  # [h, w], share of the second colour
    edge: Array  # [h, w], signed distance in image units

    def cover(self, grow: float = 0.0) -> Array:
        """Return the share of each point inside the shape, grown by a distance."""
        return np.asarray(np.clip(0.5 + (grow - self.edge) / self.view.pixel, 0, 1), np.float32)


def rgb(colour: str) -> Rgb:
    """Return a named colour as red, green, blue in [0, 1]."""
    red, green, blue = COLOURS[colour]
    return red / 255, green / 255, blue / 255


def _layers(spec: Spec, size: int) -> _Layers:
    axis = (np.arange(size, dtype=np.float32) + 0.5) * (2 / size) - 1
    x, y = np.broadcast_to(axis, (size, size)), np.broadcast_to(-axis[:, None], (size, size))
    pixel = 2.4 / size
    if spec.medium == "painting":  # a hand that trembles
        wave = 6.28 * spec.phase
        x = x + np.float32(0.022) * np.sin(9 * y + wave, dtype=np.float32)
        y = y + np.float32(0.022) * np.sin(8 * x - wave, dtype=np.float32)
    view = View(x, y, pixel, spec.lift, spec.phase)
    cosine, sine = math.cos(spec.angle) / spec.scale, math.sin(spec.angle) / spec.scale
    px, py = x - np.float32(spec.dx), y - np.float32(spec.dy)
    u = np.asarray(px * cosine + py * sine, np.float32)
    v = np.asarray(py * cosine - px * sine, np.float32)
    inside = ALL_SHAPES[spec.shape](u, v)
    share = second_colour_share(spec.texture, u, v, inside, pixel / spec.scale)
    fill: Array = np.broadcast_to(array(rgb(spec.colour)), (size, size, 3))
    if spec.second:
        fill = paint(fill, rgb(spec.second), share)
    return _Layers(view, SCENES[spec.scene](view), fill, share, inside * np.float32(spec.scale))


def _rim(colour: str) -> Array:
    """A line that separates the object from any scene: darker, or lighter for dark colours."""
    base = array(rgb(colour))
    return array(base * 0.35 if float(base @ GREY) > 0.2 else base * 0.4 + 0.5)


def _flat(spec: Spec, layers: _Layers) -> Array:
    image = paint(layers.scene, _rim(spec.colour), layers.cover(0.05))
    return np.asarray(image + layers.cover()[..., None] * (layers.fill - image), np.float32)


def _photo(spec: Spec, layers: _Layers) -> Array:
    """Light from above left, a soft shadow under the object, a dim rim of the image."""
    x, y = layers.view.x, layers.view.y
    shadow = 0.35 * np.clip(1 - np.hypot(x - spec.dx, (y - spec.dy + spec.scale) * 3.2) / 0.6, 0, 1)
    scene = layers.scene * (1 - shadow)[..., None]
    light = 1.0 + 0.13 * (spec.dx - x + y - spec.dy) / spec.scale - 0.04
    lit = replace(layers, scene=scene, fill=layers.fill * light[..., None].astype(np.float32))
    vignette = 1.02 - 0.1 * (x * x + y * y)
    return np.asarray(_flat(spec, lit) * vignette[..., None], np.float32)


def _painting(spec: Spec, layers: _Layers) -> Array:
    """Slanting strokes, warm and cold by turns, over flat colours."""
    x, y = layers.view.x, layers.view.y
    wave = 6.28 * spec.phase
    bend = 1.2 * np.sin(3 * x + wave) + 1.2 * np.sin(4 * y - wave)
    across = np.sin(13 * (x + y) + bend)
    blue = 0.025 * np.cos(9 * (x - 0.3 * y) + bend)
    strokes = np.stack([0.055 * across, 0.045 * across, blue], -1)
    return np.asarray(_flat(spec, layers) * 0.9 + 0.045 + strokes, np.float32)


def _pencil(spec: Spec, layers: _Layers) -> Array:
    """Grey values of a pencil rendering, [h, w]: pale tones, dark lines where tones change."""
    tone = layers.scene @ GREY
    dy, dx = np.gradient(tone)
    lines = np.clip((np.abs(dx) + np.abs(dy)) * tone.shape[0] / 64, 0, 0.25)
    tone = 0.42 + 0.55 * tone - lines
    body = 0.35 + 0.62 * (layers.fill @ GREY)
    if spec.second:  # colours of equal lightness must still differ
        body = body + 0.22 * (0.5 - layers.second) * (1 if body.mean() < 0.7 else -1)
    tone = tone + layers.cover(0.075) * (0.08 - tone)
    return array(tone + layers.cover(-0.02) * (body - tone))


def _sketch(spec: Spec, layers: _Layers) -> Array:
    return array(_pencil(spec, layers)[..., None] * array([1.0, 0.985, 0.94]))


def _neon(spec: Spec, layers: _Layers) -> Array:
    """A glowing tube along the edge, in front of the scene by night."""
    dark = layers.scene * array([0.30, 0.30, 0.38])
    tube = array(rgb(spec.colour)) * 0.85 + 0.15
    halo = np.exp(-np.abs(layers.edge) / 0.13)
    inner = dark * (1 - 0.6 * layers.cover())[..., None]
    inner = inner + (0.28 * layers.cover())[..., None] * layers.fill
    if spec.second:
        lit = (0.62 * layers.second * layers.cover(-0.05))[..., None]
        inner = inner + lit * (array(rgb(spec.second)) * 0.9 + 0.1)
    image = inner + (0.6 * halo)[..., None] * tube
    line = array(np.clip(0.5 + (0.055 - np.abs(layers.edge)) / layers.view.pixel, 0, 1))
    return paint(array(image), 0.6 * tube + 0.4, line)


def _sepia(spec: Spec, layers: _Layers) -> Array:
    tone = _photo(spec, layers) @ GREY
    warm = array([1.08, 0.82, 0.52]) * tone[..., None] + array([0.14, 0.08, 0.02])
    corner = np.clip(1.25 - 0.42 * np.hypot(layers.view.x, layers.view.y), 0, 1)
    return np.asarray(warm * corner[..., None], np.float32)


def _blueprint(spec: Spec, layers: _Layers) -> Array:
    ink = 1 - np.clip(_pencil(spec, layers), 0, 1)
    return array(array([0.08, 0.22, 0.62]) + ink[..., None] * array([0.85, 0.75, 0.38]))


def _in_inks(image: Array, dark: Sequence[float], light: Sequence[float]) -> Array:
    """Print an image [h, w, 3] in two inks, sRGB in 0..255: its dark parts in the first one."""
    grey = np.clip(image @ GREY, 0, 1)[..., None]
    first, second = array(dark) / 255, array(light) / 255
    return np.asarray(first + grey * (second - first), np.float32)


_MEDIA: dict[str, Callable[[Spec, _Layers], Array]] = {
    "photo": _photo,
    "painting": _painting,
    "sketch": _sketch,
    "pixel": _flat,
    "neon": _neon,
    "sepia": _sepia,
    "blueprint": _blueprint,
    "stamp": lambda *image: _in_inks(_sketch(*image), (150, 20, 40), (250, 238, 214)),
    "riso": lambda *image: _in_inks(_painting(*image), (30, 70, 60), (255, 170, 120)),
}


def render(spec: Spec, size: int = 64) -> Array:
    """Render an image: float32 [size, size, 3] in [-1, 1]."""
    at_least(8, size=size)
    side = 2 * PIXEL_BLOCKS if spec.medium == "pixel" else size
    image = _MEDIA[spec.medium](spec, _layers(spec, side)) * np.float32(spec.light)
    if spec.tone:
        image = _in_inks(image, *TONES[spec.tone])
    if spec.medium == "pixel":
        blocks = image.reshape(PIXEL_BLOCKS, 2, PIXEL_BLOCKS, 2, 3).mean((1, 3))
        nearest = np.arange(size) * PIXEL_BLOCKS // size
        image = blocks[nearest][:, nearest]
    return np.asarray(np.clip(image, 0, 1) * 2 - 1, np.float32)


def silhouette(spec: Spec, size: int = 64) -> Array:
    """Return how much of each pixel the object covers: float32 [size, size] in [0, 1]."""
    return np.asarray(_layers(spec, size).cover(), np.float32)
