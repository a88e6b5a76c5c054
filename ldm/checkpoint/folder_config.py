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
from ldm.util import UserError, told

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
PREDICTIONS = {"epsilon": "eps", "v_prediction": "v", "sample": "x0"}
BETAS = {"scaled_linear": "linear", "linear": "sqrt_linear", "squaredcos_cap_v2": "cosine"}

# Sizes: the name in a config.json → our name, and the value of an entry that is left out.
Sizes = Mapping[str, tuple[str, Any]]
UNET: Sizes = {
    "sample_size": ("image_size", None),
    "in_channels": ("in_channels", 4),
    "out_channels": ("out_channels", 4),
    "layers_per_block": ("num_res_blocks", 2),
    "cross_attention_dim": ("context_dim", None),
    "use_linear_projection": ("use_linear_in_transformer", False),
    "norm_num_groups": ("num_groups", 32),
}
AUTOENCODER: Sizes = {
    "in_channels": ("in_channels", 3),
    "out_channels": ("out_ch", 3),
    "layers_per_block": ("num_res_blocks", 1),
    "latent_channels": ("z_channels", 4),
    "norm_num_groups": ("num_groups", 32),
    "sample_size": ("resolution", 256),
}
BERT: Sizes = {
    "d_model": ("n_embed", 1280),
    "encoder_layers": ("n_layer", 32),
    "encoder_attention_heads": ("heads", 8),
    "head_dim": ("dim_head", 64),
    "vocab_size": ("vocab_size", 30522),
    "max_position_embeddings": ("max_seq_len", 77),
}
CLIP: Sizes = {
    "hidden_size": ("width", 768),
    "num_hidden_layers": ("layers", 12),
    "num_attention_heads": ("heads", 12),
    "vocab_size": ("vocab_size", 49408),
    "max_position_embeddings": ("max_length", 77),
}
SCHEDULER: Sizes = {
    "num_train_timesteps": ("timesteps", None),
    "beta_start": ("linear_start", None),
    "beta_end": ("linear_end", None),
}


def ours(sizes: Sizes, facts: Mapping[str, Any]) -> dict[str, Any]:
    """Return the parameters that a config.json gives."""
    return {own: facts.get(theirs, default) for theirs, (own, default) in sizes.items()}


def theirs(sizes: Sizes, params: Mapping[str, Any]) -> dict[str, Any]:
    """Return the entries of a config.json that parameters give."""
    return {theirs: params.get(own, default) for theirs, (own, default) in sizes.items()}


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

    def has(component: str) -> bool:
        return component in index or (folder / component).is_dir()

    def refusal(what: str) -> UserError:
        return UserError(f"{folder}: {what} is not supported; {SUPPORTED}")

    for name, what in OTHERS.items():
        if has(name):
            raise refusal(what)
    facts = read_json(folder / "unet" / "config.json")
    channels, is_xl = facts.get("in_channels", 4), facts.get("addition_embed_type") == "text_time"
    if channels in UNSUPPORTED_CHANNELS:
        raise refusal(f"{UNSUPPORTED_CHANNELS[channels]} ({channels} channels)")
    if has("bert"):
        return "ldm"
    if not has("text_encoder"):
        pipeline = index.get("_class_name")
        other = f"a {pipeline}" if pipeline else "a model without text encoder"
        raise refusal("the refiner of SDXL" if is_xl else other)
    if is_xl:
        return "sdxl"
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
    fault, remedy = "the sizes in its config.json files do not fit", "): download them again"
    kinds = (LookupError, TypeError, ValueError, ArithmeticError, OmegaConfBaseException)
    with told(f"{folder}: {fault} (", *kinds, after=remedy):
        return _folder_config(folder)


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
    params, first_stage = config.model.params, config.model.params.first_stage_config.params
    place = folder / family.parts[1].component
    unet, autoencoder = _read(folder / "unet", UNET_FACTS), _read(place, AUTOENCODER_FACTS)
    params.update(_diffusion_params(unet, autoencoder, folder))
    params.unet_config.params.update(_unet_params(folder, unet))
    first_stage.embed_dim = autoencoder.get("latent_channels", 4)
    _require(place, autoencoder, "block_out_channels")
    width, multiples = _widths(autoencoder)
    first_stage.ddconfig.update(ours(AUTOENCODER, autoencoder), ch=width, ch_mult=multiples)
    _set_encoders(params.cond_stage_config, folder, name)
    return name, config


def _read(component: Path, supported: Mapping[str, Any]) -> dict[str, Any]:
    """Read a component's config.json; UserError if it has other values than those supported."""
    facts = read_json(component / "config.json")
    for name, value in supported.items():
        if facts.get(name, value) != value:
            raise UserError(f"{component}/config.json: {name} {facts[name]!r} is not supported")
    return facts


def _require(component: Path, facts: Mapping[str, Any], *keys: str) -> None:
    for key in keys:
        if key not in facts:
            raise UserError(f"{component}/config.json lacks {key}: download it again")


