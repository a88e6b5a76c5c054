"""The names in a checkpoint: which model they belong to, and the spellings of several versions.

The names themselves are a public contract; see `ldm.models.diffusion.ddpm`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ldm.checkpoint.tables import AUTOENCODER_PREFIX, UNET_PREFIX, text_encoder

if TYPE_CHECKING:
    from torch import Tensor, nn

# Root entries that are computed from the configuration, so a file may lack them.
SCHEDULE = (
    "betas",
    "alphas_cumprod",
    "alphas_cumprod_prev",
    "sqrt_alphas_cumprod",
    "sqrt_one_minus_alphas_cumprod",
    "log_one_minus_alphas_cumprod",
    "sqrt_recip_alphas_cumprod",
    "sqrt_recipm1_alphas_cumprod",
    "posterior_variance",
    "posterior_log_variance_clipped",
    "posterior_mean_coef1",
    "posterior_mean_coef2",
)
# Words come from embedding files, averaged copies from training; losses do not generate.
OPTIONAL_PREFIXES = ("embedding_manager.", "model_ema.", "loss.", "first_stage_model.loss.")
# `to_logits` and CLIP's logit scale are never evaluated, nor is the projection of Stable Diffusion
# 2; only old versions of `transformers` store `position_ids`.
OPTIONAL_PARTS = (
    *(".to_logits.", ".position_ids", ".logit_scale"),
    ".cond_stage_model.model.text_projection",
)
# The weight delta's file in a log folder, and its name in earlier versions.
DELTA_FILE, OLD_DELTA_FILE = "weight_delta.safetensors", "difference.safetensors"
OPTIONAL_ROOTS = (*SCHEDULE, "logvar", "lvlb_weights")

# Our names of text encoders → the published ones: SDXL's two have another root, and CLIP's have a
# level that recent versions of `transformers` do not store.
PUBLISHED = (
    (re.compile(r"^cond_stage_model\.embedders\."), "conditioner.embedders."),
    (
        re.compile(
            r"^((?:cond_stage_model|conditioner\.embedders\.0)\.transformer\.)"
            r"(?=embeddings\.|encoder\.|final_layer_norm\.)"
        ),
        r"\1text_model.",
    ),
)
# diffusers' script that writes Stable Diffusion 2 as one file gives its text encoder other names.
SCRIPTED = tuple(
    (f"cond_stage_model.model.{ours}", f"cond_stage_model.model.{theirs}")
    for ours, theirs in (
        ("transformer.resblocks.", "resblocks."),
        ("positional_embedding", "text_model.embeddings.position_embedding.weight"),
        ("token_embedding.", "text_model.embeddings.token_embedding."),
        ("ln_final.", "text_model.final_layer_norm."),
    )
)


def is_optional(name: str) -> bool:
    """Tell whether a model works without this entry of its state dict in the file."""
    return (
        name in OPTIONAL_ROOTS
        or name.startswith(OPTIONAL_PREFIXES)
        or any(part in f".{name}" for part in OPTIONAL_PARTS)
    )


def published_name(name: str) -> str:
    """Return the published file's name of an entry of our state dict."""
    for pattern, root in PUBLISHED:
        name = pattern.sub(root, name)
    return name


def published_names(model: nn.Module) -> dict[str, Tensor]:
    """Return a model's entries under the published file's names.

    The text encoder of Stable Diffusion 2 gets the names of diffusers' conversion script. Files of
    Stability AI have OpenCLIP's names, as `published_name` gives them. The loader reads both.
    """
    found = {}
    for name, value in model.state_dict().items():
        name = published_name(name)
        for ours, theirs in SCRIPTED:
            name = theirs + name.removeprefix(ours) if name.startswith(ours) else name
        found[name] = value
    return found


def canonical(name: str) -> str:
    """Return the common form of all spellings of a name.

    Older versions of `transformers` nest the CLIP text encoder in `text_model`, the recent ones do
    not. `SCRIPTED` has the other spellings.
    """
    name = published_name(name).replace(".transformer.text_model.", ".transformer.")
    for ours, theirs in SCRIPTED:
        if name.startswith(theirs):
            return ours + name.removeprefix(theirs)
    return name


