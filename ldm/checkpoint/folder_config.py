"""The sizes of a base in diffusers' folder format: its config.json files ↔ our configuration."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from ldm.checkpoint.folders import read_json
from ldm.checkpoint.tables import FAMILIES, INDEX
from ldm.resources import locate
from ldm.util import UserError, first_line

# Options that our U-Net has. A folder with other values is refused. A missing entry has this one.
UNET_FACTS: Mapping[str, Any] = {
    "act_fn": "silu",
    "flip_sin_to_cos": True,
    "freq_shift": 0,
    "center_input_sample": False,
    "dual_cross_attention": False,
    "only_cross_attention": False,
    "resnet_time_scale_shift": "default",
    "class_embed_type": None,
    "time_embedding_type": "positional",
    "conv_in_kernel": 3,
}
AUTOENCODER_FACTS: Mapping[str, Any] = {
    "act_fn": "silu",
    "shift_factor": None,
    "use_quant_conv": True,
    "use_post_quant_conv": True,
    "mid_block_add_attention": True,
}
CLIP_SIZES = (
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "vocab_size",
    "max_position_embeddings",
)
PREDICTIONS = {"epsilon": "eps", "v_prediction": "v", "sample": "x0"}
BETAS = {"scaled_linear": "linear", "linear": "sqrt_linear", "squaredcos_cap_v2": "cosine"}
# Components that only other kinds of models have, and what these are.
OTHERS = {
    "transformer": "a transformer diffusion model, such as Stable Diffusion 3 or FLUX",
    "prior": "a model of another kind",
    "controlnet": "a pipeline with a ControlNet",
    "movq": "Kandinsky",
}
UNSUPPORTED_CHANNELS = {
    9: "an inpainting model",
    8: "InstructPix2Pix",
    7: "an upscaler",
    5: "a depth model",
}
SUPPORTED = "supported are LDM-1.4B, Stable Diffusion 1 and 2, and SDXL base"


def shipped_config(family: str) -> DictConfig:
    """Return the configuration of a family's published model, without words to learn."""
    config = OmegaConf.load(locate(FAMILIES[family].inference))
    assert isinstance(config, DictConfig)
    config.model.params.pop("personalization_config", None)
    return config


def family_of_folder(folder: Path) -> str:
    """Return the family (a key of `FAMILIES`) of a diffusers folder.

    Raises UserError for one of no supported family; one line says what it is.
    """
    index = read_json(folder / INDEX) if (folder / INDEX).is_file() else {}
    for name, what in OTHERS.items():
        if name in index or (folder / name).is_dir():
            raise UserError(f"{folder}: {what} is not supported; {SUPPORTED}")
    facts = read_json(folder / "unet" / "config.json")
    channels = facts.get("in_channels", 4)
    pipeline = str(index.get("_class_name", ""))
    if channels in UNSUPPORTED_CHANNELS:
        what = UNSUPPORTED_CHANNELS[channels]
        raise UserError(f"{folder}: {what} ({channels} channels) is not supported; {SUPPORTED}")
    if (folder / "bert").is_dir() or "bert" in index:
        return "ldm"
    if facts.get("addition_embed_type") == "text_time":
        if not (folder / "text_encoder").is_dir() and "text_encoder" not in index:
            raise UserError(f"{folder}: the refiner of SDXL is not supported; {SUPPORTED}")
        return "sdxl"
    if "text_encoder" not in index and not (folder / "text_encoder").is_dir():
        what = f"a {pipeline}" if pipeline else "a model without text encoder"
        raise UserError(f"{folder}: {what} is not supported; {SUPPORTED}")
    # OpenCLIP's text encoder has GELU, CLIP's the quick approximation of it.
    act = read_json(folder / "text_encoder" / "config.json").get("hidden_act", "quick_gelu")
    if act == "quick_gelu":
        return "sd1"
    return "sd2-v" if _scheduler(folder).get("prediction_type") == "v_prediction" else "sd2"


def _scheduler(folder: Path) -> dict[str, Any]:
    return read_json(folder / "scheduler" / "scheduler_config.json")


def folder_config(folder: Path) -> tuple[str, DictConfig]:
    """Return the family of a diffusers folder and our configuration of its model.

    Raises UserError for a folder that lacks a component or a size, whose sizes make no model, or
    whose model is not supported.
    """
    try:
        return _folder_config(folder)
    except UserError:
        raise
    except (LookupError, TypeError, ValueError, ArithmeticError, OmegaConfBaseException) as error:
        raise UserError(
            f"{folder}: the sizes in its config.json files do not fit ({first_line(error)}): "
            "download them again"
        ) from error


