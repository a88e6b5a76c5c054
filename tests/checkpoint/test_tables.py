"""The tables of names against the published listings and the networks of diffusers."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from diffusers.pipelines.latent_diffusion.pipeline_latent_diffusion import (
    LDMBertConfig,
    LDMBertModel,
)
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from ldm.checkpoint.convert import give
from ldm.checkpoint.folders import like, take
from ldm.checkpoint.names import SCHEDULE, canonical
from ldm.checkpoint.tables import FAMILIES, Entry, choose_weights, text_encoder

DATA = Path(__file__).parents[1] / "data"
LISTINGS = {"ldm": "txt2img-1p4B", "sd1": "sd-v1", "sd2": "sd-v2-1", "sdxl": "sdxl-base-1.0"}
# What files have and folders have not.
WITHOUT = ("logit_scale", "position_ids", "cond_stage_model.model.text_projection")
WIDTHS = (320, 640, 1280, 1280)
SDXL = {
    "block_out_channels": WIDTHS[:3],
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "cross_attention_dim": 2048,
    "attention_head_dim": (5, 10, 20),
    "use_linear_projection": True,
    "transformer_layers_per_block": (1, 2, 10),
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
}
OPEN_CLIP = {
    "hidden_size": 1280,
    "intermediate_size": 5120,
    "num_hidden_layers": 32,
    "num_attention_heads": 20,
    "projection_dim": 1280,
}


def clip(**sizes):
    return CLIPTextModel(CLIPTextConfig(**{"intermediate_size": 3072, "hidden_size": 768, **sizes}))


def networks(family):
    """The networks of diffusers at published size, without memory."""
    with torch.device("meta"):
        if family == "sdxl":
            unet = UNet2DConditionModel(**SDXL)
        else:
            context = {"ldm": 1280, "sd1": 768, "sd2": 1024}[family]
            unet = UNet2DConditionModel(
                cross_attention_dim=context, use_linear_projection=family == "sd2"
            )
        autoencoder = AutoencoderKL(
            block_out_channels=(128, 256, 512, 512),
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            layers_per_block=2,
        )
        if family == "ldm":
            return {"unet": unet, "vqvae": autoencoder, "bert": LDMBertModel(LDMBertConfig())}
        large = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24}
        found = {"unet": unet, "vae": autoencoder}
        found["text_encoder"] = clip(**(large if family == "sd2" else {}))
        if family == "sdxl":
            found["text_encoder_2"] = CLIPTextModelWithProjection(CLIPTextConfig(**OPEN_CLIP))
        return found


def published(family):
    packed = (DATA / f"{LISTINGS[family]}.tsv.gz").read_bytes()
    rows = gzip.decompress(packed).decode().splitlines()[1:]
    found = {}
    for name, shape, _ in (row.split("\t") for row in rows):
        if name not in SCHEDULE and not name.endswith(WITHOUT):
            # The listing of Stable Diffusion 2 has the names of a conversion script.
            name = canonical(name) if family == "sd2" else name
            sizes = [int(n) for n in shape.split(",") if n]
            found[name] = torch.empty(sizes, device="meta")
    return found


@pytest.mark.parametrize("family", LISTINGS)
def test_every_published_entry_is_one_of_diffusers(family):
    entries = published(family)
    assert text_encoder(entries)[0] == family
    places, held = FAMILIES[family].entries(entries), {}
    for name, value in entries.items():
        entry = places[name]
        for theirs, part in give(entry, value).items():
            short = theirs.removeprefix("text_model.")
            assert short not in held.setdefault(entry.component, {}), f"{theirs} twice"
            held[entry.component][short] = tuple(part.shape)
    for component, network in networks(family).items():
        wanted = {
            name.removeprefix("text_model."): tuple(value.shape)
            for name, value in network.state_dict().items()
        }
        assert held[component] == wanted, component


@pytest.mark.parametrize(
    ("names", "transposed", "shape"),
    [
        (("a",), False, (3, 4)),
        (("a",), True, (4, 4)),
        (("q", "k", "v"), False, (6, 2)),
        (("mid_block.attentions.0.to_q.weight",), False, (4, 4, 1, 1)),
    ],
)
def test_what_is_given_is_taken_again(names, transposed, shape):
    value = torch.arange(float(torch.Size(shape).numel())).reshape(shape)
    entry = Entry("vae", names, transposed)
    stored = give(entry, value)
    assert set(stored) == set(names)
    assert torch.equal(like(take(entry, stored), value.shape), value)


@pytest.mark.parametrize(
    ("files", "chosen"),
    [
        (["model.safetensors", "pytorch_model.bin"], ["model.safetensors"]),
        (["pytorch_model.bin", "model.fp16.safetensors"], ["model.fp16.safetensors"]),
        (["diffusion_pytorch_model.bin", "config.json"], ["diffusion_pytorch_model.bin"]),
        (["config.json"], []),
    ],
)
def test_the_preferred_form_of_weights(files, chosen):
    assert choose_weights(files) == chosen
