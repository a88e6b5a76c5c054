"""Our configuration → the config.json files of a diffusers folder (see `folder_config`)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from omegaconf import DictConfig, OmegaConf

from ldm.checkpoint.folder_config import BETAS, PREDICTIONS
from ldm.checkpoint.tables import FAMILIES

VERSION = "0.30.0"  # of diffusers, whose configurations these are
# The classes of a folder's components, by library.
CLASSES: Mapping[str, Mapping[str, tuple[str | None, str | None]]] = {
    "ldm": {
        "vqvae": ("diffusers", "AutoencoderKL"),
        "bert": ("latent_diffusion", "LDMBertModel"),
        "tokenizer": ("transformers", "BertTokenizer"),
    },
    "sd": {
        "vae": ("diffusers", "AutoencoderKL"),
        "text_encoder": ("transformers", "CLIPTextModel"),
        "tokenizer": ("transformers", "CLIPTokenizer"),
        "safety_checker": (None, None),
        "feature_extractor": (None, None),
    },
    "sdxl": {
        "vae": ("diffusers", "AutoencoderKL"),
        "text_encoder": ("transformers", "CLIPTextModel"),
        "text_encoder_2": ("transformers", "CLIPTextModelWithProjection"),
        "tokenizer": ("transformers", "CLIPTokenizer"),
        "tokenizer_2": ("transformers", "CLIPTokenizer"),
    },
}


def model_index(family: str) -> dict[str, Any]:
    """Return `model_index.json` of a family's folder."""
    components = dict(CLASSES[family if family in CLASSES else "sd"])
    components |= {
        "unet": ("diffusers", "UNet2DConditionModel"),
        "scheduler": ("diffusers", "DDIMScheduler"),
    }
    more = {"requires_safety_checker": False} if "safety_checker" in components else {}
    if family == "sdxl":
        more = {"force_zeros_for_empty_prompt": True}
    return {
        "_class_name": FAMILIES[family].pipeline,
        "_diffusers_version": VERSION,
        **more,
        **{name: list(kind) for name, kind in components.items()},
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
    sizes = _vector(params["unet_config"]["params"], encoder) if family == "sdxl" else {}
    return {
        "unet": _unet(params["unet_config"]["params"], params["image_size"]) | sizes,
        FAMILIES[family].parts[1].component: _autoencoder(first_stage, params, family),
        "scheduler": _scheduler(params),
        **_encoders(family, encoder),
    }


def _unet(params: Mapping[str, Any], size: int) -> dict[str, Any]:
    widths = [params["model_channels"] * m for m in params["channel_mult"]]
    depth = params.get("transformer_depth", 1)
    depths = [depth] * len(widths) if isinstance(depth, int) else list(depth)
    resolutions = params["attention_resolutions"]
    attends = [2**i in resolutions and n > 0 for i, n in enumerate(depths)]
    channels = params.get("num_head_channels", -1)
    heads = params["num_heads"] if channels == -1 else [width // channels for width in widths]
    context = params["context_dim"]
    facts: dict[str, Any] = {
        "_class_name": "UNet2DConditionModel",
        "_diffusers_version": VERSION,
        "sample_size": size,
        "in_channels": params["in_channels"],
        "out_channels": params["out_channels"],
        "block_out_channels": widths,
        "layers_per_block": params["num_res_blocks"],
        "down_block_types": ["CrossAttnDownBlock2D" if a else "DownBlock2D" for a in attends],
        "up_block_types": ["CrossAttnUpBlock2D" if a else "UpBlock2D" for a in attends[::-1]],
        "cross_attention_dim": context if isinstance(context, int) else context[0],
        "attention_head_dim": heads,
        # A level without attention has no depth there; 1 stands for it.
        "transformer_layers_per_block": [n or 1 for n in depths],
        "use_linear_projection": bool(params.get("use_linear_in_transformer")),
        "norm_num_groups": params.get("num_groups", 32),
        "norm_eps": 1e-05,
        "act_fn": "silu",
        "flip_sin_to_cos": True,
        "freq_shift": 0,
        "downsample_padding": 1,
    }
    if len(set(facts["transformer_layers_per_block"])) == 1:
        facts["transformer_layers_per_block"] = depths[-1]
    return facts


def _vector(unet: Mapping[str, Any], encoder: Mapping[str, Any]) -> dict[str, Any]:
    """Return what SDXL's U-Net says about the vector of pooled text and sizes."""
    return {
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": encoder.get("size_width", 256),
        "projection_class_embeddings_input_dim": unet["adm_in_channels"],
    }


def _autoencoder(
    ddconfig: Mapping[str, Any], params: Mapping[str, Any], family: str
) -> dict[str, Any]:
    widths = [ddconfig["ch"] * m for m in ddconfig["ch_mult"]]
    return {
        "_class_name": "AutoencoderKL",
        "_diffusers_version": VERSION,
        "in_channels": ddconfig["in_channels"],
        "out_channels": ddconfig["out_ch"],
        "block_out_channels": widths,
        "down_block_types": ["DownEncoderBlock2D"] * len(widths),
        "up_block_types": ["UpDecoderBlock2D"] * len(widths),
        "layers_per_block": ddconfig["num_res_blocks"],
        "latent_channels": ddconfig["z_channels"],
        "norm_num_groups": ddconfig.get("num_groups", 32),
        "sample_size": ddconfig["resolution"],
        "scaling_factor": params["scale_factor"],
        "force_upcast": family == "sdxl",
        "act_fn": "silu",
    }


def _scheduler(params: Mapping[str, Any]) -> dict[str, Any]:
    betas = {ours: theirs for theirs, ours in BETAS.items()}
    predictions = {ours: theirs for theirs, ours in PREDICTIONS.items()}
    return {
        "_class_name": "DDIMScheduler",
        "_diffusers_version": VERSION,
        "beta_start": params["linear_start"],
        "beta_end": params["linear_end"],
        "beta_schedule": betas[params.get("beta_schedule", "linear")],
        "num_train_timesteps": params["timesteps"],
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
            "text_encoder": _clip(first, CLIP_L),
            "text_encoder_2": _clip(second, CLIP_BIG_G) | projecting,
        }
    found = _clip(params, CLIP_L if family == "sd1" else CLIP_H)
    if family != "sd1" and params.get("layer", "penultimate") == "penultimate":
        # The last block conditions nothing, and the folder leaves it out.
        found["num_hidden_layers"] -= 1
    return {"text_encoder": found}


def _bert(params: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "architectures": ["LDMBertModel"],
        "model_type": "ldmbert",
        "activation_function": "gelu",
        "d_model": params["n_embed"],
        "encoder_layers": params["n_layer"],
        "encoder_ffn_dim": 4 * params["n_embed"],
        "encoder_attention_heads": params.get("heads", 8),
        "head_dim": params.get("dim_head", 64),
        "vocab_size": params.get("vocab_size", 30522),
        "max_position_embeddings": params.get("max_seq_len", 77),
        "pad_token_id": 0,
        "dropout": 0.1,
        "scale_embedding": False,
    }


# Width, layers, heads and activation of the published text encoders.
CLIP_L, CLIP_H = (768, 12, 12, "quick_gelu"), (1024, 24, 16, "gelu")
CLIP_BIG_G = (1280, 32, 20, "gelu")


def _clip(params: Mapping[str, Any], published: tuple[int, int, int, str]) -> dict[str, Any]:
    names = ("width", "layers", "heads", "hidden_act")
    sizes: list[Any] = [params.get(n) or p for n, p in zip(names, published, strict=True)]
    width, layers, heads, act = sizes
    vocabulary = params.get("vocab_size", 49408)
    return {
        "architectures": ["CLIPTextModel"],
        "model_type": "clip_text_model",
        "hidden_act": act,
        "hidden_size": width,
        "intermediate_size": 4 * width,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "max_position_embeddings": params.get("max_length", 77),
        "vocab_size": vocabulary,
        "bos_token_id": vocabulary - 2,
        "eos_token_id": vocabulary - 1,
        "projection_dim": width,
        "layer_norm_eps": 1e-05,
    }
