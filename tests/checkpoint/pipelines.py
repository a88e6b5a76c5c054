"""Tiny pipelines of diffusers with random weights, written as folders."""

from __future__ import annotations

import json

import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    LDMTextToImagePipeline,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from diffusers.pipelines.latent_diffusion.pipeline_latent_diffusion import (
    LDMBertConfig,
    LDMBertModel,
)
from transformers import (
    BertTokenizer,
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
)

from tests.conftest import VOCABULARY
from tests.modules.vocabularies import write_clip
from tests.modules.weights import randomize

SCHEDULE = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "clip_sample": False,
    "set_alpha_to_one": False,
    "steps_offset": 1,
}


SIZES = {"ldm": 32}  # widths of the text


def unet(context, **more):
    """Build a U-Net of three levels, the last without attention."""
    options = {
        "sample_size": 8,
        "block_out_channels": (16, 32, 32),
        "layers_per_block": 2,
        "down_block_types": ("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
        "cross_attention_dim": context,
        "attention_head_dim": 4,
        "norm_num_groups": 8,
        **more,
    }
    return randomize(UNet2DConditionModel(**options), 1).eval()


def autoencoder(**more):
    """Build an autoencoder that makes images 8 times as wide as latents."""
    options = {
        "block_out_channels": (8, 8, 16, 16),
        "down_block_types": ("DownEncoderBlock2D",) * 4,
        "up_block_types": ("UpDecoderBlock2D",) * 4,
        "layers_per_block": 1,
        "norm_num_groups": 4,
        "sample_size": 64,
        **more,
    }
    return randomize(AutoencoderKL(**options), 2).eval()


def ldm(folder):
    """Build the 1.4B model's pipeline at tiny size."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.txt").write_text("\n".join(VOCABULARY) + "\n")
    config = LDMBertConfig(
        vocab_size=len(VOCABULARY),
        encoder_layers=2,
        encoder_ffn_dim=4 * SIZES["ldm"],
        encoder_attention_heads=4,
        head_dim=8,
        d_model=SIZES["ldm"],
    )
    return LDMTextToImagePipeline(
        vqvae=autoencoder(),
        bert=randomize(LDMBertModel(config), 3).eval(),
        tokenizer=BertTokenizer(str(folder / "vocab.txt"), model_max_length=77),
        unet=unet(SIZES["ldm"]),
        scheduler=DDIMScheduler(**SCHEDULE),
    )


def clip_tokenizer(folder, pad_token="<|endoftext|>"):
    """Build CLIP's tokenizer with a vocabulary of letters and signs; "!" is id 0, as in CLIP's."""
    folder.mkdir(parents=True, exist_ok=True)
    write_clip(folder)
    words = json.loads((folder / "vocab.json").read_text())
    signs = [sign + end for sign in "()'-" for end in ("", "</w>")]
    shifted = {piece: i for i, piece in enumerate(("!", *signs, *words))}
    (folder / "vocab.json").write_text(json.dumps(shifted))
    return CLIPTokenizer(
        str(folder / "vocab.json"),
        str(folder / "merges.txt"),
        pad_token=pad_token,
        model_max_length=77,
    )


def clip_config(tokenizer, **more):
    """Return the sizes of a tiny CLIP text encoder."""
    return CLIPTextConfig(
        **{
            "vocab_size": len(tokenizer),
            "hidden_size": 32,
            "intermediate_size": 128,
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
            "bos_token_id": len(tokenizer) - 2,
            "eos_token_id": len(tokenizer) - 1,
            **more,
        }
    )


def stable_diffusion(tokenizer, network, text, **schedule):
    """Build a pipeline of Stable Diffusion at tiny size."""
    return StableDiffusionPipeline(
        vae=autoencoder(),
        text_encoder=randomize(CLIPTextModel(text), 3).eval(),
        tokenizer=tokenizer,
        unet=network,
        scheduler=DDIMScheduler(**SCHEDULE, **schedule),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def sd1(folder):
    """Build Stable Diffusion 1's pipeline at tiny size."""
    tokenizer = clip_tokenizer(folder)
    return stable_diffusion(tokenizer, unet(32), clip_config(tokenizer))


def sd2(folder, prediction="epsilon"):
    """Build Stable Diffusion 2's pipeline at tiny size."""
    tokenizer = clip_tokenizer(folder, "!")
    network = unet(32, attention_head_dim=(2, 4, 4), use_linear_projection=True)
    text = clip_config(tokenizer, hidden_act="gelu")
    return stable_diffusion(tokenizer, network, text, prediction_type=prediction)


def sd2_v(folder):
    """Build Stable Diffusion 2's pipeline with v-prediction at tiny size."""
    return sd2(folder, "v_prediction")


def sdxl(folder):
    """Build Stable Diffusion XL's pipeline at tiny size."""
    tokenizer = clip_tokenizer(folder)
    second = clip_config(
        tokenizer, hidden_act="gelu", hidden_size=16, intermediate_size=64, projection_dim=16
    )
    network = unet(
        48,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=(2, 4, 4),
        use_linear_projection=True,
        transformer_layers_per_block=(1, 2, 3),
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=16 + 6 * 8,
    )
    return StableDiffusionXLPipeline(
        vae=autoencoder(scaling_factor=0.13025),
        text_encoder=randomize(CLIPTextModel(clip_config(tokenizer)), 3).eval(),
        text_encoder_2=randomize(CLIPTextModelWithProjection(second), 4).eval(),
        tokenizer=tokenizer,
        tokenizer_2=clip_tokenizer(folder / "second", "!"),
        unet=network,
        scheduler=DDIMScheduler(**SCHEDULE),
        add_watermarker=False,
        force_zeros_for_empty_prompt=True,
    )


PIPELINES = {"ldm": ldm, "sd1": sd1, "sd2": sd2, "sd2-v": sd2_v, "sdxl": sdxl}


def write_as_published(pipeline, folder):
    """Write the layout of CompVis/ldm-text2im-large-256: `.bin`, old names of the attention."""
    from ldm.checkpoint.tables import OLD_ATTENTION

    pipeline.save_pretrained(folder, safe_serialization=False)
    path = folder / "vqvae" / "diffusion_pytorch_model.bin"
    state = {}
    for name, value in torch.load(path).items():
        for new, old in OLD_ATTENTION.items():
            if ".attentions.0." in name:
                name = name.replace(f".{new}.", f".{old}.")
        state[name] = value
    assert any("proj_attn" in name for name in state)
    torch.save(state, path)
    config = json.loads((folder / "unet" / "config.json").read_text())
    for name in ("transformer_layers_per_block", "use_linear_projection", "norm_eps"):
        config.pop(name)  # 0.0.4 did not write them
    (folder / "unet" / "config.json").write_text(json.dumps(config))
