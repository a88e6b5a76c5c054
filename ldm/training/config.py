"""The configuration of a run: YAML files and flags, merged and checked, once."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from ldm.training.arguments import TRAINER_FLAGS
from ldm.util import UserError

SECTIONS = ("model", "data", "lightning", "run")


@dataclass(frozen=True)
class RunConfig:
    """A run's configuration, each part as its owner takes it.

    Attributes:
        model, data: target and params.
        lightning: `trainer`, `callbacks`, `modelcheckpoint` and so on.
        run: what the flags say: seed, base checkpoint, first word and so on.
    """

    model: DictConfig
    data: DictConfig
    lightning: DictConfig
    run: DictConfig


def read_yaml(path: Path) -> DictConfig:
    """Read a YAML file holding a mapping.

    Raises UserError where it is missing or not a mapping.
    """
    try:
        config = OmegaConf.load(path)
    except FileNotFoundError as error:
        raise UserError(f"no configuration at {path}: give an existing file to --base") from error
    except (yaml.YAMLError, OmegaConfBaseException, OSError) as error:
        line = " ".join(str(error).split())
        raise UserError(f"cannot read the configuration {path}: {line}") from error
    if not isinstance(config, DictConfig):
        raise UserError(f"{path} is not a configuration: expected a mapping with 'model' and 'data'")
    return config


def merge(paths: Sequence[Path], overrides: Sequence[str]) -> DictConfig:
    """Merge YAML files from left to right, then overrides "a.b=c".

    Raises UserError naming a section that is unknown.
    """
    parts = [read_yaml(path) for path in paths]
    merged = OmegaConf.merge(*parts, OmegaConf.from_dotlist(list(overrides)))
    assert isinstance(merged, DictConfig)
    for name in merged:
        if name not in SECTIONS:
            raise UserError(f"unknown configuration key {name!r}: expected one of {SECTIONS}")
    for name in ("model", "data"):
        if name not in merged:
            raise UserError(f"the configuration has no section {name!r}: add it, or another --base")
    return merged


def apply_flags(config: DictConfig, options: argparse.Namespace) -> None:
    """Write the command line's flags into the configuration, in place."""
    for section in ("run", "lightning"):
        config[section] = config.get(section) or {}
    config.lightning.trainer = config.lightning.get("trainer") or {}
    run, trainer = config.run, config.lightning.trainer
    for name in ("seed", "scale_lr", "threads"):
        if getattr(options, name) is not None:
            run[name] = getattr(options, name)
    run.setdefault("seed", 23)
    run.setdefault("scale_lr", True)
    for name in TRAINER_FLAGS:
        if getattr(options, name) is not None:
            trainer[name] = getattr(options, name)
    if options.num_workers is not None:
        config.data.params.num_workers = options.num_workers


def load_config(options: argparse.Namespace) -> RunConfig:
    """Return the merged configuration of a run."""
    merged = merge([Path(path) for path in options.base], options.overrides)
    apply_flags(merged, options)
    return RunConfig(merged.model, merged.data, merged.lightning, merged.run)
