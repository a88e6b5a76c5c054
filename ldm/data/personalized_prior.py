"""Images of a word, and images of its class for DreamBooth's prior preservation."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ldm.data.personalized import PersonalizedBase
from ldm.util import UserError, at_least

# Class images count their samples from here, so that their noise differs from that of the word.
FIRST_SAMPLE = 2**48
CLASS_IMAGES = 200  # DreamBooth's
# Options that the class images share with the images of the word.
SHARED = ("size", "interpolation", "center_crop", "flip_p", "seed")


def class_prompt_of(first_word: str | None) -> str:
    """Return the prompt of the class images; UserError without an initializer word."""
    if not first_word:
        raise UserError(
            "prior preservation needs a class: give --init_word, or class_prompt, such as "
            "'a photo of a cat'"
        )
    return f"a photo of a {first_word}"


class PersonalizedWithPrior(PersonalizedBase):
    """Each training sample holds a sample of the class under `prior` (Ruiz et al. 2022, §3.2).

    The ids of the class images follow those of the images of the word.

    Args:
        data_root: folder of the word's images.
        class_root: folder of the class images; by default a run generates them with its base model
            and sets this.
        class_pictures: number of class images that a run generates, at least 1.
        class_prompt: their caption; "a photo of a INITIALIZER_WORD" by default.
        options: of `PersonalizedBase`, whose errors it has too.
    """

    def __init__(
        self,
        data_root: str | Path,
        class_root: str | Path | None = None,
        class_pictures: int = CLASS_IMAGES,
        class_prompt: str | None = None,
        **options: Any,
    ) -> None:
        super().__init__(data_root, **options)
        at_least(1, class_pictures=class_pictures)
        if class_root is None or not Path(class_root).is_dir():
            raise UserError(f"class_root must be a folder of class images, got {class_root!r}")
        prompt = class_prompt or class_prompt_of(options.get("first_word"))
        shared = {name: options[name] for name in SHARED if name in options}
        # A dataset with the prompt as its only caption.
        self.prior = PersonalizedBase(
            class_root, templates=["{}"], placeholder_token=prompt, **shared
        )
        self._first_id = 2 * len(self.paths)

    def image_ids(self) -> list[int]:
        return [*super().image_ids(), *(self._first_id + i for i in self.prior.image_ids())]

    def image(self, image_id: int) -> npt.NDArray[np.float32]:
        if image_id >= self._first_id:
            return self.prior.image(image_id - self._first_id)
        return super().image(image_id)

    def describe(self, sample: int) -> dict[str, Any]:
        """Return `PersonalizedBase`'s sample, and in training one of the class under `prior`."""
        item = super().describe(sample)
        if not self.training:
            return item
        other = self.prior.describe(FIRST_SAMPLE + sample)
        return item | {"prior": other | {"image_id": self._first_id + other["image_id"]}}

    def __getitem__(self, sample: int) -> dict[str, Any]:
        item = super().__getitem__(sample)
        if prior := item.get("prior"):
            prior["image"] = self.image(prior["image_id"])
        return item
