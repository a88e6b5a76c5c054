"""The one loader of model weights: `.ckpt` and `.safetensors`, read once, without running code.

The model is built on torch's meta device and the file's tensors become its parameters, so nothing
is initialised at random first and memory holds about one copy of the weights. Files are mapped into
memory. What is not needed is not read, and the memory of what was converted to another type or
device is freed at once.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from torch import Tensor, nn

from ldm.checkpoint.bases import Base, read_weights, recognize
from ldm.checkpoint.bases import read_config as read_config
from ldm.checkpoint.files import checkpoint_hash as checkpoint_hash
from ldm.checkpoint.files import mapped_ranges, release
from ldm.checkpoint.files import read_state_dict as read_state_dict
from ldm.checkpoint.folder_config import shipped_config
from ldm.checkpoint.hub import locate_base
from ldm.checkpoint.names import (
    SCHEDULE,
    describe,
    is_optional,
    match_names,
    of_another_model,
    strangers,
)
from ldm.modules.ema import LitEma
from ldm.randomness import Purpose, normal
from ldm.util import UserError, instantiate_from_config, told

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class LoadReport:
    """The entries that only one of a file and a model has."""

    missing: tuple[str, ...]  # the model's that the file lacks and that are computed instead
    unexpected: tuple[str, ...]  # the file's that the model has no place for

    def __str__(self) -> str:
        return "; ".join(
            f"{len(names)} {what} ({', '.join(names[:3])}{', …' if len(names) > 3 else ''})"
            for what, names in (("missing", self.missing), ("unexpected", self.unexpected))
            if names
        )


def load_state(
    model: nn.Module,
    state: Mapping[str, Tensor],
    *,
    source: str = "checkpoint",
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
) -> LoadReport:
    """Give a model the weights of a state dict.

    Tensors become the parameters of a model on the meta device, which needs all of its weights.
    Into any other model they are copied; what the file lacks stays as it is, with a warning.
    Averaged weights that the file lacks start at the loaded weights.

    Args:
        model: a diffusion model, or an autoencoder alone.
        state: the file's tensors by name, as `read_state_dict` returns them.
        source: what to call the file in errors.
        device: where to put them; where they are, by default.
        dtype: the parameters' type; the model's own, by default. Buffers keep their type.

    Raises UserError if the weights are of another architecture; one line says of which.
    """
    own = model.state_dict()
    on_meta = any(p.is_meta for p in model.parameters())
    pairs, missing = pair(own, state, source, whole=on_meta)
    absent = [name for name in missing if not is_optional(name)]
    weights = {name for name, _ in model.named_parameters()}
    values: dict[str, Tensor] = {}
    tables: list[str] = []  # entries of the file's schedule that contradict the configuration
    mapped = mapped_ranges()
    for name, ours in pairs.items():
        if ours.startswith("embedding_manager."):
            continue
        if ours in SCHEDULE and not _agree(state[name], own[ours]):
            tables.append(ours)
            continue
        target = dtype if ours in weights and dtype is not None else own[ours].dtype
        values[ours] = state[name].to(device=device, dtype=target)
        if values[ours] is not state[name]:
            release(state[name], mapped)
    model.load_state_dict(values, strict=False, assign=on_meta)
    _start_averages(model, missing)
    if tables:
        logger.info("%s: the schedule's %s are computed, not read", source, ", ".join(tables))
    if absent:
        logger.warning("%s lacks %d weights, such as %s", source, len(absent), absent[0])
    return LoadReport(
        missing=tuple(n for n in missing if not n.startswith("embedding_manager.")),
        unexpected=tuple(name for name in state if name not in pairs),
    )


def pair(
    own: Mapping[str, Tensor], state: Mapping[str, Tensor], source: str, whole: bool = True
) -> tuple[dict[str, str], list[str]]:
    """Pair the entries of a file with a model's: {file's name: model's name}, and what it lacks.

    Raises UserError, which begins with `source`, if the weights are of another architecture; or, of
    a `whole` model, if one is missing or its U-Net has more.
    """
    pairs = match_names(list(own), list(state))
    found = set(pairs.values())
    missing = [name for name in own if name not in found]
    wrong = {n: ours for n, ours in pairs.items() if state[n].shape != own[ours].shape}
    absent = [name for name in missing if not is_optional(name)]
    if wrong or not pairs or (absent and whole):
        raise UserError(f"{source}: {_refusal(state, own, wrong, absent)}")
    if whole and (strange := strangers(state, pairs)):
        raise UserError(f"{source}: found {describe(state)}, {of_another_model(strange)}")
    return pairs, missing


def _agree(table: Tensor, computed: Tensor) -> bool:
    """Tell whether a file's table of the schedule is the computed one in full precision."""
    if computed.is_meta or table.is_meta:
        return True
    return table.dtype == computed.dtype and torch.allclose(table, computed.to(table.device), 1e-4)


