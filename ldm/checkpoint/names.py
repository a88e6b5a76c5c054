"""What the names in a checkpoint say: which model it is, and how names drifted over the years.

The names themselves are a public contract; see `ldm.models.diffusion.ddpm`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

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
# The words come from embedding files, averaged copies from training, and losses are not drawn with.
OPTIONAL_PREFIXES = ("embedding_manager.", "model_ema.", "loss.", "first_stage_model.loss.")
# `to_logits` is never evaluated; only old versions of `transformers` store `position_ids`.
OPTIONAL_PARTS = (".to_logits.", ".position_ids")
# What tuning the networks leaves in a log folder, and its name in earlier versions.
DELTA_FILE, OLD_DELTA_FILE = "weight_delta.safetensors", "difference.safetensors"
OPTIONAL_ROOTS = (*SCHEDULE, "logvar", "lvlb_weights")

CLIP_ROOT = "cond_stage_model.transformer."


def is_optional(name: str) -> bool:
    """Tell whether a model works without this entry of its state dict in the file."""
    return (
        name in OPTIONAL_ROOTS
        or name.startswith(OPTIONAL_PREFIXES)
        or any(part in f".{name}" for part in OPTIONAL_PARTS)
    )


def canonical(name: str) -> str:
    """Reduce a name to what all versions of `transformers` share.

    Older ones nest the CLIP text encoder in `text_model`, the recent ones do not.
    """
    return name.replace(f"{CLIP_ROOT}text_model.", CLIP_ROOT)


def match_names(ours: Sequence[str], theirs: Sequence[str]) -> dict[str, str]:
    """Pair the entries of a file with a model's: {file's name: model's name}.

    A file of a whole diffusion model also serves its autoencoder alone.
    """
    wanted = {canonical(name): name for name in ours}
    prefix = "first_stage_model."
    whole_for_part = any(n.startswith(prefix) for n in theirs) and not any(
        n.startswith(prefix) for n in ours
    )
    pairs = {}
    for name in theirs:
        short = name.removeprefix(prefix) if whole_for_part else name
        if canonical(short) in wanted and (not whole_for_part or name.startswith(prefix)):
            pairs[name] = wanted[canonical(short)]
    return pairs


def describe(state: Mapping[str, Tensor]) -> str:
    """Say in a few words what kind of model a state dict belongs to."""
    names = list(state)

    def has(*prefixes: str) -> bool:
        return any(name.startswith(prefixes) for name in names)

    if has("conditioner.embedders."):
        return "Stable Diffusion XL (two text encoders)"
    if has("model.diffusion_model.double_blocks.", "double_blocks.", "model.diffusion_model.joint"):
        return "a transformer diffusion model (FLUX or Stable Diffusion 3)"
    if has("model.diffusion_model."):
        return _describe_diffusion(state)
    if has("lora_", "base_model.") or any(".lora_" in name for name in names):
        return "a LoRA, which changes a model but is none"
    if has("down_blocks.") and has("time_embedding."):
        return "a U-Net alone, in the names of diffusers"
    if has("text_model.", "transformer.text_model."):
        return "a CLIP text encoder alone"
    if has("embedding_manager."):
        return "a training checkpoint, which holds the learned word and not the model"
    if has("first_stage_model.", "encoder.", "decoder."):
        return "an autoencoder alone"
    if has("string_to_param", "emb_params") or _looks_like_words(state):
        return "an embedding file, which holds learned words and not a model"
    some = ", ".join(names[:3])
    return f"{len(names)} tensors of no known model (such as {some})" if names else "no tensors"


def _describe_diffusion(state: Mapping[str, Tensor]) -> str:
    unet = "model.diffusion_model."
    facts = []
    context = [t.shape[1] for n, t in state.items() if n.endswith(".attn2.to_k.weight")]
    first = state.get(f"{unet}input_blocks.0.0.weight")
    if context:
        facts.append(f"context {context[0]}")
    if first is not None:
        facts.append(f"U-Net width {first.shape[0]}")
        facts.append(f"{first.shape[1]} latent channels")
    kinds = {
        "cond_stage_model.transformer.attn_layers.": "latent diffusion with a BERT text encoder",
        "cond_stage_model.transformer.token_emb.": "latent diffusion with a BERT text encoder",
        "cond_stage_model.model.": "Stable Diffusion v2 (OpenCLIP text encoder)",
        CLIP_ROOT: "Stable Diffusion v1 (CLIP text encoder)",
        "cond_stage_model.embedding.": "class-conditional latent diffusion",
    }
    kind = "a diffusion model without text encoder"
    for prefix, text in kinds.items():
        if any(name.startswith(prefix) for name in state):
            kind = text
            break
    if not any(name.startswith("first_stage_model.") for name in state):
        facts.append("no autoencoder")
    return f"{kind}, {', '.join(facts)}" if facts else kind


def _looks_like_words(state: Mapping[str, Tensor]) -> bool:
    return 0 < len(state) <= 64 and all(t.ndim <= 2 for t in state.values())


def find_delta(folder: Path) -> Path:
    """Return the weight delta of a folder, under its old name if only that exists."""
    new, old = folder / DELTA_FILE, folder / OLD_DELTA_FILE
    return old if old.is_file() and not new.is_file() else new
