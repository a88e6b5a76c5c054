"""The precision and the memory of a run: the type of frozen networks, and whether a step fits.

`--precision bf16` and `fp16` cast frozen networks once, while they are loaded. Words, their
optimizer, the loss and the noise schedule stay in float32. Lightning's mixed precision would cast
each weight again at each use, and keep it in float32 too.
"""

from __future__ import annotations

import logging
import re
import resource
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor, nn

from ldm.models.diffusion.ddpm import LatentDiffusion
from ldm.modules.encoders.modules import TextEncoder
from ldm.training.config import RunConfig
from ldm.util import UserError

log = logging.getLogger(__name__)

CAST = {"bf16": torch.bfloat16, "fp16": torch.float16}
# Lightning's settings for networks that are trained: these stay in float32.
MIXED = {"bf16": "bf16-mixed", "fp16": "16-mixed"}
# Below this many weights, casts cost as much time as half precision saves.
LARGE = 100_000_000
# Further memory of a step, as a share of what the backward pass needs.
WORK_SPACE = 0.3
# Share of the free memory that a run may fill.
USABLE = 0.85


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
        file = Path(config.run.base_checkpoint or "")  # four bytes for each weight
        large = device != "cpu" or (file.is_file() and file.stat().st_size > 4 * LARGE)
        wanted = "bf16" if has_bf16(device) and large else "32-true"
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


def kept_bytes(network: nn.Module, *inputs: Any, **named: Any) -> int:
    """Return the bytes that the backward pass of a call needs beside the weights.

    The call runs on torch's meta device, so it computes nothing and takes no memory.
    """
    own = [*network.named_parameters(), *network.named_buffers()]
    weights = {name: torch.empty_like(tensor, device="meta") for name, tensor in own}
    kept: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage()._cdata] = tensor
        return tensor

    with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
        torch.func.functional_call(network, weights, inputs, named)
    for weight in weights.values():
        kept.pop(weight.untyped_storage()._cdata, None)
    return sum(tensor.untyped_storage().nbytes() for tensor in kept.values())


def activation_bytes(model: LatentDiffusion, images: int) -> int:
    """Return the bytes of the activations of a training step: U-Net and text encoder."""
    network, encoder = model.model.diffusion_model, model.cond_stage_model
    height, width = model.latent_size
    meta: dict[str, Any] = {"device": "meta", "dtype": next(network.parameters()).dtype}
    named: dict[str, Tensor] = {}
    if network.context_dim is not None:
        shape = images, getattr(encoder, "max_length", 77), network.context_dim
        named["context"] = torch.empty(shape, **meta, requires_grad=True)
    if network.num_classes == "sequential":
        named["y"] = torch.empty(images, network.label_emb[0][0].in_features, **meta)
    x = torch.empty(images, network.in_channels, height, width, **meta)
    x.requires_grad_(model.trains_model)
    total = kept_bytes(network, x, torch.empty(images, device="meta"), **named)
    if isinstance(encoder, TextEncoder) and model.embedding_manager is not None:
        ids = torch.zeros(images, encoder.max_length, dtype=torch.int64, device="meta")
        total += kept_bytes(encoder, ids, lambda _, vectors: vectors.requires_grad_())
    return total


def peak_bytes(device: str) -> int:
    """Return the most memory of this process so far: the GPU's, or the resident memory."""
    if device.startswith("cuda"):
        return torch.cuda.max_memory_allocated(device)
    status = Path("/proc/self/status")
    if status.is_file():  # the number of getrusage may be that of the process that started this one
        found = re.search(r"VmHWM:\s*(\d+) kB", status.read_text(encoding="ascii"))
        if found:
            return 1024 * int(found[1])
    unit = 1 if sys.platform == "darwin" else 1024
    return unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def free_bytes(device: str) -> int | None:
    """Return the free memory of a device in bytes; None if it is not known."""
    if device.startswith("cuda"):
        return int(torch.cuda.mem_get_info(device)[0])
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        kib = {name: value.split()[0] for name, _, value in (line.partition(":") for line in lines)}
        free = 1024 * int(kib["MemAvailable"])
    except (OSError, KeyError, ValueError):
        return None
    try:
        limit, used = (
            int(Path(f"/sys/fs/cgroup/memory.{n}").read_text()) for n in ("max", "current")
        )
    except (OSError, ValueError):  # no container, or one without a limit
        return free
    return min(free, limit - used)


def weight_bytes(model: nn.Module) -> int:
    """Return the bytes of a model's weights, and of gradients and optimizer of trained ones."""
    return sum(p.nbytes * (4 if p.requires_grad else 1) for p in model.parameters())


def choose_checkpointing(model: pl.LightningModule, images: int, device: str) -> None:
    """With `use_checkpoint: auto`, keep activations if they fit into memory; say which.

    `model` is not yet on the GPU where it will be trained, with `images` in a micro-batch.
    """
    if not isinstance(model, LatentDiffusion):
        return
    network = model.model.diffusion_model
    if getattr(network, "use_checkpoint", None) != "auto":
        return
    needed, free = round(activation_bytes(model, images) * (1 + WORK_SPACE)), free_bytes(device)
    room = None if free is None else round(USABLE * free) - weight_bytes(model)
    keep = room is not None and needed <= room
    for module in network.modules():
        if isinstance(getattr(module, "use_checkpoint", None), bool):
            module.use_checkpoint = not keep
    there = "free memory unknown" if room is None else f"{max(room, 0) / 1e9:.1f} GB are free"
    log.info(
        f"activations are {'kept' if keep else 'computed again in the backward pass'}: those of "
        f"{images} images take {needed / 1e9:.1f} GB, {there} beside the weights"
    )


def what_fits(model: pl.LightningModule, images: int, device: str) -> str:
    """Return advice for a micro-batch of `images` images that did not fit into memory."""
    if not isinstance(model, LatentDiffusion):
        return "lower data.params.batch_size"
    total = torch.cuda.get_device_properties(device).total_memory
    each = activation_bytes(model, images) * (1 + WORK_SPACE) / images
    most = int((USABLE * total - weight_bytes(model)) / each)
    recomputing = "model.params.unet_config.params.use_checkpoint=true"
    if 1 <= most < images:
        return f"data.params.batch_size={most} should fit (lightning.images_per_step accumulates)"
    return f"set {recomputing}, data.params.batch_size=1 or --precision bf16"
