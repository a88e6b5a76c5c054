"""What a dry run says about a folder of training images."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from ldm.data.folder import skipped_entries, some_names
from ldm.data.personalized import PersonalizedBase
from ldm.image_io import open_rgb

# EXIF's tag of the camera's orientation; 1 is upright.
ORIENTATION = 0x0112
# Longer side over shorter side, from which an image is far from square.
FAR_FROM_SQUARE = 1.5
# Bits of 64 in which the hashes of near duplicates may differ.
NEAR = 4
# Images compared with each other at most.
COMPARED = 1000


def image_lines(dataset: PersonalizedBase) -> Iterator[str]:
    """Yield sentences about the images: used, skipped, and what is done to them."""
    paths, size = dataset.files(), dataset.size
    yield f"{len(paths)} used: {some_names([path.name for path in paths])}"
    for root in dict.fromkeys(path.parent for path in paths):
        if skipped := skipped_entries(root):
            yield f"skipped {skipped}"
    if dataset.skipped:
        yield f"skipped as broken: {some_names([name for name, _ in dataset.skipped])}"
    rotated, enlarged, oblong = [], [], []
    for path in paths:
        with Image.open(path) as image:
            (width, height), turned = image.size, image.getexif().get(ORIENTATION, 1) != 1
        if turned:
            rotated.append(path.name)
        if size is not None and min(width, height) < size:
            enlarged.append(f"{path.name} {width}x{height}")
        if max(width, height) > FAR_FROM_SQUARE * min(width, height):
            oblong.append(f"{path.name} {width}x{height}")
    cropped = "cut to the middle square" if dataset.center_crop else "squashed (see --center_crop)"
    for names, what in (
        (rotated, "rotated as the camera says"),
        (enlarged, f"enlarged to {size}x{size}"),
        (oblong, f"far from square and {cropped}"),
    ):
        if names:
            yield f"{len(names)} {what}: {some_names(names)}"
    if pairs := near_duplicates(paths[:COMPARED]):
        named = [f"{one.name} = {other.name}" for one, other in pairs]
        yield f"{len(pairs)} pairs of near duplicates: {some_names(named)}"


def near_duplicates(paths: Sequence[Path]) -> list[tuple[Path, Path]]:
    """Return the pairs of images that look alike.

    Each image becomes 64 bits: whether a pixel of a 9 x 8 thumbnail is brighter than the next one
    (the difference hash). Pairs whose bits differ in at most `NEAR` places are near duplicates.
    """
    bits = np.stack([_hash(path) for path in paths])
    different = (bits[:, None] != bits[None]).sum(-1)
    first, second = np.nonzero(np.triu(different <= NEAR, 1))
    pairs = zip(first.tolist(), second.tolist(), strict=True)
    return [(paths[i], paths[j]) for i, j in pairs]


def _hash(path: Path) -> npt.NDArray[np.bool_]:
    small = np.asarray(open_rgb(path).convert("L").resize((9, 8), Image.Resampling.BOX), np.int16)
    return (small[:, 1:] > small[:, :-1]).flatten()
