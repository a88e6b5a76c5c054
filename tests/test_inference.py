"""Drawing with a whole (tiny) model: three lines, seeds, words, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from ldm.inference import generate, latent_shape, load_model, load_words, seeded_noise
from ldm.models.diffusion.ddim import DDIMSampler
from ldm.util import UserError


@pytest.fixture(scope="module")
def model(tiny):
    model = load_model(tiny.config, tiny.checkpoint)
    load_words(model, tiny.word)
    return model


def pixels(pictures):
    return np.stack([np.asarray(p.image, dtype=np.int16) for p in pictures])


def test_three_lines_draw_images(tiny, caplog):
    model = load_model(tiny.config, tiny.checkpoint)
    assert load_words(model, tiny.word) == ["*"]
    pictures = generate(model, ["a photo of *", "a painting of *"], steps=3)
    assert not caplog.records  # words from files need no first word
    assert [p.prompt for p in pictures] == ["a photo of *", "a painting of *"]
    assert [p.seed for p in pictures] == [42, 43]
    assert all(p.image.size == (16, 16) and p.image.mode == "RGB" for p in pictures)
    assert pixels(pictures).std() > 5
    assert pictures[1].settings == {
        "prompt": "a painting of *", "seed": 43, "negative_prompt": "", "steps": 3, "scale": 5.0,
        "eta": 0.0, "sampler": "ddim", "height": 16, "width": 16, "precision": "full",
    }  # fmt: skip


def test_it_is_the_sampler_on_the_models_parts(model):
    picture = generate(model, "a photo of *", steps=4, scale=3.0, seed=9)[0]
    start = seeded_noise([9])(0, (1, 4, 8, 8))
    with torch.no_grad():
        latent, _ = DDIMSampler(model).sample(
            S=4, batch_size=1, shape=[4, 8, 8], verbose=False, x_T=start,
            conditioning=model.get_learned_conditioning(["a photo of *"]),
            unconditional_conditioning=model.get_learned_conditioning([""]),
            unconditional_guidance_scale=3.0,
        )  # fmt: skip
        want = (model.decode_first_stage(latent)[0].clamp(-1, 1) + 1) * 127.5
    assert np.abs(np.asarray(picture.image) - want.permute(1, 2, 0).numpy()).max() <= 0.51


@pytest.mark.parametrize("options", [{}, {"eta": 1.0}, {"sampler": "plms"}])
def test_a_image_depends_on_its_seed_alone(model, options):
    prompts = ["a photo of *", "a cat on the beach"]
    options = {"steps": 4, "samples_per_prompt": 2, **options}
    together = generate(model, prompts, batch_size=4, **options)
    one_by_one = generate(model, prompts, batch_size=1, **options)
    assert np.abs(pixels(together) - pixels(one_by_one)).max() <= 1
    options["samples_per_prompt"] = 1
    alone = generate(model, together[3].prompt, seed=together[3].seed, **options)
    assert np.abs(pixels(alone) - pixels(together[3:])).max() <= 1
    assert np.abs(pixels(together[2:3]) - pixels(together[3:])).mean() > 1


def test_the_same_seed_draws_the_same(model):
    first, again = (generate(model, ["a photo of *"], steps=2, eta=0.5) for _ in range(2))
    assert (pixels(first) == pixels(again)).all()


def test_prompts_may_share_their_noise(model):
    a, b, c, d = generate(
        model, ["a cat", "a dog"], samples_per_prompt=2, steps=2, restart_seeds=True
    )
    assert [p.seed for p in (a, b, c, d)] == [42, 43, 42, 43]


def test_seeded_noise_is_independent_between_seeds_and_draws():
    noise = seeded_noise([1, 2])
    draws = torch.stack([noise(0, (2, 4, 8, 8)), noise(1, (2, 4, 8, 8))]).flatten(2).flatten(0, 1)
    assert_close(torch.corrcoef(draws), torch.eye(4), atol=0.25, rtol=0)
    assert_close(seeded_noise([2])(1, (1, 4, 8, 8))[0], noise(1, (2, 4, 8, 8))[1], rtol=0, atol=0)


def test_words_negatives_and_scale_change_the_image(tiny, model):
    def draw(prompt="a photo of *", **options):
        return pixels(generate(model, prompt, steps=4, **options))

    base = draw()
    for other in (draw("a photo of cat"), draw(negative_prompt="a dog"), draw(scale=1.0)):
        assert np.abs(base - other).mean() > 0.5


def test_the_number_of_vectors_comes_from_the_file(tiny, model):
    assert model.embedding_manager.word("*").shape == (2, 32)


def test_words_of_two_files_need_two_names(tiny):
    model = load_model(tiny.config, tiny.checkpoint)
    load_words(model, tiny.word)
    with pytest.raises(UserError, match="loaded already"):
        load_words(model, tiny.other_word)
    assert load_words(model, tiny.other_word, rename={"*": "@"}) == ["@"]
    assert model.embedding_manager.placeholders == ["*", "@"]


def test_a_model_without_words_gets_a_place_for_them(tiny):
    model = load_model(tiny.config, tiny.checkpoint)
    model.embedding_manager = None
    load_words(model, tiny.word)
    assert model.embedding_manager.placeholders == ["*"]


def test_a_word_that_is_cut_off_is_an_error(model):
    with pytest.raises(UserError, match="cut off"):
        generate(model, "a photo of " + "the red cat on " * 5 + "*", steps=1)


def test_sizes(model):
    assert latent_shape(model, None, None) == (4, 8, 8)
    assert latent_shape(model, 24, 32) == (4, 12, 16)
    picture = generate(model, "a cat", steps=1, height=24, width=32)[0]
    assert picture.image.size == (32, 24)
    for bad in (0, -16, 17, 18):
        with pytest.raises(UserError, match=f"width must be a multiple of 4 .* got {bad}"):
            latent_shape(model, None, bad)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": 0}, r"steps must lie in 1\.\.1000, got 0"),
        ({"eta": 1.5}, "eta must lie"),
        ({"eta": 0.5, "sampler": "plms"}, "eta must be 0 with plms"),
        ({"sampler": "euler"}, "one of ddim, plms, got 'euler'"),
        ({"seed": -1}, "seed must lie"),
        ({"scale": float("nan")}, "scale must be"),
        ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
        ({"precision": "fp8"}, "precision must be one of full, autocast"),
    ],
)
def test_arguments_out_of_range_are_named(model, options, message):
    with pytest.raises(ValueError, match=message):
        generate(model, ["a cat"], **options)


def test_half_precision_is_close(model):
    full, half = (
        pixels(generate(model, "a photo of *", steps=2, precision=p)) for p in ("full", "autocast")
    )
    assert 0 < np.abs(full - half).mean() < 12


def test_the_models_mode_is_left_as_it_was(model):
    model.train()
    generate(model, "a cat", steps=1)
    assert model.training
    model.eval()
