"""Bases in diffusers' folder format equal the pipelines that wrote them."""

from __future__ import annotations

import pytest
import torch
from torch.testing import assert_close

from ldm.inference import Sampling, generate, load_model, seeded_noise
from tests.checkpoint.pipelines import PIPELINES

PROMPT = "a photo of cat"
ENCODERS = {"ldm": "bert", "sd1": "text_encoder"}


@pytest.fixture(scope="module", params=list(PIPELINES))
def family(request):
    return request.param


@pytest.fixture(scope="module")
def pipeline(family, tmp_path_factory):
    made = PIPELINES[family](tmp_path_factory.mktemp("vocabulary"))
    made.set_progress_bar_config(disable=True)
    return made


@pytest.fixture(scope="module")
def folder(pipeline, tmp_path_factory):
    path = tmp_path_factory.mktemp("base") / "pipeline"
    pipeline.save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def model(folder):
    return load_model(folder)


def relative(found, wanted):
    """Return the largest error, relative to the largest value."""
    return float((found - wanted).abs().max() / wanted.abs().max())


def text_states(pipeline, family, prompt):
    ids = pipeline.tokenizer(
        [prompt], padding="max_length", max_length=77, truncation=True, return_tensors="pt"
    ).input_ids
    return getattr(pipeline, ENCODERS[family])(ids)[0]


@torch.no_grad()
def test_each_part_equals_the_pipelines(model, pipeline, family):
    wanted = text_states(pipeline, family, PROMPT)
    condition = model.get_learned_conditioning([PROMPT])
    assert relative(condition, wanted) < 1e-4
    x, t = seeded_noise([3])(0, (1, 4, 8, 8)), torch.tensor([500])
    wanted = pipeline.unet(x, t, encoder_hidden_states=wanted).sample
    assert relative(model.apply_model(x, t, condition), wanted) < 1e-4
    vae = getattr(pipeline, "vae", None) or pipeline.vqvae
    assert relative(model.first_stage_model.decode(x), vae.decode(x).sample) < 1e-4
    image = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(1)) * 2 - 1
    posterior = vae.encode(image).latent_dist
    assert relative(model.encode_first_stage(image).mean, posterior.mean) < 1e-4


def test_an_image_equals_the_pipelines(model, pipeline):
    latents = seeded_noise([5])(0, (1, 4, 8, 8))
    wanted = pipeline(
        [PROMPT], num_inference_steps=10, guidance_scale=5.0, latents=latents, output_type="np"
    ).images[0]
    settings = Sampling(steps=10, scale=5.0, seed=5, sampler="ddim", precision="full")
    (made,) = generate(model, PROMPT, settings)
    found = torch.tensor(list(made.image.tobytes())).reshape(64, 64, 3)
    assert (found - 255 * torch.from_numpy(wanted)).abs().max() < 1.01  # rounded to bytes
    assert wanted.std() > 0.05
    decoded = torch.from_numpy(wanted)
    assert_close(found / 255, decoded, rtol=0, atol=1 / 200)