def match_names(ours: Sequence[str], theirs: Sequence[str]) -> dict[str, str]:
    """Pair the entries of a file with a model's: {file's name: model's name}.

    A file of a whole diffusion model also serves its autoencoder alone.
    """
    wanted = {canonical(name): name for name in ours}
    whole, ours_whole = (any(n.startswith(AUTOENCODER_PREFIX) for n in ns) for ns in (theirs, ours))
    prefix = AUTOENCODER_PREFIX if whole and not ours_whole else ""
    pairs = {n: canonical(n.removeprefix(prefix)) for n in theirs if n.startswith(prefix)}
    return {name: wanted[short] for name, short in pairs.items() if short in wanted}


def strangers(theirs: Iterable[str], pairs: Mapping[str, str]) -> list[str]:
    """Return the entries of a file's U-Net that the model lacks: another kind of model has them.

    Without them the model would generate, but other images than it was made for. `pairs` are as
    `match_names` returns them; a model without U-Net, such as an autoencoder, lacks nothing.
    """
    if not any(name.startswith(UNET_PREFIX) for name in pairs):
        return []
    return [name for name in theirs if name.startswith(UNET_PREFIX) and name not in pairs]


def of_another_model(strange: Sequence[str]) -> str:
    """Say what `strangers` found, as the end of a sentence about the file."""
    return (
        f"but its U-Net has {len(strange)} more weights, such as {strange[0]}: another kind of "
        "model, which is not supported"
    )


# A pattern that one of the names fits → what the file is; the first that fits decides.
KINDS = (
    (r"(double|joint)_blocks\.", "a transformer diffusion model (FLUX or SD 3)"),
    (r"lora_|\.lora|base_model\.model\.", "a LoRA, which changes a model but is none"),
    (r"control_model\.|controlnet_|input_hint_block\.", "a ControlNet, which steers a model"),
    (r"ip_adapter\.|image_proj\.", "an IP-Adapter, which steers a model"),
    (r"time_stack\.|motion_modules\.", "a model of videos, or its motion module"),
    (rf"^{UNET_PREFIX}", ""),
    (r"(^|\.)time_embedding\.", "a U-Net alone, in the names of diffusers"),
    (r"(^|\.)(time_embed|input_blocks)\.", "a U-Net alone"),
    (r"(^|\.)(embed_tokens|SelfAttention)\.", "a text encoder alone"),
    (r"(^|\.)(text_model|token_embedding|resblocks|self_attn)\.", "a CLIP text encoder alone"),
    (
        r"(^|\.)embedding_manager\.",
        "a training checkpoint, which holds the learned word and not a model",
    ),
    (r"(^|\.)(first_stage_model|encoder|decoder|quant_conv)\.", "an autoencoder alone"),
)


def describe(state: Mapping[str, Tensor]) -> str:
    """Say in a few words what kind of model a state dict belongs to."""
    names = list(state)
    for pattern, what in KINDS:
        if any(re.search(pattern, name) for name in names):
            return what or _describe_diffusion(state)
    if {"string_to_param", "emb_params"} & set(names) or _looks_like_words(state):
        return "an embedding file, which holds learned words and not a model"
    some = ", ".join(names[:3])
    return f"{len(names)} tensors of no known model (such as {some})" if names else "no tensors"


# Input channels of the U-Net that tell of another use than text to image.
OTHER_USES = {9: "inpainting", 8: "InstructPix2Pix", 7: "upscaling", 5: "depth to image"}


def _describe_diffusion(state: Mapping[str, Tensor]) -> str:
    facts, kind = [], text_encoder(state)[1]
    context = [t.shape[1] for n, t in state.items() if n.endswith(".attn2.to_k.weight")]
    first = state.get(f"{UNET_PREFIX}input_blocks.0.0.weight")
    if context:
        facts.append(f"context {context[0]}")
    if first is not None:
        facts.append(f"U-Net width {first.shape[0]}")
        facts.append(f"{first.shape[1]} latent channels")
        if first.shape[1] in OTHER_USES:
            kind = f"{OTHER_USES[first.shape[1]]} with {kind}"
    if not any(name.startswith(AUTOENCODER_PREFIX) for name in state):
        facts.append("no autoencoder")
    return f"{kind}, {', '.join(facts)}" if facts else kind


def _looks_like_words(state: Mapping[str, Tensor]) -> bool:
    networks = any(name.endswith((".weight", ".bias")) for name in state)
    return 0 < len(state) <= 64 and not networks and all(t.ndim <= 2 for t in state.values())


def find_delta(folder: Path) -> Path:
    """Return the weight delta of a folder, under its old name if only that exists."""
    new, old = folder / DELTA_FILE, folder / OLD_DELTA_FILE
    return old if old.is_file() and not new.is_file() else new
