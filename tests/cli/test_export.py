"""The miniature's files from a run: nothing of the training stays in the configuration."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest
from omegaconf import OmegaConf

ROOT = Path(__file__).parents[2]


@pytest.fixture
def export() -> ModuleType:
    path = ROOT / "scripts" / "miniature" / "export.py"
    spec = importlib.util.spec_from_file_location("export", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("start", [None, "/elsewhere/model.safetensors"])
def test_the_shipped_configuration_is_that_of_the_training(
    export: ModuleType, start: str | None
) -> None:
    config = OmegaConf.load(ROOT / "configs" / "miniature" / "diffusion.yaml")
    if start:  # the model of a run that started from other weights must not ask for them
        config.model.params.ckpt_path = start
    shipped = OmegaConf.load(ROOT / "models" / "miniature" / "config.yaml")
    made = export.inference_config(config)
    for found in (
        made,
        shipped,
    ):  # each run has its own: the size of its vocabulary, its latents' scale
        del found.model.params.scale_factor
        del found.model.params.cond_stage_config.params.vocab_size
    assert made == shipped