def _widths(facts: Mapping[str, Any]) -> tuple[int, list[int]]:
    """Return the first width of a network, and the multiples of it that its levels have."""
    widths = list(facts["block_out_channels"])
    return widths[0], [width // widths[0] for width in widths]


def _diffusion_params(
    unet: Mapping[str, Any], autoencoder: Mapping[str, Any], folder: Path
) -> dict[str, Any]:
    """Return params of `LatentDiffusion`; values that the folder leaves open are left out."""
    scheduler = _scheduler(folder)
    if (what := autoencoder.get("_class_name", "AutoencoderKL")) != "AutoencoderKL":
        raise UserError(f"{folder}: the autoencoder {what} is not supported, only AutoencoderKL")
    if scheduler.get("rescale_betas_zero_snr"):
        raise UserError(f"{folder}: a schedule with rescale_betas_zero_snr is not supported")
    known = ours(SCHEDULER, scheduler) | {
        "channels": unet.get("in_channels", 4),
        "image_size": unet.get("sample_size"),
        "scale_factor": autoencoder.get("scaling_factor"),
    }
    for key, own, table in (
        ("prediction_type", "parameterization", PREDICTIONS),
        ("beta_schedule", "beta_schedule", BETAS),
    ):
        value: Any = scheduler.get(key)
        if value is not None and value not in table:
            raise UserError(f"{folder}: the scheduler's {key} {value!r} is not supported")
        known[own] = table.get(value)
    return {name: value for name, value in known.items() if value is not None}


def _unet_params(folder: Path, facts: Mapping[str, Any]) -> dict[str, Any]:
    """Return params of `UNetModel`."""
    place, needed = folder / "unet", ("block_out_channels", "down_block_types")
    _require(place, facts, *needed, "cross_attention_dim")
    width, multiples = _widths(facts)
    widths, kinds = list(facts["block_out_channels"]), facts["down_block_types"]
    depth = facts.get("transformer_layers_per_block", 1)
    heads = facts.get("num_attention_heads") or facts.get("attention_head_dim", 8)
    params = ours(UNET, facts) | {
        "model_channels": width,
        "channel_mult": multiples,
        "attention_resolutions": [2**i for i, kind in enumerate(kinds) if "Attn" in kind],
        "transformer_depth": depth if isinstance(depth, int) else list(depth),
        "num_heads": heads if isinstance(heads, int) else -1,
        "num_head_channels": -1,
    }
    if not isinstance(heads, int):  # diffusers' attention_head_dim is the number of heads
        sizes = {width // number for width, number in zip(widths, heads, strict=True)}
        if len(sizes) != 1:
            raise UserError(f"{folder}: heads of several sizes {sorted(sizes)} are not supported")
        params["num_head_channels"] = sizes.pop()
    if facts.get("addition_embed_type") == "text_time":
        _require(place, facts, "projection_class_embeddings_input_dim")
        params["adm_in_channels"] = facts["projection_class_embeddings_input_dim"]
    if any(each % width for each in widths):
        raise UserError(f"{folder}: block_out_channels {widths} must be multiples of the first")
    return params


def _clip_params(folder: Path) -> dict[str, Any]:
    """Return the sizes of a CLIP text encoder from those of `CLIPTextModel`."""
    facts = read_json(folder / "config.json")
    for key in CLIP:
        value = facts.get(key, 1)
        if type(value) is not int or value < 1:
            raise UserError(f"{folder}/config.json: {key} must be a number above 0, got {value!r}")
    params = ours(CLIP, facts)
    width = params["width"]
    if facts.get("intermediate_size", 4 * width) != 4 * width:
        raise UserError(f"{folder}: intermediate_size must be 4 times hidden_size {width}")
    return params


def _vocabulary(folder: Path) -> Mapping[str, Any]:
    """Return the entries of a CLIP tokenizer's folder, text → id, in either form of its files."""
    if (folder / "vocab.json").is_file():
        return read_json(folder / "vocab.json")
    model = read_json(folder / "tokenizer.json").get("model")
    found = model.get("vocab") if isinstance(model, Mapping) else None
    if not isinstance(found, Mapping):
        raise UserError(f"{folder}/tokenizer.json has no vocabulary: download it again")
    return found


def _set_encoders(config: DictConfig, folder: Path, name: str) -> None:
    """Set the sizes and the vocabulary of the text encoder, in place."""
    params: dict[str, Any] = {"tokenizer": str((folder / "tokenizer").absolute())}
    if name == "ldm":
        params |= ours(BERT, read_json(folder / "bert" / "config.json"))
    elif name == "sdxl":
        # One vocabulary serves both text encoders.
        first, second = (_vocabulary(folder / place) for place in FAMILIES["sdxl"].tokenizers)
        if first != second:
            raise UserError(
                f"{folder}: tokenizer and tokenizer_2 have different vocabularies "
                f"({len(first)} and {len(second)} entries): download the folder again"
            )
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
