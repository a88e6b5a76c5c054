"""SDXL's form of the model at a tiny size equals diffusers: texts, images, the word's gradient."""

from __future__ import annotations

import json
from copy import deepcopy
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from ldm.inference import Sampling, generate, negative_conditioning
from ldm.models.diffusion.ddim import DDIMSampler
from ldm.util import UserError, instantiate_from_config
from ldm.words.files import read_words, write_words
from ldm.words.manager import EmbeddingManager
from tests.modules.diffusers_names import autoencoder_state, unet_name
from tests.modules.test_encoders import from_open_clip, relative
from tests.modules.vocabularies import write_clip

PROMPTS = ["a photo of the cat, the moon", "cat"]
NEGATIVE = "the moon"
L = {"width": 12, "layers": 3, "heads": 2, "vocab_size": 80}
G = {"width": 24, "layers": 3, "heads": 2, "vocab_size": 80}


def write_vocabulary(folder: Path) -> str:
    """Write a vocabulary whose id 0 is "!", the padding of OpenCLIP."""
    write_clip(folder)
    pieces = json.loads((folder / "vocab.json").read_text())
    shifted = {"!": 0, **{piece: i + 1 for piece, i in pieces.items()}}
    (folder / "vocab.json").write_text(json.dumps(shifted))
    return str(folder)


def config(vocabulary: str) -> dict:
    target = "ldm.models.diffusion.ddpm.LatentDiffusion"
    unet = {
        "in_channels": 4,
        "out_channels": 4,
        "model_channels": 8,
        "attention_resolutions": [2, 4],
        "num_res_blocks": 2,
        "channel_mult": [1, 2, 4],
        "num_head_channels": 8,
        "use_spatial_transformer": True,
        "use_linear_in_transformer": True,
        "transformer_depth": [0, 1, 2],
        "context_dim": 36,
        "num_classes": "sequential",
        "adm_in_channels": 60,
        "num_groups": 4,
    }
    ddconfig = {
        "double_z": True,
        "z_channels": 4,
        "resolution": 16,
        "in_channels": 3,
        "out_ch": 3,
        "ch": 8,
        "ch_mult": [1, 2],
        "num_res_blocks": 1,
        "attn_resolutions": [],
        "dropout": 0.0,
        "num_groups": 4,
    }
    stage = {"embed_dim": 4, "ddconfig": ddconfig, "lossconfig": {"target": "torch.nn.Identity"}}
    texts = {"tokenizer": vocabulary, "clip_l": L, "clip_g": G, "size_width": 6}
    return {
        "target": target,
        "params": {
            "linear_start": 0.00085,
            "linear_end": 0.012,
            "timesteps": 1000,
            "image_size": 8,
            "channels": 4,
            "cond_stage_key": "caption",
            "conditioning_key": "crossattn-adm",
            "scale_factor": 0.13025,
            "use_ema": False,
            "unet_config": {
                "target": "ldm.modules.diffusionmodules.openaimodel.UNetModel",
                "params": unet,
            },
            "first_stage_config": {
                "target": "ldm.models.autoencoder.AutoencoderKL",
                "params": stage,
            },
            "cond_stage_config": {
                "target": "ldm.modules.encoders.modules.FrozenXLEmbedder",
                "params": texts,
            },
        },
    }


def their_encoders(encoder):
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    first, second = encoder.embedders
    own = CLIPTextModel(deepcopy(first.transformer.config)).eval().requires_grad_(False)
    own.config.eos_token_id = own.eos_token_id = encoder.frame[1]
    own.load_state_dict(first.transformer.state_dict())
    settings = CLIPTextConfig(
        hidden_size=24,
        intermediate_size=96,
        num_hidden_layers=3,
        num_attention_heads=2,
        vocab_size=80,
        hidden_act="gelu",
        projection_dim=24,
        eos_token_id=encoder.frame[1],
    )
    other = CLIPTextModelWithProjection(settings).eval().requires_grad_(False)
    other.load_state_dict(from_open_clip(second.model.state_dict()), strict=True)
    return own, other