def load_model(
    config: DictConfig | Mapping[str, Any] | str | Path | None,
    checkpoint: str | Path | None,
    device: torch.device | str = "cpu",
    dtype: torch.dtype | None = None,
) -> Any:
    """Build a model and load its weights; it is ready to generate or to train on.

    Args:
        config: a configuration with `model`, or the path of its YAML file. None takes the one that
            belongs to the checkpoint.
        checkpoint: a file, a folder of diffusers or a Hub name, as `locate_base` takes it; None
            builds the model with new weights.
        device: where the model goes.
        dtype: the weights' type; float32 by default. Learned words stay in float32.

    Returns the model, in evaluation mode. Raises UserError for files that are missing, unreadable,
    or of another architecture.
    """
    if checkpoint is not None:
        return _load_base(find_base(checkpoint, config), device, dtype)
    if config is None:
        raise ValueError("give a configuration, a checkpoint, or both")
    model = instantiate_from_config(read_config(config).model)
    for name, weight in model.named_parameters():
        if dtype is not None and not name.startswith("embedding_manager."):
            weight.data = weight.data.to(dtype)
    return model.to(device=device).eval()


def find_base(
    name: str | Path, config: DictConfig | Mapping[str, Any] | str | Path | None = None
) -> Base:
    """Find a base by its name (see `locate_base`); one of the Hub is downloaded.

    Without `config` its configuration is the one beside its weights, or that of the base recognized
    by them. Raises UserError if nothing is there, or no base that is supported.
    """
    base = recognize(locate_base(name), None if config is None else read_config(config))
    if base.undecided and _predicts_v(base):
        base = replace(base, family="sd2-v", config=shipped_config("sd2-v"), undecided=False)
    return base


def _predicts_v(base: Base) -> bool:
    """Tell whether a U-Net predicts v: at the last timestep a model of ε returns its input."""
    model = _load_base(base, "cpu", None)
    noise = normal(0, [0], (1, model.channels, 64, 64), Purpose.INITIAL_NOISE)
    text = torch.zeros(1, 77, model.model.diffusion_model.context_dim)
    with torch.no_grad():
        t = torch.tensor([model.num_timesteps - 1])
        output = model.model(noise, t, c_crossattn=[text])
    return bool(torch.cosine_similarity(noise.flatten(), output.flatten(), 0) < 0.5)


def build_empty(base: Base) -> Any:
    """Build a base's model on the meta device: names and shapes without values.

    Raises UserError if no model has the configuration's values.
    """
    config = copy.deepcopy(base.config.model)
    # The checkpoint has the weights of all parts; a configuration may name other files for them.
    for key in ("params.ckpt_path", "params.first_stage_config.params.ckpt_path"):
        if OmegaConf.select(config, key) is not None:
            OmegaConf.update(config, key, None)
    fault = f"{base.path}: the values of its configuration do not fit: "
    with told(fault, TypeError, ValueError, ArithmeticError, RuntimeError), torch.device("meta"):
        return instantiate_from_config(config)


