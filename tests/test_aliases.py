"""Every dotted name that YAML files and scripts of users may name can be imported."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from ldm.util import get_obj_from_str

ROOT = Path(__file__).parents[1]
ENCODERS = "ldm.modules.encoders.modules"
# Names of the original code base, and of earlier versions of this one.
PUBLIC = (
    "ldm.models.diffusion.ddpm.LatentDiffusion",
    "ldm.models.diffusion.ddim.DDIMSampler",
    "ldm.models.diffusion.plms.PLMSSampler",
    *(
        f"ldm.models.autoencoder.{name}"
        for name in ("AutoencoderKL", "VQModel", "VQModelInterface", "IdentityFirstStage")
    ),
    "ldm.modules.diffusionmodules.openaimodel.UNetModel",
    *(
        f"{ENCODERS}.{name}"
        for name in ("BERTEmbedder", "FrozenCLIPEmbedder", "ClassEmbedder", "SpatialRescaler")
    ),
    "ldm.modules.embedding_manager.EmbeddingManager",
    "ldm.data.personalized.PersonalizedBase",
    "ldm.data.personalized_style.PersonalizedBase",
    "ldm.data.miniature.MiniatureWorld",
    *(
        f"ldm.lr_scheduler.{name}"
        for name in (
            "LambdaWarmUpCosineScheduler",
            "LambdaWarmUpCosineScheduler2",
            "LambdaLinearScheduler",
        )
    ),
    "ldm.modules.losses.LPIPSWithDiscriminator",
    "ldm.util.instantiate_from_config",
    *(
        f"main.{name}"
        for name in ("DataModuleFromConfig", "ImageLogger", "SetupCallback", "CUDACallback")
    ),
)


def targets(content: Any) -> Iterator[str]:
    """Yield every `target:` below a mapping or list."""
    if isinstance(content, dict):
        if isinstance(content.get("target"), str):
            yield content["target"]
        content = list(content.values())
    if isinstance(content, list):
        for part in content:
            yield from targets(part)


def shipped() -> list[str]:
    """Return every `target:` of the YAML files that ship."""
    files = [*(ROOT / "configs").rglob("*.yaml"), ROOT / "models" / "miniature" / "config.yaml"]
    loaded = (OmegaConf.to_container(OmegaConf.load(file)) for file in files)
    return sorted({target for content in loaded for target in targets(content)})


def test_the_files_that_ship_name_targets():
    assert len(shipped()) > 10


@pytest.mark.parametrize("name", sorted({*PUBLIC, *shipped()}))
def test_a_public_name_is_found(name):
    assert callable(get_obj_from_str(name))