def their_pipeline(model, vocabulary):
    from diffusers import (
        AutoencoderKL,
        DDIMScheduler,
        StableDiffusionXLPipeline,
        UNet2DConditionModel,
    )
    from transformers import CLIPTokenizer

    unet = UNet2DConditionModel(
        sample_size=8,
        in_channels=4,
        out_channels=4,
        block_out_channels=(8, 16, 32),
        layers_per_block=2,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=36,
        attention_head_dim=(1, 2, 4),  # the number of heads, by diffusers' old name
        transformer_layers_per_block=(1, 1, 2),
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=6,
        projection_class_embeddings_input_dim=60,
        norm_num_groups=4,
    )
    own = model.model.diffusion_model.state_dict()
    unet.load_state_dict({unet_name(n, 2): v for n, v in own.items()}, strict=True)
    vae = AutoencoderKL(
        block_out_channels=(8, 16),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=4,
        layers_per_block=1,
        norm_num_groups=4,
        scaling_factor=0.13025,
        sample_size=16,
    )
    vae.load_state_dict(autoencoder_state(model.first_stage_model, 2), strict=True)
    scheduler = DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
    )
    first, second = their_encoders(model.cond_stage_model)
    tokenizer = CLIPTokenizer.from_pretrained(vocabulary, model_max_length=77)
    padded = CLIPTokenizer.from_pretrained(vocabulary, model_max_length=77, pad_token="!")
    pipe = StableDiffusionXLPipeline(
        vae.eval(),
        first,
        second,
        tokenizer,
        padded,
        unet.eval(),
        scheduler,
        force_zeros_for_empty_prompt=False,
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    torch.manual_seed(0)
    vocabulary = write_vocabulary(tmp_path_factory.mktemp("clip"))
    model = instantiate_from_config(config(vocabulary)).eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.ndim > 1 and "embedding" not in name:
                weight.normal_(std=weight[0].numel() ** -0.5)
            else:
                weight.add_(0.05 * torch.randn(weight.shape))
    return model, their_pipeline(model, vocabulary)


@torch.no_grad()
def test_texts_equal_the_pipelines(both):
    model, pipe = both
    context, negative, pooled, negative_pooled = pipe.encode_prompt(
        PROMPTS, device="cpu", negative_prompt=[NEGATIVE] * 2
    )
    ours = model.get_learned_conditioning(PROMPTS)
    against = model.get_learned_conditioning([NEGATIVE] * 2, size=(32, 48))
    for own, texts, vector in ((ours, context, pooled), (against, negative, negative_pooled)):
        assert relative(own["c_crossattn"][0], texts) < 1e-5
        assert relative(own["c_adm"][:, :24], vector) < 1e-5
    for own, size in ((ours, (16, 16)), (against, (32, 48))):
        ids = torch.tensor([*size, 0, 0, *size])
        sizes = pipe.unet.add_time_proj(ids).flatten()
        torch.testing.assert_close(own["c_adm"][:, 24:], sizes.expand(2, -1))
    other = model.get_learned_conditioning(PROMPTS, original_size=(9, 8), crop=(3, 4))
    ids = torch.tensor([9, 8, 3, 4, 16, 16])
    torch.testing.assert_close(other["c_adm"][0, 24:], pipe.unet.add_time_proj(ids).flatten())


@torch.no_grad()
def test_ten_steps_of_ddim_equal_the_pipelines(both):
    model, pipe = both
    noise = torch.randn(2, 4, 8, 8)
    options = {"height": 16, "width": 16, "num_inference_steps": 10, "guidance_scale": 5.0}
    given = {"negative_prompt": [NEGATIVE] * 2, "latents": noise.clone()}
    theirs = pipe(PROMPTS, output_type="latent", **options, **given).images
    ours, _ = DDIMSampler(model).sample(
        S=10,
        batch_size=2,
        shape=(4, 8, 8),
        conditioning=model.get_learned_conditioning(PROMPTS),
        unconditional_guidance_scale=5.0,
        unconditional_conditioning=model.get_learned_conditioning([NEGATIVE] * 2),
        x_T=noise,
        verbose=False,
    )
    assert relative(ours, theirs) < 1e-4
    images = model.decode_first_stage(ours)
    decoded = pipe.vae.decode(theirs / 0.13025).sample
    assert relative(images, decoded) < 1e-4


@torch.no_grad()
def test_no_negative_prompt_is_zeros_as_in_the_published_pipeline(both):
    """`force_zeros_for_empty_prompt` is true in the published model_index.json."""
    model, pipe = both
    pipe.register_to_config(force_zeros_for_empty_prompt=True)
    _, negative, _, pooled = pipe.encode_prompt(PROMPTS, device="cpu")
    noise = torch.randn(2, 4, 8, 8)
    options = {"height": 16, "width": 16, "num_inference_steps": 3, "guidance_scale": 5.0}
    theirs = pipe(PROMPTS, output_type="latent", latents=noise.clone(), **options).images
    pipe.register_to_config(force_zeros_for_empty_prompt=False)
    sampling = Sampling(steps=3, scale=5.0)
    against = negative_conditioning(model, sampling, 2)
    torch.testing.assert_close(against["c_crossattn"][0], negative)
    torch.testing.assert_close(against["c_adm"][:, :24], pooled)
    given = model.get_learned_conditioning(PROMPTS)
    torch.testing.assert_close(against["c_adm"][:, 24:], given["c_adm"][:, 24:])
    ours, _ = DDIMSampler(model).sample(
        S=3,
        batch_size=2,
        shape=(4, 8, 8),
        conditioning=given,
        unconditional_guidance_scale=5.0,
        unconditional_conditioning=against,
        x_T=noise,
        verbose=False,
    )
    assert relative(ours, theirs) < 1e-4
    named = negative_conditioning(model, Sampling(scale=5.0, negative_prompt=NEGATIVE), 2)
    torch.testing.assert_close(named, model.get_learned_conditioning([NEGATIVE] * 2))


def test_a_key_that_needs_a_vector_needs_an_encoder_that_gives_one(tmp_path):
    settings = config(write_vocabulary(tmp_path))
    params = settings["params"]
    params["cond_stage_config"] = {
        "target": "ldm.modules.encoders.modules.FrozenCLIPEmbedder",
        "params": {**params["cond_stage_config"]["params"]["clip_l"], "tokenizer": str(tmp_path)},
    }
    params["unet_config"]["params"]["context_dim"] = 12
    with pytest.raises(ValueError, match=r"crossattn-adm needs a vector .* FrozenCLIPEmbedder"):
        instantiate_from_config(settings)


@pytest.mark.parametrize("sampler", ["ddim", "plms", "dpmpp_2m", "euler", "euler_a"])
def test_every_sampler_generates_with_guidance_and_a_negative_prompt(both, sampler):
    model, _ = both
    settings = Sampling(sampler=sampler, steps=3, negative_prompt=NEGATIVE, height=16, width=24)
    images = generate(model, PROMPTS, settings)
    assert [image.image.size for image in images] == [(24, 16)] * 2


@pytest.mark.parametrize("prompt", ["*, the cat", "a photo of * on the moon", "cat *", "* and *"])
@pytest.mark.parametrize("vectors", [1, 3])
def test_a_word_has_the_gradient_of_diffusers_script(both, prompt, vectors):
    """The loss of textual_inversion_sdxl.py on one batch, in both encoders' tables."""
    model, pipe = both
    encoder = model.cond_stage_model
    manager = EmbeddingManager(encoder, ["*"], ["cat"], num_vectors_per_token=vectors)
    word: Tensor = manager.string_to_param_dict["*"]
    with torch.no_grad():
        word.add_(0.1 * torch.randn(word.shape))
    x, t, noise = torch.randn(1, 4, 8, 8), torch.tensor([500]), torch.randn(1, 4, 8, 8)
    model.embedding_manager = manager
    condition = model.get_learned_conditioning([prompt])
    model.embedding_manager = None
    model.p_losses(x, condition, t, noise).loss.backward()

    tables, states, pooled = [], [], None
    names = ["<w>", *(f"<w>_{i}" for i in range(1, vectors))]
    parts = word.detach().split(encoder.widths, dim=1)
    for which, part in enumerate(parts):
        tokenizer = deepcopy((pipe.tokenizer, pipe.tokenizer_2)[which])
        network = deepcopy((pipe.text_encoder, pipe.text_encoder_2)[which])
        tokenizer.add_tokens(names)
        network.resize_token_embeddings(len(tokenizer) + 80, mean_resizing=False)
        ids = tokenizer(
            prompt.replace("*", " ".join(names)),
            padding="max_length",
            truncation=True,
            return_tensors="pt",
        ).input_ids
        table = network.get_input_embeddings().weight
        new = tokenizer.convert_tokens_to_ids(names)
        table.data[new] = part
        tables.append((table.requires_grad_(True), new))
        out = network(ids, output_hidden_states=True)
        states.append(out.hidden_states[-2])
        pooled = out[0]
    sizes = torch.tensor([[16, 16, 0, 0, 16, 16]])
    noisy = pipe.scheduler.add_noise(x, noise, t)
    added = {"text_embeds": pooled, "time_ids": sizes}
    predicted = pipe.unet(noisy, t, torch.cat(states, -1), added_cond_kwargs=added).sample
    torch.nn.functional.mse_loss(predicted, noise).backward()
    theirs = torch.cat([table.grad[new] for table, new in tables], dim=1)
    assert relative(word.grad, theirs) < 1e-4
    encoder.placeholders = {}


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
@pytest.mark.parametrize("words", [["*"], ["<cat-toy>", "*"]])
def test_a_word_has_one_file_for_both_encoders(both, tmp_path, words, suffix):
    encoder = both[0].cond_stage_model
    manager = EmbeddingManager(encoder, words, ["cat"] * len(words), num_vectors_per_token=2)
    with torch.no_grad():
        for vectors in manager.embedding_parameters():
            vectors.normal_()
    manager.save(tmp_path / f"word{suffix}")
    file = read_words(tmp_path / f"word{suffix}")
    for word in words:
        assert (file.words[word].shape, file.second[word].shape) == ((2, 12), (2, 24))
    other = EmbeddingManager(encoder, [])
    assert sorted(other.load(tmp_path / f"word{suffix}")) == sorted(words)
    for word in words:
        torch.testing.assert_close(other.word(word), manager.word(word), rtol=0, atol=0)
    if suffix == ".safetensors" and len(words) == 1:
        assert set(load_file(tmp_path / "word.safetensors")) == {"clip_l", "clip_g"}
    first = tmp_path / "first.safetensors"
    write_words(first, {"*": torch.ones(1, 12)})
    with pytest.raises(UserError, match=r"width 12, .*this model's text encoder is sdxl, width 36"):
        EmbeddingManager(encoder, []).load(first)
    encoder.placeholders = {}


def test_only_the_word_moves_in_training(both):
    """One optimizer moves both parts of the word, from a loss of images and captions."""
    model, _ = both
    model.embedding_manager = EmbeddingManager(model.cond_stage_model, ["*"], ["cat"])
    model._freeze(model.model)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    optimizer = model.configure_optimizers()
    batch = {"image": torch.rand(2, 16, 16, 3) * 2 - 1, "caption": ["a photo of *", "the * cat"]}
    model.shared_step(batch).loss.backward()
    optimizer.step()
    moved = [n for n, v in model.state_dict().items() if not torch.equal(v, before[n])]
    assert moved == ["embedding_manager.string_to_param_dict.*"]
    change = (model.embedding_manager.word("*") - before[moved[0]]).abs()
    assert (change > 0).all()
    model.embedding_manager, model.cond_stage_model.placeholders = None, {}