def _load_base(base: Base, device: torch.device | str, dtype: torch.dtype | None) -> Any:
    model = build_empty(base)
    state = read_weights(base.path, model.state_dict())
    what = f"{base.what}, " if base.what else ""
    report = load_state(model, state, source=str(base.path), device=device, dtype=dtype)
    _fill_what_is_left(model, torch.device(device))
    logger.info("%s: %s%d tensors read", base.path, what, len(state) - len(report.unexpected))
    shadows = sum(name.startswith("model_ema.") for name in report.unexpected)
    if shadows > 2:
        text = "%s: an averaged copy of %d weights is there and not used"
        logger.info(text, base.path, shadows - 2)
    known = ("model_ema.", "embedding_manager.")
    unusual = LoadReport(
        # What the configuration determines is not missing.
        tuple(n for n in report.missing if not is_optional(n)),
        tuple(n for n in report.unexpected if not n.startswith(known) and not is_optional(n)),
    )
    if str(unusual):
        logger.info("%s: %s", base.path, unusual)
    model.to(device=device)
    network = getattr(model, "model", None)  # an autoencoder has no U-Net
    if network is not None and dtype == torch.bfloat16 and torch.device(device).type == "cpu":
        # Its convolutions are faster so, in float32 hardly (docs/performance.md).
        network.to(memory_format=torch.channels_last)
    manager = getattr(model, "embedding_manager", None)
    if manager is not None:
        manager.initialize()
    return model.eval()


def _refusal(
    state: Mapping[str, Tensor],
    own: Mapping[str, Tensor],
    wrong: Mapping[str, str],
    absent: list[str],
) -> str:
    """Say what the file holds instead; `wrong` pairs names of different shapes."""
    found, wanted = describe(state), describe(own)
    if found == f"{wanted}, no autoencoder":
        return f"found {found}: give a file that holds it too"
    if found != wanted:
        return (
            f"found {found}; this configuration is {wanted}: "
            "choose the configuration that belongs to the file"
        )
    if wrong:
        theirs, ours = next(iter(wrong.items()))
        shapes = f"{list(state[theirs].shape)}, not {list(own[ours].shape)}"
        return f"found {found} of other sizes: {len(wrong)} differ, {theirs} has {shapes}"
    return (
        f"found {found}, but {len(absent)} of {len(own)} weights are missing, "
        f"such as {absent[0]}: truncated, or another variant"
    )


def _fill_what_is_left(model: nn.Module, device: torch.device) -> None:
    """Give values to the entries that the file lacks, or raise RuntimeError for one without any."""
    for name, module in model.named_modules():
        for key, buffer in list(module.named_buffers(recurse=False)):
            if buffer.is_meta and key != "position_ids":
                raise RuntimeError(
                    f"buffer {name}.{key} has no value, and the file has none for it"
                )
            if buffer.is_meta:  # 0..n-1, [1, n]
                numbers = torch.arange(buffer.shape[-1], device=device)
                module._buffers[key] = numbers.expand(buffer.shape).clone()
        for key, weight in list(module.named_parameters(recurse=False)):
            if weight.is_meta:  # `to_logits`, which nothing evaluates
                empty = torch.zeros(weight.shape, device=device)
                module._parameters[key] = nn.Parameter(empty, weight.requires_grad)


def _start_averages(model: nn.Module, missing: Collection[str]) -> None:
    """Set the averaged weights that a file lacks to the weights that the model has now."""
    for path, ema in model.named_modules():
        if not isinstance(ema, LitEma):
            continue
        owner = model.get_submodule(path.rpartition(".")[0])
        # A diffusion model averages its `model`, an autoencoder itself.
        network = getattr(owner, "model", owner)
        for name, shadow in ema.shadow_names.items():
            if f"{path}.{shadow}" in missing:
                setattr(ema, shadow, network.get_parameter(name).detach().clone())
