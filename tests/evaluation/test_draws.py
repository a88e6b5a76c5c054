"""Where images come from: the same images as one by one, and what the paper compares with."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from ldm.evaluation import draws
from ldm.evaluation.draws import (
    Sampling,
    captioned,
    check_lengths,
    fitting_batch,
    from_captions,
    from_images,
    from_model,
    from_prompts,
)
from ldm.inference import GeneratedImage
from ldm.util import UserError


class Recorder:
    """Stands in for `generate`: an image's colour is its seed, and batches above a size fail."""

    def __init__(self, most: int = 100) -> None:
        self.most = most
        self.batches: list[int] = []
        self.texts: list[str] = []

    def __call__(self, model: Any, prompts: Sequence[str], *, seed: int, **given: Any):
        if len(prompts) > self.most:
            raise torch.OutOfMemoryError("full")
        self.batches.append(len(prompts))
        self.texts += prompts
        return [
            GeneratedImage(Image.new("L", (1, 1), seed + i), text, seed + i, given)
            for i, text in enumerate(prompts)
        ]


MODEL: Any = SimpleNamespace(
    device=torch.device("cpu"), image_size=8, first_stage_downsampling=8,
    cond_stage_model=SimpleNamespace(max_length=6, count_tokens=lambda text: len(text.split()) + 2),
)  # fmt: skip


def colours(images: Sequence[Image.Image]) -> list[int]:
    return [int(np.asarray(image)[0, 0]) for image in images]


def test_image_i_has_seed_i_whatever_the_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    for size in (1, 3, 100):
        recorder, kept = Recorder(), []
        monkeypatch.setattr(draws, "generate", recorder)
        draw = from_model(MODEL, Sampling(seed=5, batch_size=size), keep=kept.extend)
        assert colours(draw(["a", "b"], 4)) == list(range(5, 13))
        assert recorder.texts == ["a"] * 4 + ["b"] * 4
        assert max(recorder.batches) <= size
        assert [picture.seed for picture in kept] == list(range(5, 13))


def test_it_draws_what_generate_draws(untrained_miniature) -> None:
    from ldm.inference import generate, load_model

    model = load_model(
        untrained_miniature / "config.yaml", untrained_miniature / "model.safetensors"
    )
    sampling = Sampling(steps=2, scale=3.0, seed=7, batch_size=2)
    drawn = from_model(model, sampling)(["a red star", "a mug"], 2)
    expected = generate(
        model, ["a red star", "a mug"], samples_per_prompt=2, steps=2, scale=3.0, seed=7
    )
    for one, other in zip(drawn, expected, strict=True):
        difference = np.asarray(one, np.int16) - np.asarray(other.image, np.int16)
        assert abs(difference).max() <= 1  # batches of other sizes round otherwise


def test_a_batch_that_does_not_fit_is_halved(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    recorder = Recorder(most=9)
    monkeypatch.setattr(draws, "generate", recorder)
    with caplog.at_level("INFO"):
        images = from_model(MODEL, Sampling(seed=0))(["a"], 40)
    assert colours(images) == list(range(40))
    assert recorder.batches == [8] * 5
    assert "out of memory for 32 images at a time: trying 16" in caplog.text
    with pytest.raises(UserError, match="for 20 images at a time: lower --batch_size"):
        from_model(MODEL, Sampling(batch_size=20))(["a"], 40)
    monkeypatch.setattr(draws, "generate", Recorder(most=0))
    with pytest.raises(UserError, match="give --precision autocast"):
        from_model(MODEL, Sampling())(["a"], 1)


def test_a_gpu_is_filled_by_its_free_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    assert fitting_batch(MODEL) == draws.ON_CPU
    gpu: Any = SimpleNamespace(
        device=torch.device("cuda"), image_size=32, first_stage_downsampling=8
    )
    for free, expected in ((8, 16), (141, 64), (0, 1)):
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _, g=free: (g * 2**30, 0))
        assert fitting_batch(gpu) == expected


def test_captions_stand_in_the_words_place_by_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    recorder = Recorder()
    monkeypatch.setattr(draws, "generate", recorder)
    draw = from_captions(from_model(MODEL, Sampling(seed=0)), ["a cat", "my dog"], ["*", "@"])
    images = draw(["A photo of *", "Elmo, @ and *"], 3)
    assert recorder.texts == [
        "A photo of a cat", "A photo of my dog", "A photo of a cat",
        "Elmo, a cat and a cat", "Elmo, my dog and my dog", "Elmo, a cat and a cat",
    ]  # fmt: skip
    assert colours(images) == list(range(6))
    with pytest.raises(ValueError, match="at least one text"):
        from_captions(draw, [], ["*"])


def test_prompts_alone_lose_the_word(monkeypatch: pytest.MonkeyPatch) -> None:
    recorder = Recorder()
    monkeypatch.setattr(draws, "generate", recorder)
    from_prompts(from_model(MODEL, Sampling()), ["*"])(["A photo of * on the moon"], 2)
    assert recorder.texts == ["A photo of on the moon"] * 2


def test_training_images_stand_for_drawn_ones() -> None:
    training = [Image.new("L", (1, 1), i) for i in range(3)]
    assert colours(from_images(training)(["a", "b"], 4)) == [0, 1, 2, 0, 0, 1, 2, 0]
    with pytest.raises(ValueError, match="at least one image"):
        from_images([])


def test_a_caption_that_would_be_cut_is_refused() -> None:
    check_lengths(MODEL, captioned(["*"], 1, ["four words are fine"], ["*"]))
    with pytest.raises(UserError, match=r"has 7 tokens and the model reads 6: shorten"):
        check_lengths(MODEL, ["but five words are not"])