def _folder_config(folder: Path) -> tuple[str, DictConfig]:
    name = family_of_folder(folder)
    family = FAMILIES[name]
    for component in (*(part.component for part in family.parts), *family.tokenizers, "scheduler"):
        if not (folder / component).is_dir():
            raise UserError(
                f"{folder} is {family.title}, but lacks the component {component}/: "
                "download the whole folder"
            )
    config = shipped_config(name)
    params = config.model.params
    unet, scheduler = read_json(folder / "unet" / "config.json"), _scheduler(folder)
    autoencoder = read_json(folder / family.parts[1].component / "config.json")
    _check(folder / "unet", unet, UNET_FACTS)
    _check(folder / family.parts[1].component, autoencoder, AUTOENCODER_FACTS)
    params.update(_diffusion_params(unet, autoencoder, scheduler, folder))
    params.unet_config.params.update(_unet_params(folder, unet))
    first_stage = params.first_stage_config.params
    first_stage.embed_dim = autoencoder.get("latent_channels", 4)
    first_stage.ddconfig.update(
        _autoencoder_params(folder / family.parts[1].component, autoencoder)
    )
    _set_encoders(params.cond_stage_config, folder, name)
    return name, config


def _check(folder: Path, facts: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    for name, value in wanted.items():
        if facts.get(name, value) != value:
            raise UserError(f"{folder}/config.json: {name} {facts[name]!r} is not supported")


def _diffusion_params(
    unet: Mapping[str, Any],
    autoencoder: Mapping[str, Any],
    scheduler: Mapping[str, Any],
    folder: Path,
) -> dict[str, Any]:
    """Return params of `LatentDiffusion`; values that the folder leaves open are left out."""
    if autoencoder.get("_class_name", "AutoencoderKL") != "AutoencoderKL":
        what = autoencoder["_class_name"]
        raise UserError(f"{folder}: the autoencoder {what} is not supported, only AutoencoderKL")
    if scheduler.get("rescale_betas_zero_snr"):
        raise UserError(f"{folder}: a schedule with rescale_betas_zero_snr is not supported")
    params: dict[str, Any] = {"channels": unet.get("in_channels", 4)}
    known = {
        "image_size": unet.get("sample_size"),
        "scale_factor": autoencoder.get("scaling_factor"),
        "timesteps": scheduler.get("num_train_timesteps"),
        "linear_start": scheduler.get("beta_start"),
        "linear_end": scheduler.get("beta_end"),
        "parameterization": _translate(folder, scheduler, "prediction_type", PREDICTIONS),
        "beta_schedule": _translate(folder, scheduler, "beta_schedule", BETAS),
    }
    return params | {name: value for name, value in known.items() if value is not None}


def _translate(
    folder: Path, facts: Mapping[str, Any], key: str, table: Mapping[str, str]
) -> str | None:
    value = facts.get(key)
    if value is not None and value not in table:
        raise UserError(f"{folder}: the scheduler's {key} {value!r} is not supported")
    return None if value is None else table[value]


def _unet_params(folder: Path, facts: Mapping[str, Any]) -> dict[str, Any]:
    """Return params of `UNetModel`."""
    for key in ("block_out_channels", "down_block_types", "cross_attention_dim"):
        _require(folder / "unet", facts, key)
    widths = list(facts["block_out_channels"])
    attends = ["Attn" in kind for kind in facts["down_block_types"]]
    depth = facts.get("transformer_layers_per_block", 1)
    heads = facts.get("num_attention_heads") or facts.get("attention_head_dim", 8)
    params = {
        "image_size": facts.get("sample_size"),
        "in_channels": facts.get("in_channels", 4),
        "out_channels": facts.get("out_channels", 4),
        "model_channels": widths[0],
        "channel_mult": [width // widths[0] for width in widths],
        "num_res_blocks": facts.get("layers_per_block", 2),
        "attention_resolutions": [2**i for i, attention in enumerate(attends) if attention],
        "context_dim": facts["cross_attention_dim"],
        "transformer_depth": depth if isinstance(depth, int) else list(depth),
        "use_linear_in_transformer": bool(facts.get("use_linear_projection")),
        "num_groups": facts.get("norm_num_groups", 32),
        "num_heads": heads if isinstance(heads, int) else -1,
        "num_head_channels": -1,
    }
    if not isinstance(heads, int):  # diffusers' attention_head_dim is the number of heads
        sizes = {width // number for width, number in zip(widths, heads, strict=True)}
        if len(sizes) != 1:
            raise UserError(f"{folder}: heads of several sizes {sorted(sizes)} are not supported")
        params["num_head_channels"] = sizes.pop()
    if facts.get("addition_embed_type") == "text_time":
        _require(folder / "unet", facts, "projection_class_embeddings_input_dim")
        params["adm_in_channels"] = facts["projection_class_embeddings_input_dim"]
    if any(width % widths[0] for width in widths):
        raise UserError(f"{folder}: block_out_channels {widths} must be multiples of the first")
    return params


def _require(component: Path, facts: Mapping[str, Any], key: str) -> None:
    if key not in facts:
        raise UserError(f"{component}/config.json lacks {key}: download it again")


def _autoencoder_params(component: Path, facts: Mapping[str, Any]) -> dict[str, Any]:
    """Return the autoencoder's `ddconfig`."""
    _require(component, facts, "block_out_channels")
    widths = list(facts["block_out_channels"])
    return {
        "z_channels": facts.get("latent_channels", 4),
        "resolution": facts.get("sample_size", 256),
        "in_channels": facts.get("in_channels", 3),
        "out_ch": facts.get("out_channels", 3),
        "ch": widths[0],
        "ch_mult": [width // widths[0] for width in widths],
        "num_res_blocks": facts.get("layers_per_block", 1),
        "num_groups": facts.get("norm_num_groups", 32),
    }


def _bert_params(facts: Mapping[str, Any]) -> dict[str, Any]:
    """Return params of `BERTEmbedder` from those of `LDMBertModel`."""
    return {
        "n_embed": facts.get("d_model", 1280),
        "n_layer": facts.get("encoder_layers", 32),
        "heads": facts.get("encoder_attention_heads", 8),
        "dim_head": facts.get("head_dim", 64),
        "vocab_size": facts.get("vocab_size", 30522),
        "max_seq_len": facts.get("max_position_embeddings", 77),
    }


def _clip_params(folder: Path) -> dict[str, Any]:
    """Return the sizes of a CLIP text encoder from those of `CLIPTextModel`."""
    facts = read_json(folder / "config.json")
    for key in CLIP_SIZES:
        value = facts.get(key, 1)
        if type(value) is not int or value < 1:
            raise UserError(f"{folder}/config.json: {key} must be a number above 0, got {value!r}")
    width = facts.get("hidden_size", 768)
    if facts.get("intermediate_size", 4 * width) != 4 * width:
        raise UserError(f"{folder}: intermediate_size must be 4 times hidden_size {width}")
    return {
        "width": width,
        "layers": facts.get("num_hidden_layers", 12),
        "heads": facts.get("num_attention_heads", 12),
        "vocab_size": facts.get("vocab_size", 49408),
        "max_length": facts.get("max_position_embeddings", 77),
    }


def _vocabulary(folder: Path) -> Mapping[str, Any]:
    """Return the entries of a CLIP tokenizer's folder, text → id, in either form of its files."""
    if (folder / "vocab.json").is_file():
        return read_json(folder / "vocab.json")
    model = read_json(folder / "tokenizer.json").get("model")
    found = model.get("vocab") if isinstance(model, Mapping) else None
    if not isinstance(found, Mapping):
        raise UserError(f"{folder}/tokenizer.json has no vocabulary: download it again")
    return found


def _check_one_vocabulary(folder: Path) -> None:
    """Raise UserError where the two tokenizers of SDXL differ: one serves both text encoders."""
    first, second = (_vocabulary(folder / name) for name in FAMILIES["sdxl"].tokenizers)
    if first != second:
        raise UserError(
            f"{folder}: tokenizer and tokenizer_2 have different vocabularies "
            f"({len(first)} and {len(second)} entries): download the folder again"
        )


def _set_encoders(config: DictConfig, folder: Path, name: str) -> None:
    """Set the sizes and the vocabulary of the text encoder, in place."""
    params: dict[str, Any] = {"tokenizer": str((folder / "tokenizer").absolute())}
    if name == "ldm":
        params |= _bert_params(read_json(folder / "bert" / "config.json"))
    elif name == "sdxl":
        _check_one_vocabulary(folder)
        for part, place in (("clip_l", "text_encoder"), ("clip_g", "text_encoder_2")):
            params[part] = {**config.params[part], "params": _clip_params(folder / place)}
        width = read_json(folder / "unet" / "config.json").get("addition_time_embed_dim")
        params["size_width"] = width or 256
    else:
        params |= _clip_params(folder / "text_encoder")
    if name.startswith("sd2"):
        # The folder leaves out the last block, which conditions nothing.
        params["layer"] = "last"
    config.params = {**(config.get("params") or {}), **params}
