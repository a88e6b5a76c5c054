"""A file with the change of a model's weights by tuning; the base model is not stored again.

The file is safetensors: for each weight that moved, trained − base under the weight's own name.
Its metadata name the base by hash, so that it is never added to another model.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Protocol

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from ldm.checkpoint.bases import read_weights
from ldm.checkpoint.files import checkpoint_hash
from ldm.checkpoint.names import is_optional, match_names
from ldm.modules.ema import LitEma
from ldm.util import UserError, told, write_whole

FORMAT = "ldm-difference"
# The parts that tuning may move. The autoencoder stays, and words have files of their own.
PARTS = ("model.", "cond_stage_model.")


class TunedModel(Protocol):
    """What a weight delta needs of a `LatentDiffusion`: its weights, and their averages."""

    model_ema: LitEma | None

    @property
    def averaged_network(self) -> nn.Module: ...
    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]: ...
    def state_dict(self) -> Mapping[str, Tensor]: ...
    def ema_scope(self) -> AbstractContextManager[None]: ...


@torch.no_grad()
def save_weight_delta(
    model: TunedModel,
    path: str | Path,
    base: str | Path,
    *,
    half: bool = True,
    facts: Mapping[str, str] | None = None,
) -> None:
    """Write trained − base for each tuned weight; averaged weights count where there are some.

    The model's tuned weights require gradients; `base` is the checkpoint that tuning started from.
    A `.safetensors` file that exists is replaced, whole or not at all. `half` stores float16: half
    the size, an error of at most 2^-11 of each value (3e-8 where values are below 6e-5). `facts`
    are more metadata. Raises UserError if the base lacks a tuned weight.
    """
    with model.ema_scope():
        tuned = {
            name: weight.detach().float().cpu()
            for name, weight in model.named_parameters()
            if weight.requires_grad and name.startswith(PARTS)
        }
        state = read_weights(Path(base), model.state_dict())
        names = [name for name, _ in model.named_parameters()]
        of_base = {ours: theirs for theirs, ours in match_names(names, list(state)).items()}
        moved = {}
        for name, weight in tuned.items():
            if name not in of_base:
                if is_optional(name):  # no image depends on it
                    continue
                raise UserError(f"{base} has no weight {name}: it is not what tuning began from")
            change = weight - state[of_base[name]].float()
            if change.any():
                moved[name] = (change.half() if half else change).contiguous()
    metadata = {
        "format": FORMAT,
        "base_checkpoint": Path(base).name,
        "base_checkpoint_hash": checkpoint_hash(base),
        **(facts or {}),
    }
    write_whole(path, lambda part: save_file(moved, part, metadata=metadata))


def check_weight_delta(path: str | Path, checkpoint: str | Path | None) -> dict[str, str]:
    """Check that a weight delta may be added to the model of a checkpoint; read no weights.

    Returns the file's metadata. Raises UserError for no weight delta, or one to another base.
    """
    if not Path(path).exists():
        raise UserError(f"weight delta {path} does not exist")
    fault = f"{path}: not a safetensors file, or a damaged one ("
    with told(fault, SafetensorError, OSError, after=")"), safe_open(path, "pt") as file:
        metadata: dict[str, str] = file.metadata() or {}
    if metadata.get("format") != FORMAT:
        raise UserError(
            f"{path}: no weight delta, which tuning writes as weight_delta.safetensors; words are "
            "given as --embedding_path, whole models as --ckpt_path"
        )
    base, wanted = metadata.get("base_checkpoint"), metadata.get("base_checkpoint_hash")
    found = None if checkpoint is None else checkpoint_hash(checkpoint)
    if found != wanted:
        raise UserError(
            f"{path}: a weight delta of the base model {base} ({wanted}), but the model is "
            f"{checkpoint} ({found}): choose the one that tuning began from"
        )
    return metadata


def read_changes(path: str | Path, weights: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    """Read a weight delta: each change under the name of the one of `weights` that it is for.

    Raises UserError where `weights` lack one, or have it in another shape.
    """
    with safe_open(path, framework="pt") as file:
        pairs = match_names(list(weights), list(file.keys()))
        for theirs in file.keys():  # noqa: SIM118 (not a mapping)
            change: Tensor = file.get_tensor(theirs)
            weight = weights.get(pairs.get(theirs, ""))
            if weight is None or weight.shape != change.shape:
                raise UserError(
                    f"{path}: its weight {theirs} {list(change.shape)} has no place in this "
                    "model: give the base, or the configuration, that it was tuned with"
                )
            yield pairs[theirs], change


@torch.no_grad()
def apply_weight_delta(model: TunedModel, path: str | Path, checkpoint: str | Path | None) -> None:
    """Add the weight delta in a file to a model with the weights of `checkpoint`, in place.

    Averaged weights, if the model has them, become the tuned weights: generation uses them. Raises
    UserError as `check_weight_delta`, or where the model's configuration lacks one of the weights.
    """
    check_weight_delta(path, checkpoint)
    weights = dict(model.named_parameters())
    for name, change in read_changes(path, weights):
        weight = weights[name]
        # A new tensor: what was read may lie in the mapped checkpoint.
        weight.data = (weight.float() + change.to(weight.device).float()).to(weight.dtype)
    if model.model_ema is not None:
        model.model_ema.restart(model.averaged_network)
