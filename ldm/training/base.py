"""The configuration that belongs to a base, for a run without `--base`."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, OmegaConf

from ldm.resources import locate
from ldm.util import UserError

if TYPE_CHECKING:
    from ldm.checkpoint.bases import Base

log = logging.getLogger(__name__)

MINIATURE, MINIATURE_CONFIG = "models/miniature", "configs/miniature/finetune.yaml"
# The entries of `model.params` that a base decides; the others say how to learn.
OF_THE_BASE = (
    *("unet_config", "first_stage_config", "cond_stage_config", "conditioning_key"),
    *("image_size", "channels", "scale_factor", "parameterization"),
    *("timesteps", "beta_schedule", "linear_start", "linear_end"),
)


def base_parts(model: str) -> list[DictConfig]:
    """Return the configuration for learning a word on a base, in parts to merge.

    The first part is that of the base's family, the second has the base's own sizes. `model` is a
    file, a folder of diffusers or a Hub name; UserError for one that is not there or not supported.
    """
    from ldm.checkpoint.loading import find_base  # imports torch

    base = find_base(model)
    finetune = _finetune(base)
    log.info("%s: %s; configuration %s", base.path, base.what, finetune)
    whole = OmegaConf.load(locate(finetune))
    assert isinstance(whole, DictConfig)
    params = base.config.model.params
    levels = len(params.first_stage_config.params.ddconfig.ch_mult)
    size = params.image_size * 2 ** (levels - 1)
    sets = {
        name: {"params": {"size": size}}
        for name, part in whole.data.params.items()
        if isinstance(part, DictConfig) and OmegaConf.select(part, "params.size") is not None
    }
    own: dict[str, Any] = {name: params[name] for name in OF_THE_BASE if name in params}
    return [whole, OmegaConf.create({"model": {"params": own}, "data": {"params": sets}})]


def _finetune(base: Base) -> str:
    from ldm.checkpoint.tables import FAMILIES

    if base.path.parent.resolve() == locate(MINIATURE).resolve():
        return MINIATURE_CONFIG
    if not base.family:
        raise UserError(f"{base.path}: {base.what}, which names no text encoder: give --base YAML")
    return FAMILIES[base.family].finetune
