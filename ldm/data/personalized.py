"""A few images of one object, captioned by templates that name the new word.

The class keeps the original's name and parameters; `personalized_style` holds the style variant.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
from PIL import Image

from ldm.data.folder import caption_file, captions_of, insert_placeholder, list_images
from ldm.data.protocol import DescribedImages
from ldm.data.templates import (
    OBJECT_TEMPLATES,
    check_placeholder,
    fill,
    find_templates,
    with_second,
)
from ldm.image_io import open_rgb
from ldm.randomness import Purpose, generator
from ldm.util import UserError, at_least, one_of
from ldm.words.placeholders import DEFAULT_PLACEHOLDER, PER_IMAGE_PLACEHOLDERS

logger = logging.getLogger(__name__)

INTERPOLATIONS = {
    "nearest": Image.Resampling.NEAREST,
    "linear": Image.Resampling.BILINEAR,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}
SETS = ("train", "val", "validation", "test")
# Decoded images stay in memory up to this many bytes; further ones are decoded at each use.
CACHE_BYTES = 2**30


class PersonalizedBase(DescribedImages):
    """Images of a folder under captions with the placeholder, indexed by the run's samples.

    The image and the caption of a sample are functions of (seed, sample). Each pass over the n
    images has its own order. Validation takes the images in order and never flips. The id of an
    image is 2·place + (1 if flipped).

    Args:
        data_root: the folder; see `list_images` for the files that count.
        size: side in pixels of the square to which every image is resized, without a crop; None
            keeps the images as they are.
        repeats: passes over the images in one epoch of training.
        interpolation: how images are resized, such as `bicubic`; one of `INTERPOLATIONS`.
        flip_p: probability of a horizontal flip, in training.
        set: what the samples are for: "train", or "val" (also "validation", "test").
        placeholder_token: the placeholder of the word.
        per_image_tokens: with probability `mixing_prob`, name a word of the image's own too
            (paper, section 5.1); at most as many images as `per_image_placeholders`.
        center_crop: cut the middle square out before resizing.
        mixing_prob: share of captions that name the image's own word.
        coarse_class_text: text put before the placeholder, e.g. "cat" for "a photo of a cat *".
        templates: name of a set, file, or list of texts with `{}`; the paper's by default.
        captions: use the captions beside the images (`image.txt`, one a line), one of them at
            random for each sample; see `insert_placeholder` for the place of the word. Images
            without captions use templates.
        first_word: the initializer word, which captions may name.
        seed: seed of order, flips and captions.
        per_image_placeholders: the images' own words; by default the 22 Hebrew letters.
        skip_bad: leave out images that cannot be read, and log their names; an error by default.

    Attributes:
        paths: the images' files.
        skipped: name and reason of each image left out.
        caption_files: caption → the file that it comes from.

    Raises:
        UserError: an unusable folder, image, caption or template; the message names it.
        ValueError: an argument out of range; the message names it.
    """

    default_templates: ClassVar[tuple[str, ...]] = OBJECT_TEMPLATES

    def __init__(
        self,
        data_root: str | Path,
        size: int | None = None,
        repeats: int = 100,
        interpolation: str = "bicubic",
        flip_p: float = 0.5,
        set: str = "train",
        placeholder_token: str = DEFAULT_PLACEHOLDER,
        per_image_tokens: bool = False,
        center_crop: bool = False,
        mixing_prob: float = 0.25,
        coarse_class_text: str | None = None,
        templates: str | Path | Sequence[str] | None = None,
        captions: bool = False,
        first_word: str | None = None,
        seed: int = 23,
        per_image_placeholders: Sequence[str] | None = None,
        skip_bad: bool = False,
    ) -> None:
        at_least(1, size=size, repeats=repeats)
        one_of(INTERPOLATIONS, interpolation=interpolation)
        one_of(SETS, set=set)
        for name, value in (("flip_p", flip_p), ("mixing_prob", mixing_prob)):
            if not 0 <= value <= 1:
                raise ValueError(f"{name} must lie in [0, 1], got {value}")
        self.size, self.center_crop = size, center_crop
        self.resampling = INTERPOLATIONS[interpolation]
        self.training = set == "train"
        self.flip_p = flip_p if self.training else 0.0
        self.seed, self.mixing_prob = seed, mixing_prob

        self.placeholder = placeholder_token
        self.shown = (
            f"{coarse_class_text} {placeholder_token}" if coarse_class_text else placeholder_token
        )
        self.templates = self.default_templates if templates is None else find_templates(templates)
        self.dual_templates = with_second(self.templates)
        check_placeholder(self.templates, placeholder_token)

        self._cache: dict[int, npt.NDArray[np.uint8]] = {}
        self.skipped: list[tuple[str, str]] = []
        self.paths = self._read_all(list_images(data_root), skip_bad)
        self.length = len(self.paths) * (repeats if self.training else 1)
        named = PER_IMAGE_PLACEHOLDERS if per_image_placeholders is None else per_image_placeholders
        self.own_words = tuple(named) if per_image_tokens else ()
        if per_image_tokens:
            self._check_own_words()
        texts = captions_of(self.paths) if captions else ((),) * len(self.paths)
        self.captions = tuple(
            tuple(insert_placeholder(t, placeholder_token, first_word, self.shown) for t in own)
            for own in texts
        )
        self._order: tuple[int, npt.NDArray[np.int64]] | None = None
        self.caption_files = {
            text: str(caption_file(path))
            for path, own in zip(self.paths, self.captions, strict=True)
            for text in own
        }

    def __len__(self) -> int:
        """Return the samples in one epoch; any index from 0 on is valid."""
        return self.length

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """Yield the samples of the first epoch."""
        return (self[sample] for sample in range(self.length))

    @property
    def num_images(self) -> int:
        """The number of images, by the original's name."""
        return len(self.paths)

    def files(self) -> tuple[Path, ...]:
        """Return the images' files, in order of places."""
        return self.paths

    def image_ids(self) -> Sequence[int]:
        """Return the id of every image that samples may show, ascending."""
        flips = [flip for flip, p in ((0, 1 - self.flip_p), (1, self.flip_p)) if p > 0]
        return [2 * place + flip for place in range(len(self.paths)) for flip in flips]

    def image(self, image_id: int) -> npt.NDArray[np.float32]:
        """Return an image, float32 [h, w, 3] in [-1, 1]."""
        return (self.levels(image_id) / 127.5 - 1.0).astype(np.float32)

    def levels(self, image_id: int) -> npt.NDArray[np.uint8]:
        """Return an image, uint8 [h, w, 3]."""
        place, flipped = divmod(image_id, 2)
        if not 0 <= place < len(self.paths):
            raise ValueError(f"image_id must be below {2 * len(self.paths)}, got {image_id}")
        levels = self._cache[place] if place in self._cache else self._read(self.paths[place])
        return levels[:, ::-1] if flipped else levels

    def describe(self, sample: int) -> dict[str, Any]:
        """Return a sample without its pixels: `caption`, `image_id` and `sample`."""
        if sample < 0:
            raise IndexError(f"sample must not be negative, got {sample}")
        image_id, caption = self.choose(sample)
        return {"caption": caption, "image_id": image_id, "sample": sample}

    def choose(self, sample: int) -> tuple[int, str]:
        """Return the image id and the caption of a sample."""
        place = self._place(sample)
        flipped = generator(self.seed, sample, Purpose.FLIP).random() < self.flip_p
        return 2 * place + int(flipped), self.caption(sample, place)

    def caption(self, sample: int, place: int) -> str:
        """Return the caption of a sample, for the image at `place`."""
        if self.captions[place]:
            own = self.captions[place]
            return own[generator(self.seed, sample, Purpose.CAPTION).integers(len(own))]
        rng = generator(self.seed, sample, Purpose.TEMPLATE)
        if self.own_words and rng.random() < self.mixing_prob:
            template = self.dual_templates[rng.integers(len(self.dual_templates))]
            return fill(template, self.shown, self.own_words[place])
        return fill(self.templates[rng.integers(len(self.templates))], self.shown)

    def texts(self) -> list[str]:
        """Return every caption that samples may have, for a check that none loses the word."""
        found = [text for own in self.captions for text in own]
        if not all(self.captions):
            found += [fill(template, self.shown) for template in self.templates]
            found += [
                fill(template, self.shown, word)
                for word in self.own_words[: len(self.paths)]
                for template in self.dual_templates
            ]
        return list(dict.fromkeys(found))

    def _place(self, sample: int) -> int:
        turn, step = divmod(sample, len(self.paths))
        if not self.training:
            return step
        if self._order is None or self._order[0] != turn:
            rng = generator(self.seed, turn, Purpose.ORDER)
            self._order = (turn, rng.permutation(len(self.paths)))
        return int(self._order[1][step])

    def _check_own_words(self) -> None:
        most = len(self.own_words)
        if len(self.paths) > most:
            raise UserError(
                f"per_image_tokens has words for {most} images, and there are {len(self.paths)}: "
                "take images out, or switch it off"
            )
        for word in (self.placeholder, *self.own_words):
            check_placeholder(self.dual_templates, word)
        for word in self.own_words:
            if word == self.placeholder:
                raise UserError(
                    f"placeholder_token {word!r} is one of per_image_tokens' words: choose another"
                )

    def _read(self, path: Path) -> npt.NDArray[np.uint8]:
        image = open_rgb(path)
        if self.center_crop:
            side = min(image.size)
            left, top = (image.width - side) // 2, (image.height - side) // 2
            image = image.crop((left, top, left + side, top + side))
        if self.size is not None:
            image = image.resize((self.size, self.size), self.resampling)
        return np.asarray(image)

    def _read_all(self, paths: Sequence[Path], skip_bad: bool) -> tuple[Path, ...]:
        """Decode every image once, so that errors come before any expensive work.

        Returns the files of the images that can be read; all, unless `skip_bad`.
        """
        kept, shapes = 0, {}
        good: list[Path] = []
        for path in paths:
            try:
                levels = self._read(path)
            except UserError as error:
                if not skip_bad:
                    raise UserError(f"{error}, or give --skip_bad (skip_bad: true)") from error
                self.skipped.append((path.name, str(error)))
                continue
            shapes[levels.shape] = path.name
            kept += levels.nbytes
            if kept <= CACHE_BYTES:
                self._cache[len(good)] = levels
            good.append(path)
        self._report_skipped(len(paths))
        if len(shapes) > 1:
            (h0, w0, _), (h1, w1, _) = list(shapes)[:2]
            one, other = list(shapes.values())[:2]
            raise UserError(
                f"images differ in size, {one!r} is {w0}x{h0} and {other!r} {w1}x{h1}: set size"
            )
        return tuple(good)

    def _report_skipped(self, count: int) -> None:
        """Log the images left out of `count`; raise UserError if that is all of them."""
        if not self.skipped:
            return
        if len(self.skipped) == count:
            raise UserError(f"none of the {count} images of data_root can be read: give others")
        reasons = "; ".join(reason for _, reason in self.skipped)
        logger.warning(
            "skipped %d of %d images that cannot be read: %s", len(self.skipped), count, reasons
        )
