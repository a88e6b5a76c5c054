"""Pictures as CLIP and DINO read them, prepared on the device and equal to PIL's bit for bit.

CLIP's own processing is PIL's: the shorter side resized by an antialiased bicubic filter in two
passes, each rounded to 8 bits, then the middle cut out and normalised. kornia cuts and normalises.
Its antialiased resize is another filter (a Gaussian blur first; pixels differ by up to 134 of 255
levels from PIL's) and torch's has no rounding between the passes (up to 25 levels), so the resize
is PIL's here: two products with matrices of its fixed-point weights.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt
import torch
from kornia.enhance import normalize
from kornia.geometry.transform import crop_by_indices
from PIL import Image
from torch import Tensor

# PIL's fixed point: weights are multiples of 2^-22, and a pass rounds half up to 8 bits.
_ONE = float(2**22)
_SUPPORT = 2.0  # the bicubic kernel ends here, in pixels of the smaller image


def _bicubic(x: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Keys' kernel with a = -1/2 (Keys 1981, equation 4), zero beyond 2."""
    x = np.abs(x)
    near = (1.5 * x - 2.5) * x * x + 1
    far = ((-0.5 * x + 2.5) * x - 4) * x + 2
    return np.where(x < 1, near, np.where(x < _SUPPORT, far, 0.0))


@lru_cache(maxsize=64)
def resize_weights(before: int, after: int) -> Tensor:
    """Return PIL's bicubic weights along one side: float64 [after, before], in units of 2^-22."""
    scale = before / after
    stretch = max(scale, 1.0)  # a smaller image averages over more of the larger one
    centre = (np.arange(after) + 0.5)[:, None] * scale
    reach = _SUPPORT * stretch
    first = np.maximum((centre - reach + 0.5).astype(np.int64), 0)
    last = np.minimum((centre + reach + 0.5).astype(np.int64), before)
    place = np.arange(before)[None]
    weights = _bicubic((place - centre + 0.5) / stretch)
    weights *= (place >= first) & (place < last)
    weights /= weights.sum(1, keepdims=True)
    # Half away from zero.
    return torch.from_numpy(np.trunc(weights * _ONE + np.copysign(0.5, weights)))


def resize_shorter(levels: Tensor, side: int) -> Tensor:
    """Resize images, keeping their shape, to the pixels that PIL's bicubic `resize` gives.

    All numbers are integers below 2^53, so double precision is exact on every device. The
    horizontal pass is first: PIL turns that round only where a height shrinks much more than a
    width (Pillow 13), which keeping the shape rules out.

    Args:
        levels: [n, c, h, w], values 0..255 of any type.
        side: of the shorter side afterwards, in pixels; the longer one is rounded down.

    Returns:
        float64 [n, c, h', w'] of whole numbers in 0..255.
    """
    h, w = levels.shape[-2:]
    longer = int(side * max(h, w) / min(h, w))
    height, width = (side, longer) if h <= w else (longer, side)
    x = levels.double()
    if w != width:
        x = _round(x @ resize_weights(w, width).to(x.device).T)
    if h != height:
        x = _round(resize_weights(h, height).to(x.device) @ x)
    return x


def _round(x: Tensor) -> Tensor:
    return ((x + _ONE / 2) / _ONE).floor().clamp(0, 255)


@dataclass(frozen=True)
class Preprocess:
    """Resize the shorter side, cut out the middle, normalise.

    Attributes:
        side: the shorter side after resizing, in pixels.
        crop: side of the square that is cut out, at most `side`.
        mean, std: of each channel, for values in [0, 1].
    """

    side: int
    crop: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]

    def __post_init__(self) -> None:
        if not 1 <= self.crop <= self.side:
            raise ValueError(f"crop must lie in 1..side={self.side}, got {self.crop}")

    def __call__(self, levels: Tensor) -> Tensor:
        """Prepare images of one size, on their device.

        Args:
            levels: uint8 [n, 3, h, w].

        Returns:
            float32 [n, 3, crop, crop].
        """
        has_double = levels.device.type != "mps"
        resized = resize_shorter(levels if has_double else levels.cpu(), self.side)
        box = self._box(*resized.shape[-2:]).expand(len(levels), -1, -1)
        cut = crop_by_indices(resized, box)
        # Scaled in double precision, normalised in single: so transformers does it.
        scaled = (cut * (1 / 255)).to(levels.device, torch.float32)
        mean, std = scaled.new_tensor(self.mean), scaled.new_tensor(self.std)
        prepared: Tensor = normalize(scaled, mean, std)
        return prepared

    def _box(self, height: int, width: int) -> Tensor:
        """Return the middle square's corners as kornia wants them, (x, y) clockwise: [1, 4, 2]."""
        top, left = (height - self.crop) // 2, (width - self.crop) // 2
        bottom, right = top + self.crop - 1, left + self.crop - 1
        return torch.tensor([[[left, top], [right, top], [right, bottom], [left, bottom]]])

    def pictures(self, images: Sequence[Image.Image], device: torch.device) -> Tensor:
        """Prepare images of any sizes on a device: float32 [len(images), 3, crop, crop]."""
        places: dict[tuple[int, int], list[int]] = {}
        for place, image in enumerate(images):
            places.setdefault(image.size, []).append(place)
        prepared = torch.empty(len(images), 3, self.crop, self.crop, device=device)
        for same in places.values():
            pixels = np.stack([np.asarray(images[i].convert("RGB")) for i in same])
            levels = torch.from_numpy(pixels).permute(0, 3, 1, 2)
            prepared[same] = self(levels.to(device))
        return prepared
