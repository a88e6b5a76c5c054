"""The precision of a run: the type of frozen networks, and Lightning's own setting.

`--precision bf16` and `fp16` cast frozen networks once, while they are loaded. Words, their
optimizer, the loss and the noise schedule stay in float32. Lightning's mixed precision would cast
each weight again at each use, and keep it in float32 too.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import nn

from ldm.util import UserError

if TYPE_CHECKING:
    from ldm.training.config import RunConfig

CAST = {"bf16": torch.bfloat16, "fp16": torch.float16}
# Lightning's settings for networks that are trained: these stay in float32.
MIXED = {"bf16": "bf16-mixed", "fp16": "16-mixed"}
# Below this many weights, casts cost as much time as half precision saves.
LARGE = 100_000_000


@dataclass(frozen=True)
class Precision:
    """How a run computes: type of the frozen networks' weights, and Lightning's setting.

    None leaves float32, and Lightning's default, which is float32 too.
    """

    weights: torch.dtype | None
    trainer: str | int | None


def choose(config: RunConfig, device: str) -> Precision:
    """Return the precision that `lightning.trainer.precision` leads to; UserError if there is none.

    `auto` is bf16 where the device has it and, on a CPU, the base has over 100 million weights;
    float32 elsewhere.
    """
    wanted = config.trainer.get("precision")
    if wanted == "auto":
        wanted = (
            "bf16" if has_bf16(device) and (device != "cpu" or _is_large(config)) else "32-true"
        )
    if wanted not in CAST:
        return Precision(None, wanted)
    if wanted == "fp16" and device == "cpu":
        raise UserError("--precision fp16 needs a GPU: use bf16 or 32 on a CPU")
    if wanted == "bf16" and device.startswith("cuda") and not has_bf16(device):
        raise UserError(f"--precision bf16: {device} computes no bfloat16: use fp16 or 32")
    params = config.model.params
    if params.get("unfreeze_model") or not params.get("personalization_config"):
        return Precision(None, MIXED[wanted])
    # Gradients of float16 need Lightning's loss scaling, which comes with its mixed precision.
    return Precision(CAST[wanted], "16-mixed" if wanted == "fp16" else "32-true")


def has_bf16(device: str) -> bool:
    """Tell whether a device has instructions for bfloat16, rather than emulating it."""
    if device.startswith("cuda"):
        return torch.cuda.get_device_capability(device) >= (8, 0)
    return device == "cpu" and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def _is_large(config: RunConfig) -> bool:
    """Tell by the size of the base's file whether it has over `LARGE` weights of float32."""
    base = config.run.base_checkpoint
    return base is not None and Path(base).is_file() and Path(base).stat().st_size > 4 * LARGE


def cast_networks(model: nn.Module, weights: torch.dtype) -> None:
    """Cast the networks of a model without a base, which `load_model` has not cast.

    In float16 the autoencoder computes in float32: SDXL's overflows otherwise, and its latents are
    encoded once a run.
    """
    for name, weight in model.named_parameters():
        if not name.startswith("embedding_manager."):
            weight.data = weight.data.to(weights)
    if weights == torch.float16:
        model.get_submodule("first_stage_model").float()


def remark(model: nn.Module, precision: Precision, device: str) -> str | None:
    """Return a line about the effect of the other precision; None if there is no choice."""
    frozen = [p.numel() for p in model.parameters() if not p.requires_grad]
    saved = f"{2 * sum(frozen) / 1e9:.1f} GB"
    if precision.weights is not None:
        name = str(precision.weights).removeprefix("torch.")
        slow = "" if has_bf16(device) or device != "cpu" else " (this CPU emulates it, slowly)"
        return (
            f"frozen networks in {name}{slow}, words in float32; --precision 32 would need {saved} "
            "more memory, and rounds less"
        )
    if precision.trainer not in (None, 32, "32", "32-true") or sum(frozen) < LARGE:
        return None
    if not (has_bf16(device) or device.startswith("cuda")):
        return None
    name = "bf16" if has_bf16(device) else "fp16"
    return (
        f"networks in float32; --precision {name} would need {saved} less memory and less time a "
        "step (docs/performance.md)"
    )
