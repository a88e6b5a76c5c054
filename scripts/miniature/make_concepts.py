"""Render the concepts to invert: things and styles that the miniature model has never seen.

    python scripts/miniature/make_concepts.py
    python scripts/miniature/make_concepts.py --images 25 --out outputs/concepts   # larger sets

Writes examples/concepts/NAME/1.png … 5.png, as someone might photograph the thing in five places,
and examples/concepts/concepts.json, which says of each concept what it is, its initializer word and
the scenes that its images do not show. An image depends on its concept and number alone: a larger
set begins with the images of a smaller one.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ldm.miniature.grammar import MEDIUM_PHRASES, STYLE_PHRASES, object_phrase, with_article
from ldm.miniature.render import Spec, render
from ldm.miniature.world import held_out, sample_spec

SIZE = 128
IMAGES = 5
MOST_IMAGES = 100  # numbers of one concept, before those of another begin
SEED = 2208  # of the images' small differences: place, size, tilt, light
SHOWN_SCENES = ("meadow", "kitchen", "desert", "snow", "city")
PROMPT_SCENES = ("beach", "forest", "moon", "sea", "sunset")


@dataclass(frozen=True)
class Concept:
    """A thing (a shape, colour, texture and second colour) or a style (a medium)."""

    name: str
    first_word: str
    look: tuple[str, str, str, str] = ("", "", "", "")
    medium: str = "photo"

    @property
    def is_style(self) -> bool:
        return not self.look[0]

    def spec(self, number: int) -> Spec:
        """Describe one of the images; scene, view and a style's object vary."""
        spec = sample_spec(SEED, number + MOST_IMAGES * sum(map(ord, self.name)))
        scene = SHOWN_SCENES[number % len(SHOWN_SCENES)]
        if self.is_style:
            return replace(spec, medium=self.medium, scene=scene)
        shape, colour, texture, second = self.look
        return replace(
            spec,
            **{"shape": shape, "colour": colour, "texture": texture, "second": second},
            **{"medium": self.medium, "scene": scene},
        )

    def record(self) -> dict[str, Any]:
        """Say what it is, for the demo and the evaluation."""
        shape, colour, texture, second = self.look
        spec = self.spec(0)
        if self.is_style:
            words = STYLE_PHRASES[self.medium]
            attributes = {"medium": self.medium}
        else:
            words = with_article(object_phrase(spec))
            attributes = {"shape": shape, "colour": colour, "texture": texture, "second": second}
        return {
            "kind": "style" if self.is_style else "object",
            "placeholder": "*",
            "first_word": self.first_word,
            "words": words,
            "caption": f"{MEDIUM_PHRASES[self.medium]} {words}" if not self.is_style else words,
            "attributes": attributes,
            "shown_scenes": list(SHOWN_SCENES),
            "prompt_scenes": list(PROMPT_SCENES),
        }


CONCEPTS = (
    Concept("teal-star", "star", ("star", "teal", "dots", "yellow")),
    Concept("red-mug", "mug", ("mug", "red", "stripes", "white")),
    Concept("orange-fish", "fish", ("fish", "orange", "stripes", "navy")),
    Concept("pink-heart", "heart", ("heart", "pink", "dots", "maroon")),
    Concept("lime-arrow", "arrow", ("arrow", "lime", "border", "purple")),
    Concept("yellow-crescent", "crescent", ("crescent", "yellow", "fade", "magenta")),
    Concept("blue-flower", "flower", ("flower", "blue", "border", "orange")),
    Concept("cyan-ring", "ring", ("ring", "cyan", "stripes", "magenta")),
    Concept("white-cross", "cross", ("cross", "white", "checks", "red")),
    Concept("purple-triangle", "triangle", ("triangle", "purple", "fade", "lime")),
    Concept("green-circle", "circle", ("circle", "green", "checks", "white")),
    Concept("navy-square", "square", ("square", "navy", "dots", "orange")),
    Concept("butterfly", "flower", ("butterfly", "magenta", "plain", "")),
    Concept("spiral", "ring", ("spiral", "green", "plain", "")),
    Concept("sepia", "photo", medium="sepia"),
    Concept("blueprint", "sketch", medium="blueprint"),
    Concept("stamp", "sketch", medium="stamp"),
    Concept("riso", "painting", medium="riso"),
)


def to_image(image: np.ndarray) -> Image.Image:
    """Turn [h, w, 3] in [-1, 1] into an image file's contents."""
    return Image.fromarray(((image + 1) * 127.5).round().astype(np.uint8))


def main() -> None:
    """Render all concepts."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("examples/concepts"))
    parser.add_argument("--images", type=int, default=IMAGES, help="of each concept (5)")
    options = parser.parse_args()
    out, count = options.out, options.images
    if not 1 <= count <= MOST_IMAGES:
        parser.error(f"--images must lie in [1, {MOST_IMAGES}], got {count}")
    for concept in CONCEPTS:
        folder = out / concept.name
        folder.mkdir(parents=True, exist_ok=True)
        for number in range(count):
            spec = concept.spec(number)
            if not held_out(spec):
                raise RuntimeError(f"{concept.name} is not held out of training: {spec}")
            to_image(render(spec, SIZE)).save(folder / f"{number + 1}.png", optimize=True)
    records = {concept.name: concept.record() for concept in CONCEPTS}
    (out / "concepts.json").write_text(json.dumps(records, indent=2) + "\n", encoding="utf-8")
    print(f"{out}: {len(CONCEPTS)} concepts of {count} images, {SIZE} pixels a side")


if __name__ == "__main__":
    main()
