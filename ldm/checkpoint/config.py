"""Read a model's configuration."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError  # type: ignore[import-untyped]

from ldm.util import UserError, first_line


def read_config(config: DictConfig | Mapping[str, Any] | str | Path) -> DictConfig:
    """Read a model's configuration; the caller may change what is returned.

    A tokenizer folder named relative to the configuration's own folder, or to the project's, is
    made absolute. Raises UserError for a file that is missing, is no YAML, or has no `model`.
    """
    folder = None
    if isinstance(config, str | Path):
        name, folder = f"configuration {config}", Path(config).resolve().parent
        loaded = _read_yaml(Path(config))
    else:
        name = "configuration"
        plain = OmegaConf.to_container(config) if isinstance(config, DictConfig) else dict(config)
        loaded = OmegaConf.create(plain)
    if not isinstance(loaded, DictConfig) or "model" not in loaded:
        raise UserError(f"{name} has no 'model': it is not the configuration of a model")
    tokenizer = OmegaConf.select(loaded, "model.params.cond_stage_config.params.tokenizer")
    if isinstance(tokenizer, str) and folder is not None and not Path(tokenizer).is_dir():
        beside = folder / tokenizer
        if beside.is_dir():
            loaded.model.params.cond_stage_config.params.tokenizer = str(beside)
    return loaded


def _read_yaml(path: Path) -> Any:
    if not path.is_file():
        raise UserError(f"configuration {path} does not exist")
    try:
        return OmegaConf.load(path)
    except (YAMLError, OmegaConfBaseException, OSError, ValueError) as error:
        raise UserError(f"configuration {path} is not YAML: {first_line(error)}") from error
