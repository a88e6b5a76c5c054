"""The protocol of a dataset whose latents can be cached."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt


@runtime_checkable
class DescribedImages(Protocol):
    """Captioned images, indexed by the samples of a run.

    A sample is `caption` str, `image_id` int, `sample` int and `image` float32 [h, w, 3] in
    [−1, 1].
    """

    def __len__(self) -> int:
        """Return the number of samples in an epoch; larger indices are valid too."""
        ...

    def describe(self, sample: int) -> dict[str, Any]:
        """Return a sample without its image."""
        ...

    def image_ids(self) -> Sequence[int]:
        """Return the ids of all images."""
        ...

    def image(self, image_id: int) -> npt.NDArray[np.float32]:
        """Return an image, float32 [h, w, 3] in [−1, 1]."""
        ...

    def __getitem__(self, sample: int) -> dict[str, Any]:
        """Return a sample."""
        item = self.describe(sample)
        return item | {"image": self.image(item["image_id"])}
