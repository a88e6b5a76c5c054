"""Generating with a whole (tiny) model: three lines, seeds, words, and what is refused."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from torch.testing import assert_close

from ldm import inference
from ldm import sampling as settings
from ldm.inference import (
    SAMPLERS,
    GeneratedImage,
    Sampling,
    fitting_batch,
    generate,
    latent_shape,
    load_model,
    load_words,
    make_sampler,
    seeded_noise,
)
from ldm.models.diffusion.ddim import DDIMSampler
from ldm.util import UserError


@pytest.fixture(scope="module")
def model(tiny):
    model = load_model(tiny.config, tiny.checkpoint)
    load_words(model, tiny.word)
    return model


def pixels(images):
    return np.stack([np.asarray(p.image, dtype=np.int16) for p in images])


def test_three_lines_draw_images(tiny, caplog):
    model = load_model(tiny.config, tiny.checkpoint)
    assert load_words(model, tiny.word) == ["*"]
    images = generate(model, ["a photo of *", "a painting of *"], Sampling(steps=3))
    assert not caplog.records  # words from files need no initializer word
    assert [p.prompt for p in images] == ["a photo of *", "a painting of *"]
    assert [p.seed for p in images] == [42, 43]
    assert all(p.image.size == (16, 16) and p.image.mode == "RGB" for p in images)
    assert pixels(images).std() > 5
    assert images[1].settings == {
        "prompt": "a painting of *", "seed": 43, "negative_prompt": "", "steps": 3, "scale": 5.0,
        "eta": 0.0, "sampler": "ddim", "height": 16, "width": 16, "precision": "full",
        "karras": False,
    }  # fmt: skip


def test_it_is_the_sampler_on_the_models_parts(model):
    image = generate(model, "a photo of *", Sampling(steps=4, scale=3.0, seed=9))[0]
    start = seeded_noise([9])(0, (1, 4, 8, 8))
    with torch.no_grad():
        latent, _ = DDIMSampler(model).sample(
            S=4, batch_size=1, shape=[4, 8, 8], verbose=False, x_T=start,
            conditioning=model.get_learned_conditioning(["a photo of *"]),
            unconditional_conditioning=model.get_learned_conditioning([""]),
            unconditional_guidance_scale=3.0,
        )  # fmt: skip
        want = (model.decode_first_stage(latent)[0].clamp(-1, 1) + 1) * 127.5
    assert np.abs(np.asarray(image.image) - want.permute(1, 2, 0).numpy()).max() <= 0.51


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"eta": 1.0},
        {"sampler": "plms"},
        {"sampler": "dpmpp_2m", "karras": True},
        {"sampler": "euler_a"},
    ],
)
def test_an_image_depends_on_its_seed_alone(model, options):
    prompts = ["a photo of *", "a cat on the beach"]
    sampling = Sampling(steps=4, **options)
    together = generate(model, prompts, sampling, samples_per_prompt=2)
    one_by_one = generate(model, prompts, replace(sampling, batch_size=1), samples_per_prompt=2)
    assert np.abs(pixels(together) - pixels(one_by_one)).max() <= 1
    alone = generate(model, together[3].prompt, Sampling.from_metadata(together[3].settings))
    assert np.abs(pixels(alone) - pixels(together[3:])).max() <= 1
    assert np.abs(pixels(together[2:3]) - pixels(together[3:])).mean() > 1


def test_the_same_seed_draws_the_same(model):
    first, again = (generate(model, ["a photo of *"], Sampling(steps=2, eta=0.5)) for _ in range(2))
    assert (pixels(first) == pixels(again)).all()


def test_prompts_may_share_their_noise(model):
    a, b, c, d = generate(
        model, ["a cat", "a dog"], Sampling(steps=2), samples_per_prompt=2, restart_seeds=True
    )
    assert [p.seed for p in (a, b, c, d)] == [42, 43, 42, 43]


def test_seeded_noise_is_independent_between_seeds_and_draws():
    noise = seeded_noise([1, 2])
    noises = torch.stack([noise(0, (2, 4, 8, 8)), noise(1, (2, 4, 8, 8))]).flatten(2).flatten(0, 1)
    assert_close(torch.corrcoef(noises), torch.eye(4), atol=0.25, rtol=0)
    assert_close(seeded_noise([2])(1, (1, 4, 8, 8))[0], noise(1, (2, 4, 8, 8))[1], rtol=0, atol=0)


def test_words_negatives_and_scale_change_the_image(tiny, model):
    def image(prompt="a photo of *", **options):
        return pixels(generate(model, prompt, Sampling(steps=4, **options)))

    base = image()
    for other in (image("a photo of cat"), image(negative_prompt="a dog"), image(scale=1.0)):
        assert np.abs(base - other).mean() > 0.5


def test_the_number_of_vectors_comes_from_the_file(tiny, model):
    assert model.embedding_manager.word("*").shape == (2, 32)


def test_words_of_two_files_need_two_names(tiny):
    model = load_model(tiny.config, tiny.checkpoint)
    with pytest.raises(UserError, match="loaded already"):
        load_words(model, [tiny.word, tiny.other_word])
    assert load_words(model, [tiny.word, f"@={tiny.other_word}"]) == ["*", "@"]
    assert load_words(model, tiny.other_word) == ["*"]  # in place of the words before
    assert load_words(model, []) == []


def test_a_model_without_words_gets_a_place_for_them(tiny):
    model = load_model(tiny.config, tiny.checkpoint)
    model.embedding_manager = None
    load_words(model, tiny.word)
    assert model.embedding_manager.placeholders == ["*"]


def test_a_word_that_is_cut_off_is_an_error(model):
    with pytest.raises(UserError, match="cut off"):
        generate(model, "a photo of " + "the red cat on " * 5 + "*", Sampling(steps=1))


def test_sizes(model):
    assert latent_shape(model, None, None) == (4, 8, 8)
    assert latent_shape(model, 24, 32) == (4, 12, 16)
    image = generate(model, "a cat", Sampling(steps=1, height=24, width=32))[0]
    assert image.image.size == (32, 24)
    for bad in (0, -16, 17, 18):
        with pytest.raises(UserError, match=f"width must be a multiple of 4 .* got {bad}"):
            latent_shape(model, None, bad)


def test_bad_counts_are_named(model):
    with pytest.raises(ValueError, match="prompts must hold at least one text"):
        generate(model, [])
    with pytest.raises(ValueError, match="samples_per_prompt must be at least 1, got 0"):
        generate(model, "a cat", samples_per_prompt=0)


def test_undefined_numbers_name_half_precision_only_in_half_precision(model, monkeypatch):
    monkeypatch.setattr(type(model), "decode_first_stage", lambda _, z: z * float("nan"))
    with pytest.raises(UserError, match="undefined numbers: the weights or the word"):
        generate(model, "a cat", Sampling(steps=1))
    with pytest.raises(UserError, match="try --precision full"):
        generate(model, "a cat", Sampling(steps=1, precision="autocast"))


class Limited:
    """Stands in for a batch: an image's colour is its seed, and batches above a size fail."""

    def __init__(self, most):
        self.most, self.batches = most, []

    def __call__(self, model, jobs, sampling, negative, progress):
        if len(jobs) > self.most:
            raise torch.OutOfMemoryError("full")
        self.batches.append(len(jobs))
        return [GeneratedImage(Image.new("L", (1, 1), seed), text, seed, {}) for text, seed in jobs]


