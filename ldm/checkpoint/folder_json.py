"""Our configuration → the config.json files of a diffusers folder (see `folder_config`)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from omegaconf import DictConfig, OmegaConf

from ldm.checkpoint import folder_config as folders
from ldm.checkpoint.tables import FAMILIES

VERSION = "0.30.0"  # of diffusers, whose configurations these are
# The library and the class of a folder's components with weights.
CLASSES = {
    "unet": ("diffusers", "UNet2DConditionModel"),
    "vae": ("diffusers", "AutoencoderKL"),
    "vqvae": ("diffusers", "AutoencoderKL"),
    "bert": ("latent_diffusion", "LDMBertModel"),
    "text_encoder": ("transformers", "CLIPTextModel"),
    "text_encoder_2": ("transformers", "CLIPTextModelWithProjection"),
}


def model_index(name: str) -> dict[str, Any]:
    """Return `model_index.json` of a family's folder."""
    family, more = FAMILIES[name], dict[str, Any]()
    if name == "sdxl":
        more = {"force_zeros_for_empty_prompt": True}
    elif name != "ldm":
        absent = ("safety_checker", "feature_extractor")
        more = {"requires_safety_checker": False, **{part: [None, None] for part in absent}}
    tokenizer = "BertTokenizer" if name == "ldm" else "CLIPTokenizer"
    return {
        "_class_name": family.pipeline,
        "_diffusers_version": VERSION,
        **more,
        **{part.component: list(CLASSES[part.component]) for part in family.parts},
        **{place: ["transformers", tokenizer] for place in family.tokenizers},
        "scheduler": ["diffusers", "DDIMScheduler"],
    }


def component_configs(family: str, config: DictConfig) -> dict[str, dict[str, Any]]:
    """Return the config.json of each component with weights, and that of the scheduler.

    Two configurations of one network give the same, however they are written. The family is a key
    of `FAMILIES`; the configuration has a `model`.
    """
    plain = OmegaConf.to_container(config.model.params, resolve=True)
    assert isinstance(plain, dict)
    params: dict[str, Any] = {str(name): value for name, value in plain.items()}
    first_stage = params["first_stage_config"]["params"]["ddconfig"]
    encoder = params["cond_stage_config"].get("params") or {}
    unet = params["unet_config"]["params"]
    vector = {
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": encoder.get("size_width", 256),
        "projection_class_embeddings_input_dim": unet.get("adm_in_channels"),
    }
    return {
        "unet": _unet(unet, params["image_size"]) | (vector if family == "sdxl" else {}),
        FAMILIES[family].parts[1].component: _autoencoder(first_stage, params, family),
        "scheduler": _scheduler(params),
        **_encoders(family, encoder),
    }


def _unet(params: Mapping[str, Any], size: int) -> dict[str, Any]:
    widths = [params["model_channels"] * m for m in params["channel_mult"]]
    depth = params.get("transformer_depth", 1)
    depths = [depth] * len(widths) if isinstance(depth, int) else list(depth)
    attends = [2**i in params["attention_resolutions"] and n > 0 for i, n in enumerate(depths)]
    channels, context = params.get("num_head_channels", -1), params["context_dim"]
    context = context if isinstance(context, int) else context[0]
    # A level without attention has no depth there; 1 stands for it.
    whole = [n or 1 for n in depths]
    return {
        "_class_name": "UNet2DConditionModel",
        "_diffusers_version": VERSION,
        **folders.theirs(folders.UNET, {**params, "image_size": size, "context_dim": context}),
        "block_out_channels": widths,
        "down_block_types": ["CrossAttnDownBlock2D" if a else "DownBlock2D" for a in attends],
        "up_block_types": ["CrossAttnUpBlock2D" if a else "UpBlock2D" for a in attends[::-1]],
        "attention_head_dim": (
            params["num_heads"] if channels == -1 else [width // channels for width in widths]
        ),
        "transformer_layers_per_block": depths[-1] if len(set(whole)) == 1 else whole,
        "norm_eps": 1e-05,
        "act_fn": "silu",
        "flip_sin_to_cos": True,
        "freq_shift": 0,
        "downsample_padding": 1,
    }


def _autoencoder(
    ddconfig: Mapping[str, Any], params: Mapping[str, Any], family: str
) -> dict[str, Any]:
    widths = [ddconfig["ch"] * m for m in ddconfig["ch_mult"]]
    return {
        "_class_name": "AutoencoderKL",
        "_diffusers_version": VERSION,
        **folders.theirs(folders.AUTOENCODER, ddconfig),
        "block_out_channels": widths,
        "down_block_types": ["DownEncoderBlock2D"] * len(widths),
        "up_block_types": ["UpDecoderBlock2D"] * len(widths),
        "scaling_factor": params["scale_factor"],
        "force_upcast": family == "sdxl",
        "act_fn": "silu",
    }


def _scheduler(params: Mapping[str, Any]) -> dict[str, Any]:
    betas = {ours: theirs for theirs, ours in folders.BETAS.items()}
    predictions = {ours: theirs for theirs, ours in folders.PREDICTIONS.items()}
    return {
        "_class_name": "DDIMScheduler",
        "_diffusers_version": VERSION,
        **folders.theirs(folders.SCHEDULER, params),
        "beta_schedule": betas[params.get("beta_schedule", "linear")],
        "prediction_type": predictions[params.get("parameterization", "eps")],
        "clip_sample": False,
        "set_alpha_to_one": False,
        "steps_offset": 1,
    }


def _encoders(family: str, params: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    if family == "ldm":
        return {"bert": _bert(params)}
    if family == "sdxl":
        first, second = (params.get(part, {}).get("params") or {} for part in ("clip_l", "clip_g"))
        projecting = {"architectures": ["CLIPTextModelWithProjection"]}
        return {
            "text_encoder": _clip(first, 768, 12, 12, "quick_gelu"),
            "text_encoder_2": _clip(second, 1280, 32, 20) | projecting,
        }
    if family == "sd1":
        return {"text_encoder": _clip(params, 768, 12, 12, "quick_gelu")}
    found = _clip(params, 1024, 24, 16)
    if params.get("layer", "penultimate") == "penultimate":
        # The last block conditions nothing, and the folder leaves it out.
        found["num_hidden_layers"] -= 1
    return {"text_encoder": found}


def _bert(params: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "architectures": ["LDMBertModel"],
        "model_type": "ldmbert",
        "activation_function": "gelu",
        **folders.theirs(folders.BERT, params),
        "encoder_ffn_dim": 4 * params["n_embed"],
        "pad_token_id": 0,
        "dropout": 0.1,
        "scale_embedding": False,
    }


def _clip(
    params: Mapping[str, Any], width: int, layers: int, heads: int, act: str = "gelu"
) -> dict[str, Any]:
    """Return the sizes of a CLIP text encoder; those not in `params` are the published ones."""
    own = {"width": width, "layers": layers, "heads": heads, "hidden_act": act}
    own |= {name: value for name, value in params.items() if value}
    sizes = folders.theirs(folders.CLIP, own)
    return {
        "architectures": ["CLIPTextModel"],
        "model_type": "clip_text_model",
        "hidden_act": own["hidden_act"],
        **sizes,
        "intermediate_size": 4 * sizes["hidden_size"],
        "bos_token_id": sizes["vocab_size"] - 2,
        "eos_token_id": sizes["vocab_size"] - 1,
        "projection_dim": sizes["hidden_size"],
        "layer_norm_eps": 1e-05,
    }
