"""Bases in diffusers' folder format equal the pipelines that wrote them."""

from __future__ import annotations

from copy import deepcopy

import pytest
import torch
from torch.testing import assert_close

from ldm.checkpoint.folders import read_component
from ldm.checkpoint.names import published_name, published_names
from ldm.inference import (
    Sampling,
    generate,
    load_model,
    negative_conditioning,
    sample_latents,
    seeded_noise,
)
from ldm.util import UserError
from ldm.words.manager import EmbeddingManager
from tests.checkpoint.pipelines import PIPELINES

PROMPT = "a photo of cat"


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


def text_states(pipeline, family, prompt=PROMPT):
    """Return diffusers' text vectors, and what its U-Net takes beside them."""
    if family == "sdxl":
        states, _, pooled, _ = pipeline.encode_prompt(prompt, do_classifier_free_guidance=False)
        numbers = torch.tensor([[64.0, 64, 0, 0, 64, 64]])
        return states, {"text_embeds": pooled, "time_ids": numbers}
    ids = pipeline.tokenizer(
        [prompt], padding="max_length", max_length=77, truncation=True, return_tensors="pt"
    ).input_ids
    encoder = pipeline.bert if family == "ldm" else pipeline.text_encoder
    return encoder(ids)[0], None


@torch.no_grad()
def test_each_part_equals_the_pipelines(model, pipeline, family):
    states, added = text_states(pipeline, family)
    learned = model.get_learned_conditioning([PROMPT])
    condition = model.model.conditions(learned)
    assert relative(condition["c_crossattn"][0], states) < 1e-4
    x, t = seeded_noise([3])(0, (1, 4, 8, 8)), torch.tensor([500])
    wanted = pipeline.unet(x, t, encoder_hidden_states=states, added_cond_kwargs=added).sample
    assert relative(model.model(x, t, **condition), wanted) < 1e-4
    assert model.parameterization == ("v" if family == "sd2-v" else "eps")
    if family == "sd2-v":  # of v: ε = √ā v + √(1 - ā) x
        kept = pipeline.scheduler.alphas_cumprod[500]
        wanted = kept.sqrt() * wanted + (1 - kept).sqrt() * x
    assert relative(model.apply_model(x, t, learned), wanted) < 1e-4
    vae = getattr(pipeline, "vae", None) or pipeline.vqvae
    assert relative(model.first_stage_model.decode(x), vae.decode(x).sample) < 1e-4
    image = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(1)) * 2 - 1
    posterior = vae.encode(image).latent_dist
    assert relative(model.encode_first_stage(image).mean, posterior.mean) < 1e-4


@torch.no_grad()
def test_an_image_equals_the_pipelines(model, pipeline):
    noise = seeded_noise([5])(0, (1, 4, 8, 8))
    settings = {"num_inference_steps": 10, "guidance_scale": 5.0, "output_type": "np"}
    (wanted,) = pipeline([PROMPT], latents=noise, **settings).images
    sampling = Sampling(steps=10, scale=5.0, seed=5, sampler="ddim")
    negative = negative_conditioning(model, sampling, 1)
    latents = sample_latents(model, sampling, [PROMPT], [5], (4, 8, 8), negative, verbose=False)
    (found,) = (model.decode_first_stage(latents) / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1)
    wanted = torch.from_numpy(wanted)
    assert relative(found, wanted) < 1e-4
    assert wanted.std() > 0.05
    (made,) = generate(model, PROMPT, sampling)
    pixels = torch.tensor(list(made.image.tobytes())).reshape(64, 64, 3)
    assert_close(pixels / 255, wanted, rtol=0, atol=1 / 250)


@pytest.mark.parametrize("prompt", ["*, cat", "a photo of * and *"])
@pytest.mark.parametrize("vectors", [1, 3])
def test_the_word_gets_the_gradient_of_diffusers_script(model, pipeline, family, prompt, vectors):
    """The loss of textual_inversion.py and textual_inversion_sdxl.py on one batch.

    The word's vectors are rows that are added to the vocabulary there. The 1.4B model has no script
    of diffusers; the same steps are taken with its pipeline's parts.
    """
    encoder = model.cond_stage_model
    manager = EmbeddingManager(encoder, ["*"], ["cat"], num_vectors_per_token=vectors)
    word = manager.word("*")
    rng = torch.Generator().manual_seed(4)
    x, noise, t = *torch.randn(2, 1, 4, 8, 8, generator=rng), torch.tensor([500])
    with torch.no_grad():
        word.add_(0.1 * torch.randn(word.shape, generator=rng))
    if family == "sd2-v":  # its configuration's loss_weighting: v
        model.timestep_weights = 1 / model.alphas_cumprod
    model.embedding_manager = manager
    condition = model.get_learned_conditioning([prompt])
    model.p_losses(x, condition, t, noise).loss.backward()
    model.embedding_manager, encoder.placeholders = None, {}

    theirs, names = deepcopy(pipeline), ["<w>", *(f"<w>_{i}" for i in range(1, vectors))]
    parts = [("bert", "tokenizer")] if family == "ldm" else [("text_encoder", "tokenizer")]
    parts += [("text_encoder_2", "tokenizer_2")] if family == "sdxl" else []
    networks = [getattr(theirs, component) for component, _ in parts]
    widths = [network.get_input_embeddings().weight.shape[1] for network in networks]
    tables = []
    for (_, place), network, own in zip(
        parts, networks, word.detach().split(widths, 1), strict=True
    ):
        tokenizer = getattr(theirs, place)
        tokenizer.add_tokens(names)
        network.resize_token_embeddings(len(tokenizer), mean_resizing=False)
        table = network.get_input_embeddings().weight
        tables.append((table, tokenizer.convert_tokens_to_ids(names)))
        table.data[tables[-1][1]] = own
    spelled = "<w>" if family == "sdxl" else " ".join(names)  # its pipeline adds the other names
    states, added = text_states(theirs, family, prompt.replace("*", spelled))
    noisy = theirs.scheduler.add_noise(x, noise, t)
    predicted = theirs.unet(noisy, t, encoder_hidden_states=states, added_cond_kwargs=added).sample
    target = theirs.scheduler.get_velocity(x, noise, t) if family == "sd2-v" else noise
    torch.nn.functional.mse_loss(predicted, target).backward()
    wanted = torch.cat([table.grad[ids] for table, ids in tables], 1)
    assert relative(word.grad, wanted) < 1e-4


@pytest.mark.parametrize("scripted", [False, True])
def test_a_client_loads_the_published_names(folder, scripted):
    """`load_state_dict(…, strict=False)`, as the original's scripts call it, misses no weight."""
    model = load_model(folder)
    wanted = {name: value.clone() for name, value in model.state_dict().items()}
    published = {published_name(name): value for name, value in wanted.items()}
    state = dict(
        zip(published_names(model) if scripted else published, wanted.values(), strict=True)
    )
    for weight in model.parameters():
        weight.data.zero_()
    assert model.load_state_dict(state, strict=False) == ([], [])
    for name, value in model.state_dict().items():
        assert torch.equal(value, wanted[name]), name


def test_a_component_that_is_not_there_is_one_line(tmp_path):
    """As where a folder of Stable Diffusion 1 is read with the configuration of SDXL."""
    with pytest.raises(UserError, match=r"lacks the component text_encoder_2/: download"):
        read_component(tmp_path / "text_encoder_2")
