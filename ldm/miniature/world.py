"""The miniature world: an endless supply of captioned pictures, drawn when asked for.

One object of 12 shapes, 20 colours and 6 textures, in one of 10 scenes, in one of 5 media.
Everything is a function of (seed, index). Some combinations, two shapes and two media never occur
in training: they are the concepts to invert (`held_out`).
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np

from ldm.miniature.grammar import caption, full_caption
from ldm.miniature.render import COLOURS, MEDIA, SCENES, SHAPES, TEXTURES, Array, Spec, render
from ldm.randomness import Purpose, generator

# (shape, colour, texture, second colour), in every scene and medium.
HELD_OUT_LOOKS = frozenset(
    {
        ("star", "teal", "dots", "yellow"),
        ("mug", "red", "stripes", "white"),
        ("fish", "orange", "stripes", "navy"),
        ("heart", "pink", "dots", "maroon"),
        ("arrow", "lime", "border", "purple"),
        ("crescent", "yellow", "fade", "magenta"),
        ("flower", "blue", "border", "orange"),
        ("cross", "white", "checks", "red"),
        ("ring", "cyan", "stripes", "magenta"),
        ("triangle", "purple", "fade", "lime"),
    }
)
# Validation pictures stand this far from the training pictures in the stream of indices.
_VALIDATION_OFFSET = 2**40
_MINIMUM_CONTRAST = 55.0  # Lab distance between an object's two colours


def held_out(spec: Spec) -> bool:
    """Tell whether a picture shows something that training must never show."""
    return spec.look in HELD_OUT_LOOKS or spec.shape not in SHAPES or spec.medium not in MEDIA


def _lab(colour: tuple[int, int, int]) -> np.ndarray:
    """Convert sRGB in 0..255 to CIE L*a*b* (D65)."""
    value = np.asarray(colour, np.float64) / 255
    linear = np.where(value <= 0.04045, value / 12.92, ((value + 0.055) / 1.055) ** 2.4)
    to_xyz = [[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]
    x, y, z = np.cbrt(np.maximum(np.asarray(to_xyz) @ linear / [0.9505, 1.0, 1.089], 0.009))
    return np.asarray([116 * y - 16, 500 * (x - y), 200 * (y - z)])


def _contrasting() -> dict[str, tuple[str, ...]]:
    partners: dict[str, list[str]] = {name: [] for name in COLOURS}
    for one, other in itertools.permutations(COLOURS, 2):
        if np.linalg.norm(_lab(COLOURS[one]) - _lab(COLOURS[other])) >= _MINIMUM_CONTRAST:
            partners[one].append(other)
    return {name: tuple(others) for name, others in partners.items()}


# The second colours that stand out against each first one.
CONTRASTING = _contrasting()


def _pick(rng: np.random.Generator, names: Sequence[str]) -> str:
    return names[int(rng.integers(len(names)))]


def sample_spec(seed: int, index: int) -> Spec:
    """Draw what picture `index` shows, uniformly over the parts; never something held out."""
    rng = generator(seed, index, Purpose.PICTURE)
    while True:
        colour, texture = _pick(rng, tuple(COLOURS)), _pick(rng, TEXTURES)
        spec = Spec(
            shape=_pick(rng, tuple(SHAPES)),
            colour=colour,
            texture=texture,
            second="" if texture == "plain" else _pick(rng, CONTRASTING[colour]),
            scene=_pick(rng, tuple(SCENES)),
            medium=_pick(rng, MEDIA),
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


class MiniatureWorld:
    """A finite set of pictures of the world, read over and over with fresh captions.

    Args:
        size: side of the square pictures.
        length: number of distinct pictures; one pass shows each once, in an order of its own.
        seed: of the pictures, their order and their captions.
        split: "train" or "val"; the two share no picture index.
        caption_dropout: share of samples with the empty caption, which guidance needs.
        first_index: where in the endless stream the set begins.
    """

    def __init__(
        self,
        size: int = 64,
        length: int = 60000,
        seed: int = 0,
        split: str = "train",
        caption_dropout: float = 0.0,
        first_index: int = 0,
    ) -> None:
        if split not in ("train", "val"):
            raise ValueError(f"split must be 'train' or 'val', got {split!r}")
        if length < 1:
            raise ValueError(f"length must be at least 1, got {length}")
        if not 0 <= caption_dropout <= 1:
            raise ValueError(f"caption_dropout must lie in [0, 1], got {caption_dropout}")
        self.size, self.length, self.seed = size, length, seed
        self.caption_dropout = caption_dropout
        self.first_index = first_index + (_VALIDATION_OFFSET if split == "val" else 0)
        self._order: tuple[int, np.ndarray] | None = None  # the last pass's permutation

    def __len__(self) -> int:
        return self.length

    def image_ids(self) -> Sequence[int]:
        """Return the ids of all distinct pictures: 0 … length - 1."""
        return range(self.length)

    def spec(self, picture_id: int) -> Spec:
        """Return what a picture shows."""
        return sample_spec(self.seed, self.first_index + picture_id)

    def image(self, picture_id: int) -> Array:
        """Draw a picture: float32 [size, size, 3] in [-1, 1]."""
        return render(self.spec(picture_id), self.size)

    def image_of(self, sample: int) -> int:
        """Return which picture a sample of the run's stream shows."""
        epoch, place = divmod(sample, self.length)
        if self._order is None or self._order[0] != epoch:
            shuffled = generator(self.seed, epoch, Purpose.ORDER).permutation(self.length)
            self._order = (epoch, shuffled)
        return int(self._order[1][place])

    def caption(self, sample: int, spec: Spec) -> str:
        """Describe a picture for one sample: in other words at every pass, sometimes not at all."""
        dropped = generator(self.seed, sample, Purpose.CAPTION_DROPOUT).random()
        if dropped < self.caption_dropout:
            return ""
        return caption(spec, generator(self.seed, sample, Purpose.CAPTION))

    def describe(self, sample: int) -> dict[str, Any]:
        """Return a sample without its pixels: `caption`, `image_id` and `sample`.

        Args:
            sample: any index of the run's stream.
        """
        image_id = self.image_of(sample)
        caption = self.caption(sample, self.spec(image_id))
        return {"caption": caption, "image_id": image_id, "sample": sample}

    def __getitem__(self, sample: int) -> dict[str, Any]:
        """Return what `describe` returns, and `image` float32 [size, size, 3] in [-1, 1]."""
        item = self.describe(sample)
        return item | {"image": self.image(item["image_id"])}


__all__ = [
    "HELD_OUT_LOOKS",
    "MiniatureWorld",
    "Spec",
    "caption",
    "full_caption",
    "held_out",
    "render",
    "sample_spec",
]
