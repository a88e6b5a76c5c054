"""The two scores against plain loops, by the definitions of the paper and of the authors' code."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor
from torch.nn.functional import cosine_similarity

from ldm.evaluation.similarity import (
    own_similarity,
    pairwise_similarity,
    prompt_similarity,
    without_placeholders,
)


class ColourExtractor:
    """An image's features are its mean colour; a text's, the colour it names last."""

    def __init__(self) -> None:
        self.texts: list[str] = []

    def image_features(self, images: Sequence[Image.Image]) -> Tensor:
        return torch.tensor([[float(v) for v in image.getpixel((0, 0))] for image in images])

    def text_features(self, texts: Sequence[str]) -> Tensor:
        self.texts += texts
        return self.image_features([flat(text.split()[-1]) for text in texts])


def flat(colour: str) -> Image.Image:
    return Image.new("RGB", (8, 8), colour)


def test_image_similarity_is_the_mean_over_all_pairs() -> None:
    a, b = torch.randn(3, 5), torch.randn(4, 5)
    pairs = [cosine_similarity(x, y, dim=0) for x, y in itertools.product(a, b)]
    assert pairwise_similarity(a, b) == pytest.approx(float(torch.stack(pairs).mean()), abs=1e-6)


def test_own_similarity_leaves_out_each_image_with_itself() -> None:
    features = torch.randn(4, 5)
    pairs = [cosine_similarity(x, y, dim=0) for x, y in itertools.combinations(features, 2)]
    assert own_similarity(features) == pytest.approx(float(torch.stack(pairs).mean()), abs=1e-6)
    assert own_similarity(torch.ones(2, 3)) == pytest.approx(1)


def test_text_similarity_means_both_ways() -> None:
    # Two images at right angles, the prompt along the first: mean of (1, 0), cosine of 45°.
    mean, of_average = prompt_similarity(
        torch.tensor([[2.0, 0.0], [0.0, 3.0]]), torch.tensor([5.0, 0.0])
    )
    assert mean == pytest.approx(0.5)
    assert of_average == pytest.approx(0.5**0.5)


@given(st.integers(1, 6), st.integers(0, 2**31))
def test_the_average_never_scores_below_the_mean_in_absolute_value(n: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    images, prompt = torch.randn(n, 4, generator=generator), torch.randn(4, generator=generator)
    mean, of_average = prompt_similarity(images, prompt)
    assert abs(of_average) >= abs(mean) - 1e-5


def test_scores_of_images() -> None:
    extractor = ColourExtractor()
    generated = [flat("red"), flat("yellow")]
    features, training = (
        extractor.image_features(generated),
        extractor.image_features([flat("red")]),
    )
    assert pairwise_similarity(features, training) == pytest.approx((1 + 0.5**0.5) / 2)
    text = extractor.text_features([without_placeholders("a photo of * in red", ["*"])])
    assert extractor.texts == ["a photo of in red"]
    assert prompt_similarity(features, text)[0] == pytest.approx((1 + 0.5**0.5) / 2)


@pytest.mark.parametrize(
    ("prompt", "placeholders", "expected"),
    [
        ("A photo of * on the moon", ["*"], "A photo of on the moon"),
        ("a photo of * in the style of @", ["*", "@"], "a photo of in the style of"),
        ("a category of cat", ["cat"], "a category of"),
        ("a photo of a dog", ["*"], "a photo of a dog"),
    ],
)
def test_the_prompt_is_compared_without_its_words(
    prompt: str, placeholders: list[str], expected: str
) -> None:
    assert without_placeholders(prompt, placeholders) == expected


@pytest.mark.parametrize("features", [torch.zeros(0, 4), torch.zeros(4)])
def test_no_images_is_an_error_that_says_so(features: Tensor) -> None:
    with pytest.raises(ValueError, match="n >= 1"):
        pairwise_similarity(features, torch.ones(1, 4))


def test_one_image_has_no_pairs() -> None:
    with pytest.raises(ValueError, match="at least two images, got 1"):
        own_similarity(torch.ones(1, 4))
