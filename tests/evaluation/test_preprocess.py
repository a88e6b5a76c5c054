"""Preparing images: PIL's pixels, and transformers' own processor, bit for bit."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from ldm.evaluation.preprocess import Preprocess, resize_shorter, resize_weights

side = st.integers(1, 80)
MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


def noise(height: int, width: int, seed: int = 0) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def waves(height: int, width: int) -> Image.Image:
    """Edges and ramps, where filters overshoot."""
    y, x = np.mgrid[:height, :width]
    pixels = np.stack([x * 3 + y, (x // 7 + y // 5) % 2 * 255, (x - y) ** 2 // 9], -1) % 256
    return Image.fromarray(pixels.astype(np.uint8))


def tensor(image: Image.Image) -> torch.Tensor:
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)[None]


def by_pil(image: Image.Image, shorter: int) -> torch.Tensor:
    w, h = image.size
    longer = int(shorter * max(h, w) / min(h, w))
    size = (longer, shorter) if h <= w else (shorter, longer)
    return tensor(image.resize(size, Image.Resampling.BICUBIC))


@given(side, side, side, st.integers(0, 99))
def test_resizing_gives_pils_pixels(h: int, w: int, shorter: int, seed: int) -> None:
    image = noise(h, w, seed)
    found = resize_shorter(tensor(image), shorter)
    assert torch.equal(found.byte(), by_pil(image, shorter))


@pytest.mark.parametrize("size", [(256, 256), (64, 64), (500, 333), (97, 1001), (1024, 768)])
@pytest.mark.parametrize("draw", [noise, waves])
def test_images_of_every_kind_give_pils_pixels(draw, size: tuple[int, int]) -> None:
    image = draw(*size)
    assert torch.equal(resize_shorter(tensor(image), 224).byte(), by_pil(image, 224))


@given(side, side)
def test_weights_sum_to_one(before: int, after: int) -> None:
    sums = resize_weights(before, after).sum(1) / 2**22
    torch.testing.assert_close(sums, torch.ones_like(sums), atol=1e-5, rtol=0)


@pytest.mark.parametrize(("side", "crop"), [(224, 224), (32, 32), (256, 224), (37, 32)])
@pytest.mark.parametrize("size", [(256, 256), (64, 64), (40, 61), (333, 200), (32, 32)])
def test_preparing_equals_transformers_processor(
    side: int, crop: int, size: tuple[int, int]
) -> None:
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    processor = CLIPImageProcessorPil(
        size={"shortest_edge": side}, crop_size={"height": crop, "width": crop}
    )
    images = [noise(*size), waves(*size)]
    expected = processor(images=images, return_tensors="pt")["pixel_values"]
    prepare = Preprocess(side, crop, MEAN, STD)
    assert torch.equal(prepare.pictures(images, torch.device("cpu")), expected)


def test_images_of_several_sizes_keep_their_places() -> None:
    prepare = Preprocess(32, 32, MEAN, STD)
    images = [noise(20, 20, 1), noise(50, 40, 2), noise(20, 20, 3).convert("L"), noise(32, 32, 4)]
    together = prepare.pictures(images, torch.device("cpu"))
    alone = [prepare.pictures([image], torch.device("cpu")) for image in images]
    assert torch.equal(together, torch.cat(alone))
    assert together.dtype == torch.float32


def test_a_crop_must_fit() -> None:
    with pytest.raises(ValueError, match=r"crop must lie in 1..side=32, got 33"):
        Preprocess(32, 33, MEAN, STD)
