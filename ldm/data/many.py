"""Several concepts side by side, for words that are learned independently in one run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ldm.data.personalized import PersonalizedBase
from ldm.data.protocol import DescribedImages
from ldm.util import instantiate_from_config


class ManyConcepts(DescribedImages):
    """Concepts whose samples follow each other in blocks: b of the first, b of the second.

    With a batch of n·b samples for n concepts, each concept's rows of a batch are the batch of a
    run of its own with b samples. Sample s is sample (s div n·b)·b + s mod b of a concept, under
    that number: its image, caption, timestep and noise are those of the concept's own run.

    An image's id is n times the concept's id of it, plus the concept's place.

    Args:
        concepts: target and params of a `PersonalizedBase` for each concept, by name.
        block: b, the samples of a concept in a batch, at least 1.

    Raises:
        UserError: as `PersonalizedBase`.
        ValueError: no concepts, or a block below 1.
    """

    def __init__(self, concepts: Mapping[str, Mapping[str, Any]], block: int) -> None:
        if not concepts or block < 1:
            raise ValueError(f"expected concepts and a block of at least 1, got {block}")
        self.concepts: dict[str, PersonalizedBase] = {
            name: instantiate_from_config(config) for name, config in concepts.items()
        }
        self._list, self.block = list(self.concepts.values()), block

    def __len__(self) -> int:
        return len(self._list) * max(len(concept) for concept in self._list)

    def place(self, sample: int) -> tuple[int, int]:
        """Return (place of the concept, its own sample) of a sample."""
        turn, rest = divmod(sample, len(self._list) * self.block)
        place, offset = divmod(rest, self.block)
        return place, turn * self.block + offset

    def describe(self, sample: int) -> dict[str, Any]:
        place, own = self.place(sample)
        item = self._list[place].describe(own)
        return item | {"image_id": item["image_id"] * len(self._list) + place}

    def image_ids(self) -> Sequence[int]:
        count = len(self._list)
        return sorted(
            count * image_id + place
            for place, concept in enumerate(self._list)
            for image_id in concept.image_ids()
        )

    def image(self, image_id: int) -> npt.NDArray[np.float32]:
        own, place = divmod(image_id, len(self._list))
        return self._list[place].image(own)

    def files(self) -> tuple[Path, ...]:
        return tuple(path for concept in self._list for path in concept.files())

    def texts(self) -> list[str]:
        return [text for concept in self._list for text in concept.texts()]
