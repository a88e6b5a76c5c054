"""Three sets of images that only the figures learn a word from, rendered in the miniature's world.

`scripts/figures.py sets` writes them and tells how their words are learned.

- any-star, of figure 8: ten stars, two in each medium, no two of one colour or in one scene. Asked
  for an image that names no medium, the base model generates mostly sketches; the set does not.
- chalk, of figures 6 and 7: a style that the model's training never showed, light lines on a dark
  board. It is the negative of the sketches that the model knows, so that a word can reach it.
- arcade, of figure 6: neon in coarse pixels. Training showed either, never both.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from ldm.image_io import write_image
from ldm.miniature.render import MEDIA, PIXEL_BLOCKS, Spec, render
from ldm.miniature.world import sample_spec

SIZE = 128
SEED = 2208
COLOURS = (
    *("red", "yellow", "green", "cyan", "blue", "purple", "white", "black"),
    *("orange", "pink"),
)
SCENES = (
    *("meadow", "kitchen", "desert", "snow", "city", "beach", "forest", "sea"),
    *("moon", "sunset"),
)
STYLE_SHAPES = ("triangle", "crescent", "square", "fish", "ring", "heart", "mug", "cross")
STYLE_SCENES = ("meadow", "kitchen", "desert", "snow", "city", "beach", "forest", "moon")

GeneratedImage = npt.NDArray[np.float32]


def star_specs() -> list[Spec]:
    """Describe the stars; place, size and tilt vary too."""
    looks = zip(COLOURS, SCENES, MEDIA * 2, strict=True)
    star: Any = {"shape": "star", "texture": "plain", "second": ""}
    return [
        replace(sample_spec(SEED, number), **star, colour=colour, scene=scene, medium=medium)
        for number, (colour, scene, medium) in enumerate(looks)
    ]


def style_specs(medium: str) -> list[Spec]:
    """Describe the images of a style: each shows another thing in another scene."""
    return [
        replace(sample_spec(SEED, 40 + number), shape=shape, scene=scene, medium=medium)
        for number, (shape, scene) in enumerate(zip(STYLE_SHAPES, STYLE_SCENES, strict=True))
    ]


def _arcade() -> Iterator[GeneratedImage]:
    nearest = np.arange(SIZE) * PIXEL_BLOCKS // SIZE
    for spec in style_specs("neon"):
        fine = render(spec, 2 * PIXEL_BLOCKS)  # as pixel art is made: four samples a block
        blocks = fine.reshape(PIXEL_BLOCKS, 2, PIXEL_BLOCKS, 2, 3).mean((1, 3))
        yield blocks[nearest][:, nearest]


SETS: Mapping[str, Callable[[], Iterator[GeneratedImage]]] = {
    "any-star": lambda: (render(spec, SIZE) for spec in star_specs()),
    "chalk": lambda: (-render(spec, SIZE) for spec in style_specs("sketch")),
    "arcade": _arcade,
}


def write_set(name: str, concepts: Path) -> Path:
    """Write the images of one of `SETS` to its folder below `concepts` and return that."""
    folder = concepts / name
    for number, image in enumerate(SETS[name](), 1):
        levels = np.rint((image + 1) * 127.5).astype(np.uint8)
        write_image(Image.fromarray(levels), folder / f"{number}.png", optimize=True)
    return folder
