"""The miniature world: an endless sequence of captioned images, rendered on demand.

One object of 12 shapes, 20 colours and 6 textures, in one of 10 scenes, in one of 5 media. Some
objects and some styles have names of their own (`ldm.miniature.names`).
Everything is a function of (seed, index). Some combinations, two shapes and two media never occur
in training: they are the concepts to invert (`held_out`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from ldm.miniature.grammar import caption, pick
from ldm.miniature.names import (
    CONTRASTING,
    HELD_OUT_LOOKS,
    NAMED_THINGS,
    named_styles,
    named_things,
)
from ldm.miniature.render import COLOURS, MEDIA, Array, Spec, render
from ldm.miniature.scenes import SCENES
from ldm.miniature.shapes import SHAPES, TEXTURES
from ldm.randomness import Purpose, generator
from ldm.util import at_least, one_of

# Validation images are this far from the training images in the sequence of indices.
_VALIDATION_OFFSET = 2**40
_STYLE_NAMES = {style: name for name, style in named_styles().items()}


def held_out(spec: Spec) -> bool:
    """Tell whether an image shows something that training must never show."""
    return spec.look in HELD_OUT_LOOKS or spec.shape not in SHAPES or spec.medium not in MEDIA


def sample_spec(seed: int, index: int) -> Spec:
    """Render what image `index` shows, uniformly over the parts; never something held out."""
    rng = generator(seed, index, Purpose.IMAGE)
    while True:
        colour, texture = pick(rng, tuple(COLOURS)), pick(rng, TEXTURES)
        spec = Spec(
            shape=pick(rng, tuple(SHAPES)),
            colour=colour,
            texture=texture,
            second="" if texture == "plain" else pick(rng, CONTRASTING[colour]),
            scene=pick(rng, tuple(SCENES)),
            medium=pick(rng, MEDIA),
            dx=float(rng.uniform(-0.08, 0.08)),
            dy=float(rng.uniform(-0.08, 0.08)),
            scale=float(rng.uniform(0.55, 0.65)),
            angle=float(rng.uniform(-0.06, 0.06)),
            lift=float(rng.uniform(-1, 1)),
            phase=float(rng.random()),
            light=float(rng.uniform(0.93, 1.03)),
        )
        if not held_out(spec):
            return spec


def style_name(spec: Spec) -> str:
    """Return the name of an image's style, empty for a style that descriptions name."""
    return _STYLE_NAMES[spec.medium, spec.tone] if spec.tone else ""


class MiniatureWorld:
    """A finite set of images of the world, read over and over with fresh captions.

    Args:
        size: side of the square images.
        length: number of distinct images; one pass shows each once, in an order of its own.
        seed: seed of the images, their order and their captions.
        split: "train" or "val"; the two share no image index.
        caption_dropout: share of samples with the empty caption, which guidance needs.
        first_index: index in the endless sequence at which the set begins.
        things: number of named things. A larger number puts a name nearer to any appearance, and
            shows each name to the model less often.
        thing_share: share of images of a named thing. The default is as high as leaves most images
            to the other appearances, so that descriptions are still learned.
        name_rate: share of a named thing's captions that say its name; the others describe it, so
            that the name and the description come to mean the same image.
        style_share: share of images in a named style. Their captions always say its name, since no
            other word describes its inks. It is lower than that of the things because there are
            fewer styles.
    """

    def __init__(
        self,
        size: int = 64,
        length: int = 60000,
        seed: int = 0,
        split: str = "train",
        caption_dropout: float = 0.0,
        first_index: int = 0,
        things: int = NAMED_THINGS,
        thing_share: float = 0.4,
        name_rate: float = 0.75,
        style_share: float = 0.1,
    ) -> None:
        one_of(("train", "val"), split=split)
        at_least(1, length=length)
        shares = {"caption_dropout": caption_dropout, "thing_share": thing_share}
        shares |= {"name_rate": name_rate, "style_share": style_share}
        shares["thing_share + style_share"] = thing_share + style_share
        for name, share in shares.items():
            if not 0 <= share <= 1:
                raise ValueError(f"{name} must lie in [0, 1], got {share}")
        if things < 1 and thing_share > 0:
            raise ValueError(f"things must be at least 1, got {things}")
        self.size, self.length, self.seed = size, length, seed
        self.thing_share, self.name_rate, self.style_share = thing_share, name_rate, style_share
        self._styles = tuple(named_styles().values())
        # Another image may show a named thing by chance; it is then called by its name as well.
        known = named_things(things) if thing_share > 0 else {}
        self._looks = tuple(known.values())
        self._thing_names = {look: name for name, look in known.items()}
        self.caption_dropout = caption_dropout
        self.first_index = first_index + (_VALIDATION_OFFSET if split == "val" else 0)
        self._order: tuple[int, np.ndarray] | None = None  # the last pass's permutation

    def __len__(self) -> int:
        return self.length

    def image_ids(self) -> Sequence[int]:
        """Return the ids of all distinct images: 0 … length - 1."""
        return range(self.length)

    def spec(self, image_id: int) -> Spec:
        """Return what an image shows."""
        index = self.first_index + image_id
        spec = sample_spec(self.seed, index)
        rng = generator(self.seed, index, Purpose.NAME)
        kind = rng.random()
        if kind < self.thing_share:
            shape, colour, texture, second = self._looks[int(rng.integers(len(self._looks)))]
            return replace(spec, shape=shape, colour=colour, texture=texture, second=second)
        if kind < self.thing_share + self.style_share:
            medium, tone = self._styles[int(rng.integers(len(self._styles)))]
            return replace(spec, medium=medium, tone=tone)
        return spec

    def image(self, image_id: int) -> Array:
        """Return an image: float32 [size, size, 3] in [-1, 1]."""
        return render(self.spec(image_id), self.size)

    def image_of(self, sample: int) -> int:
        """Return which image a sample of the run's stream shows."""
        epoch, place = divmod(sample, self.length)
        if self._order is None or self._order[0] != epoch:
            shuffled = generator(self.seed, epoch, Purpose.ORDER).permutation(self.length)
            self._order = (epoch, shuffled)
        return int(self._order[1][place])

    def caption(self, sample: int, spec: Spec) -> str:
        """Describe an image for one sample: in other words at every pass, sometimes not at all."""
        dropped = generator(self.seed, sample, Purpose.CAPTION_DROPOUT).random()
        if dropped < self.caption_dropout:
            return ""
        return caption(
            spec,
            generator(self.seed, sample, Purpose.CAPTION),
            self.name(sample, spec),
            style_name(spec),
        )

    def name(self, sample: int, spec: Spec) -> str:
        """Return the name that one sample's caption says, empty where it describes the object."""
        said = generator(self.seed, sample, Purpose.NAME).random() < self.name_rate
        return self._thing_names.get(spec.look, "") if said else ""

    def describe(self, sample: int) -> dict[str, Any]:
        """Return a sample of the run's stream without pixels: `caption`, `image_id`, `sample`."""
        image_id = self.image_of(sample)
        caption = self.caption(sample, self.spec(image_id))
        return {"caption": caption, "image_id": image_id, "sample": sample}

    def __getitem__(self, sample: int) -> dict[str, Any]:
        """Return what `describe` returns, and `image` float32 [size, size, 3] in [-1, 1]."""
        item = self.describe(sample)
        return item | {"image": self.image(item["image_id"])}