def test_a_batch_that_does_not_fit_is_halved(model, monkeypatch, caplog):
    limited, kept = Limited(most=9), []
    monkeypatch.setattr(inference, "_generate_batch", limited)
    filled = Sampling(seed=0, batch_size=0)
    with caplog.at_level("INFO"):
        made = generate(model, "a", filled, samples_per_prompt=40, keep=kept.extend)
    assert [one.seed for one in made] == list(range(40))
    assert kept == made
    assert limited.batches == [8] * 5
    assert "out of memory for 32 images at a time: trying 16" in caplog.text
    with pytest.raises(UserError, match="for 20 images at a time: lower the batch size"):
        generate(model, "a", Sampling(batch_size=20), samples_per_prompt=40)
    monkeypatch.setattr(inference, "_generate_batch", Limited(most=0))
    with pytest.raises(UserError, match="use precision autocast"):
        generate(model, "a", filled)


def test_a_gpu_is_filled_by_its_free_memory(monkeypatch):
    cpu = SimpleNamespace(device=torch.device("cpu"))
    assert fitting_batch(cpu) == inference.LARGEST_BATCH_ON_CPU
    gpu = SimpleNamespace(
        device=torch.device("cuda"), latent_size=(32, 32), first_stage_downsampling=8
    )
    for free, expected in ((8, 16), (141, 64), (0, 1)):
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _, g=free: (g * 2**30, 0))
        assert fitting_batch(gpu) == expected


def test_karras_spacing_reaches_the_sampler(model):
    spaced = make_sampler(model, Sampling("dpmpp_2m", karras=True)).plan(5)
    even = make_sampler(model, Sampling("dpmpp_2m")).plan(5)
    assert [step.t for step in spaced] != [step.t for step in even]


def test_every_sampler_name_has_its_class():
    assert tuple(SAMPLERS) == settings.SAMPLERS


def test_half_precision_is_close(model):
    full, half = (
        pixels(generate(model, "a photo of *", Sampling(steps=2, precision=p)))
        for p in ("full", "autocast")
    )
    assert 0 < np.abs(full - half).mean() < 12


def test_the_models_mode_is_left_as_it_was(model):
    model.train()
    generate(model, "a cat", Sampling(steps=1))
    assert model.training
    model.eval()
