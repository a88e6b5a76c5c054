"""Where images come from: the same images as one by one, and what the paper compares with."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from ldm.evaluation import sources
from ldm.evaluation.sources import (
    captioned,
    check_lengths,
    from_captions,
    from_images,
    from_model,
    from_prompts,
)
from ldm.inference import GeneratedImage, Sampling
from ldm.util import UserError


class Recorder:
    """Stands in for `generate`: an image's colour is its seed."""

    def __init__(self) -> None:
        self.texts: list[str] = []

    def __call__(
        self,
        model: Any,
        prompts: Sequence[str],
        sampling: Sampling,
        *,
        samples_per_prompt: int,
        keep: Callable[[Sequence[GeneratedImage]], None],
    ) -> list[GeneratedImage]:
        texts = [text for text in prompts for _ in range(samples_per_prompt)]
        self.texts += texts
        seeds = range(sampling.seed, sampling.seed + len(texts))
        made = [
            GeneratedImage(Image.new("L", (1, 1), seed), text, seed, {})
            for text, seed in zip(texts, seeds, strict=True)
        ]
        keep(made)
        return made


MODEL: Any = SimpleNamespace(
    device=torch.device("cpu"), latent_size=(8, 8), first_stage_downsampling=8,
    cond_stage_model=SimpleNamespace(max_length=6, count_tokens=lambda text: len(text.split()) + 2),
)  # fmt: skip


def colours(images: Sequence[Image.Image]) -> list[int]:
    return [int(np.asarray(image)[0, 0]) for image in images]


def test_image_i_has_seed_i(monkeypatch: pytest.MonkeyPatch) -> None:
    recorder, kept = Recorder(), []
    monkeypatch.setattr(sources, "generate", recorder)
    source = from_model(MODEL, Sampling(seed=5), keep=kept.extend)
    assert colours(source(["a", "b"], 4)) == list(range(5, 13))
    assert recorder.texts == ["a"] * 4 + ["b"] * 4
    assert [image.seed for image in kept] == list(range(5, 13))


def test_it_gives_the_images_of_generate(untrained_miniature) -> None:
    from ldm.inference import generate, load_model

    model = load_model(
        untrained_miniature / "config.yaml", untrained_miniature / "model.safetensors"
    )
    sampling = Sampling(steps=2, scale=3.0, seed=7, batch_size=2)
    generated = from_model(model, sampling)(["a red star", "a mug"], 2)
    expected = generate(
        model, ["a red star", "a mug"], replace(sampling, batch_size=3), samples_per_prompt=2
    )
    for one, other in zip(generated, expected, strict=True):
        difference = np.asarray(one, np.int16) - np.asarray(other.image, np.int16)
        assert abs(difference).max() <= 1  # batches of other sizes round otherwise


def test_captions_stand_in_the_words_place_by_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    recorder = Recorder()
    monkeypatch.setattr(sources, "generate", recorder)
    source = from_captions(from_model(MODEL, Sampling(seed=0)), ["a cat", "my dog"], ["*", "@"])
    images = source(["A photo of *", "Elmo, @ and *"], 3)
    assert recorder.texts == [
        "A photo of a cat", "A photo of my dog", "A photo of a cat",
        "Elmo, a cat and a cat", "Elmo, my dog and my dog", "Elmo, a cat and a cat",
    ]  # fmt: skip
    assert colours(images) == list(range(6))
    with pytest.raises(ValueError, match="at least one text"):
        from_captions(source, [], ["*"])


def test_prompts_alone_lose_the_word(monkeypatch: pytest.MonkeyPatch) -> None:
    recorder = Recorder()
    monkeypatch.setattr(sources, "generate", recorder)
    from_prompts(from_model(MODEL, Sampling()), ["*"])(["A photo of * on the moon"], 2)
    assert recorder.texts == ["A photo of on the moon"] * 2


def test_training_images_stand_for_generated_ones() -> None:
    training = [Image.new("L", (1, 1), i) for i in range(3)]
    assert colours(from_images(training)(["a", "b"], 4)) == [0, 1, 2, 0, 0, 1, 2, 0]
    with pytest.raises(ValueError, match="at least one image"):
        from_images([])


def test_a_caption_that_would_be_cut_is_refused() -> None:
    check_lengths(MODEL, captioned(["*"], 1, ["four words are fine"], ["*"]))
    with pytest.raises(UserError, match=r"has 7 tokens and the model reads 6: shorten"):
        check_lengths(MODEL, ["but five words are not"])
