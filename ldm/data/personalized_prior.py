"""A word's pictures beside others of its class, for DreamBooth's prior preservation."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ldm.data.personalized import PersonalizedBase
from ldm.util import UserError

# Class pictures count their samples from here on, so that their noise is not the word's pictures'.
FIRST_SAMPLE = 2**48
CLASS_IMAGES = 200  # DreamBooth's
# What a set of class pictures has in common with the word's.
SHARED = ("size", "interpolation", "center_crop", "flip_p", "seed")


def class_prompt_of(first_word: str | None) -> str:
    """Return the prompt that class pictures are drawn from and trained under.

    Raises:
        UserError: there is no first word to name the class.
    """
    if not first_word:
        raise UserError(
            "prior preservation needs a class: give --init_word, or class_prompt, such as "
            "'a photo of a cat'"
        )
    return f"a photo of a {first_word}"


class PersonalizedWithPrior(PersonalizedBase):
    """Each training sample has another one, of the class, under `prior` (Ruiz et al. 2022, §3.2).

    The pictures' ids of the class follow those of the word.

    Args:
        data_root: folder of the word's pictures.
        class_root: folder of the class's; where none is given, a run draws them by its base model
            and fills this in.
        class_pictures: how many a run draws, at least 1.
        class_prompt: their caption; "a photo of a FIRST_WORD" by default.
        options: as `PersonalizedBase`'s.

    Raises:
        UserError: as `PersonalizedBase`; no class pictures, or no class.
        ValueError: as `PersonalizedBase`.
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
        if class_pictures < 1:
            raise ValueError(f"class_pictures must be at least 1, got {class_pictures}")
        if class_root is None or not Path(class_root).is_dir():
            raise UserError(f"class_root must be a folder of class pictures, got {class_root!r}")
        prompt = class_prompt or class_prompt_of(options.get("first_word"))
        shared = {name: options[name] for name in SHARED if name in options}
        # A set whose every caption is the prompt.
        self.prior = PersonalizedBase(
            class_root, templates=["{}"], placeholder_token=prompt, **shared
        )
        self._first_id = 2 * len(self.paths)

    def picture_ids(self) -> list[int]:
        """Return the id of every picture of both kinds, ascending."""
        return [*super().picture_ids(), *(self._first_id + i for i in self.prior.picture_ids())]

    def picture(self, picture_id: int) -> npt.NDArray[np.float32]:
        """Return a picture of either kind, float32 [h, w, 3] in [-1, 1]."""
        if picture_id >= self._first_id:
            return self.prior.picture(picture_id - self._first_id)
        return super().picture(picture_id)

    def __getitem__(self, sample: int) -> dict[str, Any]:
        """Return `PersonalizedBase`'s sample, and in training one of the class under `prior`."""
        item = super().__getitem__(sample)
        if not self.training:
            return item
        self.prior.with_pictures = self.with_pictures
        other = self.prior[FIRST_SAMPLE + sample]
        return item | {"prior": other | {"picture": self._first_id + other["picture"]}}
