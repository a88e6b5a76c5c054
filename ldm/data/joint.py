"""Two concepts learned at once: each alone, and sometimes one pasted onto the other.

An unpublished experiment of the authors' early code ("joint compositions"). Models often fail at
relations between two words, because each word is learned from its own scenes. Here some scenes show
both concepts.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from ldm.data.personalized import PersonalizedBase
from ldm.data.templates import check_placeholder, fill, find_templates, with_second
from ldm.randomness import Purpose, generator
from ldm.util import UserError, at_least

# Sides of a pasted box, as shares of the sides of the image.
SMALLEST, LARGEST = 0.25, 0.5
# Least side of an image in pixels: a quarter of it is one pixel.
MINIMUM = 4
# Added to the seed of the run, which is below 2^32, for the second concept.
OTHER_SEED = 2**32


class JointConcepts(PersonalizedBase):
    """Images of two folders, each under captions with its own placeholder, and pastings of both.

    With probability `joint_prob` a sample is a pasting: an image of the first concept with one of
    the second pasted into a box, each side ¼ to ½ of the image's and anywhere within, under a
    caption that names both: "a photo of a * with a @". All other samples alternate between the two
    concepts, so that each batch teaches both words.

    Pastings come from a pool that is a function of the seed, so that each is encoded once, like
    every other image. In the paper's 5000 steps of 8 samples, each of 256 pastings comes up 16
    times, each time with another noise.

    An image's id is, with n and m images of the concepts, 2·place + flip for the first, 2n and
    more for the second, and 2(n + m) + number for a pasting.

    Args:
        data_root: the first concept's folder.
        second_root: the second concept's folder.
        second_placeholder: the placeholder of the second word.
        joint_prob: share of samples that are pastings; the authors' 0.1.
        pastings: different pastings in the pool, at least 1.
        second_templates: templates of the second concept; by default those of the first.
        joint_templates: name of a set, file, or list of texts with two `{}`, for the first and the
            second word; by default the first's templates, each followed by " with a {}".
        options: of `PersonalizedBase`, for both concepts; `coarse_class_text` and `first_word` are
            the first's. `per_image_tokens` is refused.

    Raises:
        UserError: as `PersonalizedBase`; no `second_root`; a template without two places; concepts
            of different sizes.
        ValueError: an argument out of range; names it.
    """

    def __init__(
        self,
        data_root: str | Path,
        second_root: str | Path | None = None,
        second_placeholder: str = "@",
        *,
        joint_prob: float = 0.1,
        pastings: int = 256,
        second_templates: str | Path | Sequence[str] | None = None,
        joint_templates: str | Path | Sequence[str] | None = None,
        **options: Any,
    ) -> None:
        if not second_root:
            raise UserError("two concepts need two folders: give the second's, --second_root DIR")
        if not 0 <= joint_prob <= 1:
            raise ValueError(f"joint_prob must lie in [0, 1], got {joint_prob}")
        at_least(1, pastings=pastings)
        super().__init__(data_root, **options)
        if self.own_words:
            raise UserError(
                "two concepts are learned without words of single images: switch "
                "per_image_tokens off"
            )
        own: dict[str, Any] = {
            "placeholder_token": second_placeholder,
            "templates": second_templates or options.get("templates"),
            "coarse_class_text": None,
            "first_word": None,
            "seed": self.seed + OTHER_SEED,
        }
        self.second = PersonalizedBase(second_root, **{**options, **own})
        self.caption_files |= self.second.caption_files
        self.length = 2 * max(self.length, len(self.second))
        self.joint_prob, self.pastings = joint_prob, pastings
        self.joint_templates = _joint_templates(joint_templates, self.templates)
        self._check_pair()

    def files(self) -> tuple[Path, ...]:
        return (*super().files(), *self.second.files())

    def image_ids(self) -> Sequence[int]:
        first, both = self._offsets()
        second = [first + image_id for image_id in self.second.image_ids()]
        pasted = range(both, both + self.pastings) if self.joint_prob else ()
        return [*super().image_ids(), *second, *pasted]

    def levels(self, image_id: int) -> npt.NDArray[np.uint8]:
        """Return a concept's image or a pasting, uint8 [h, w, 3]."""
        first, both = self._offsets()
        if image_id >= both + self.pastings:
            raise ValueError(f"image_id must be below {both + self.pastings}, got {image_id}")
        if image_id >= both:
            return self._pasting(image_id - both)
        if image_id >= first:
            return self.second.levels(image_id - first)
        return super().levels(image_id)

    def choose(self, sample: int) -> tuple[int, str]:
        first, both = self._offsets()
        rng = generator(self.seed, sample, Purpose.MIXTURE)
        if rng.random() < self.joint_prob:
            number = int(rng.integers(self.pastings))
            template = self.joint_templates[rng.integers(len(self.joint_templates))]
            return both + number, fill(template, self.shown, self.second.shown)
        # Each concept counts its own samples, so that each pass takes every image.
        turn, which = divmod(sample, 2)
        if which == 0:
            return super().choose(turn)
        image_id, caption = self.second.choose(turn)
        return first + image_id, caption

    def texts(self) -> list[str]:
        both = [fill(t, self.shown, self.second.shown) for t in self.joint_templates]
        joint = both if self.joint_prob else []
        return list(dict.fromkeys([*super().texts(), *self.second.texts(), *joint]))

    def _offsets(self) -> tuple[int, int]:
        """Return the first ids of the second concept's images and of the pastings."""
        first = 2 * len(self.paths)
        return first, first + 2 * len(self.second.paths)

    def _pasting(self, number: int) -> npt.NDArray[np.uint8]:
        """Paste an image of the second concept onto one of the first: uint8 [h, w, 3]."""
        rng = generator(self.seed, number, Purpose.PASTING)
        image_ids = [
            2 * int(rng.integers(len(concept.paths))) + int(rng.random() < concept.flip_p)
            for concept in (self, self.second)
        ]
        image = self.levels(image_ids[0]).copy()
        height, width, _ = image.shape
        h, w = (
            int(rng.integers(math.ceil(SMALLEST * side), math.floor(LARGEST * side) + 1))
            for side in (height, width)
        )
        top, left = (int(rng.integers(side - part + 1)) for side, part in ((height, h), (width, w)))
        pasted = Image.fromarray(self.second.levels(image_ids[1]))
        box = np.asarray(pasted.resize((w, h), self.resampling))
        image[top : top + h, left : left + w] = box
        return image

    def _check_pair(self) -> None:
        """Raise UserError if the concepts do not fit together."""
        if self.placeholder == self.second.placeholder:
            raise UserError(
                f"both concepts are called {self.placeholder!r}: give the second another "
                "second_placeholder"
            )
        for word in (self.placeholder, self.second.placeholder):
            check_placeholder(self.joint_templates, word)
        (height, width), (h, w) = (c.levels(0).shape[:2] for c in (self, self.second))
        if (height, width) != (h, w):
            raise UserError(
                f"the first concept's images are {width}x{height} and the second's {w}x{h}: "
                "set size"
            )
        if min(height, width) < MINIMUM:
            raise UserError(
                f"images of {width}x{height} are too small to paste into: set size to at least "
                f"{MINIMUM}"
            )


def _joint_templates(
    wanted: str | Path | Sequence[str] | None, templates: Sequence[str]
) -> tuple[str, ...]:
    """Return templates with two places: those given, or made of the first concept's."""
    if wanted is None:
        return with_second(templates, "a {}")
    found = find_templates(wanted)
    short = [template for template in found if template.count("{}") < 2]
    if short:
        raise UserError(
            f"joint_templates need two {{}}, for the first and the second word, got {short[0]!r}"
        )
    return found
