"""Every shipped YAML builds, on the meta device: names and parameters are right."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import DictConfig, OmegaConf
from torch import nn

from ldm.models import autoencoder
from ldm.training.config import load
from ldm.training.trainer import accumulation, saving_options
from ldm.training.validate import check_targets
from ldm.util import UserError, instantiate_from_config

ROOT = Path(__file__).parents[1]
# Overlays change a configuration, experiments name some: both have tests of their own.
NO_MODELS = ("variants", "protocol")
FOUND = sorted((ROOT / "configs").rglob("*.yaml"))
CONFIGS = [path for path in FOUND if path.parent.name not in NO_MODELS]
NAMES = [str(path.relative_to(ROOT / "configs")) for path in CONFIGS]
FINETUNING = [name for name in NAMES if "finetune" in name or name == "miniature/paper.yaml"]
# Stages that change another one's configuration.
OVER = {"miniature/diffusion-longer.yaml": "miniature/diffusion.yaml"}
# Parameters in millions, as their publishers count them.
SIZES = {
    "finetune.yaml": ("model", 872.3),
    "finetune_style.yaml": ("model", 872.3),
    "latent-diffusion/txt2img-1p4B-eval.yaml": ("cond_stage_model", 582.0),
    "stable-diffusion/v1-inference.yaml": ("model", 859.5),
    "stable-diffusion/v2-inference.yaml": ("model", 865.9),
    "stable-diffusion/v2-v-finetune.yaml": ("cond_stage_model", 354.0),
    "stable-diffusion/xl-inference.yaml": ("model", 2567.5),
    "stable-diffusion/xl-finetune.yaml": ("cond_stage_model", 817.7),
    "latent-diffusion/celebahq-ldm-vq-4.yaml": ("model", 274.1),
    "latent-diffusion/ffhq-ldm-vq-4.yaml": ("model", 274.1),
    "latent-diffusion/lsun_bedrooms-ldm-vq-4.yaml": ("model", 274.1),
    "latent-diffusion/lsun_churches-ldm-kl-8.yaml": ("model", 294.97),
    "latent-diffusion/cin256-v2.yaml": ("model", 400.9),
}


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bert")
    words = "[PAD] [UNK] [CLS] [SEP] [MASK] * sculpture painting star"
    (folder / "vocab.txt").write_text("\n".join(words.split()))
    return folder


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("clip")
    letters = sorted({*"*abcdefghijklmnopqrstuvwxyz"})
    words = [*letters, *(f"{x}</w>" for x in letters), "<|startoftext|>", "<|endoftext|>"]
    (folder / "vocab.json").write_text(
        "{" + ", ".join(f'"{word}": {i}' for i, word in enumerate(words)) + "}"
    )
    (folder / "merges.txt").write_text("#version: 0.2\n")
    return folder


def read(name: str, bert: Path, clip: Path) -> DictConfig:
    """Read a configuration, with a small vocabulary in place of the published one."""
    files = [ROOT / "configs" / file for file in (OVER.get(name), name) if file]
    config = OmegaConf.merge(*(OmegaConf.load(file) for file in files))
    assert isinstance(config, DictConfig)
    encoder = OmegaConf.select(config, "model.params.cond_stage_config")
    if isinstance(encoder, DictConfig) and encoder.target.endswith(
        ("BERTEmbedder", "CLIPEmbedder", "XLEmbedder")
    ):
        folder = bert if encoder.target.endswith("BERTEmbedder") else clip
        encoder.params = {**(encoder.get("params") or {}), "tokenizer": str(folder)}
    # Weights of a part are made by another run.
    config.model.params.pop("ckpt_path", None)
    stage = OmegaConf.select(config, "model.params.first_stage_config.params")
    if stage is not None:
        stage.pop("ckpt_path", None)
    return config


class Quantizer(nn.Module):
    """Stands for taming-transformers' codebook."""

    def __init__(self, n_embed: int, embed_dim: int, **_: Any) -> None:
        super().__init__()
        self.embedding = nn.Embedding(n_embed, embed_dim)


@pytest.mark.parametrize("name", NAMES)
def test_it_builds(name: str, bert: Path, clip: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = read(name, bert, clip)
    check_targets(config.model, "model", ("base_learning_rate",))
    if "-vq-" in name or "cin256" in name:
        monkeypatch.setattr(autoencoder, "_vector_quantizer", Quantizer)
    with torch.device("meta"):
        model = instantiate_from_config(config.model)
    if name in SIZES:
        part, millions = SIZES[name]
        count = sum(p.numel() for p in model.get_submodule(part).parameters()) / 1e6
        assert count == pytest.approx(millions, abs=0.06)


@pytest.mark.parametrize("name", [n for n in NAMES if "-vq-" in n])
def test_vq_without_its_package_says_so(
    name: str, bert: Path, clip: Path, without_taming: None
) -> None:
    with (
        torch.device("meta"),
        pytest.raises(UserError, match="needs the package taming-transformers"),
    ):
        instantiate_from_config(read(name, bert, clip).model)


@pytest.fixture
def without_taming(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("taming", "taming.modules", "taming.modules.vqvae.quantize"):
        monkeypatch.setitem(sys.modules, module, None)


@pytest.mark.parametrize("name", FINETUNING)
def test_a_finetuning_configuration_passes_every_check(name: str, tmp_path: Path) -> None:
    base = tmp_path / "model.ckpt"
    base.touch()
    config = load(
        [
            *("--base", str(ROOT / "configs" / name), "-t", "--data_root", str(tmp_path)),
            *("--actual_resume", str(base), "--init_word", "cat", "--gpus", "0"),
        ]
    )
    assert config.trainer["max_steps"] > 0
    assert saving_options(config.lightning)["every_n_train_steps"] > 0
    words = config.model.params.personalization_config.params
    assert list(words.initializer_words) == ["cat"]
    assert config.data.params.train.params.placeholder_token == words.placeholder_strings[0]


@pytest.mark.parametrize("name", ["finetune.yaml", "finetune_style.yaml"])
@pytest.mark.parametrize(("devices", "micro"), [(1, 2), (2, 1)])
def test_the_papers_rate_and_batch(name: str, devices: int, micro: int) -> None:
    config = OmegaConf.load(ROOT / "configs" / name)
    batch = config.data.params.batch_size
    assert accumulation(config.lightning, {}, batch, devices) == micro
    images = batch * devices * micro
    assert images == 8
    assert config.model.base_learning_rate * images == pytest.approx(0.04)
    assert config.lightning.trainer.max_steps == 5000


def test_the_names_are_the_originals() -> None:
    assert {
        "latent-diffusion/txt2img-1p4B-eval.yaml",
        "latent-diffusion/txt2img-1p4B-finetune.yaml",
        "stable-diffusion/v1-finetune.yaml",
        "stable-diffusion/v1-inference.yaml",
        "autoencoder/autoencoder_kl_32x32x4.yaml",
    } <= set(NAMES)


def test_the_miniatures_recipe_is_the_papers_in_fewer_steps() -> None:
    own, paper = (
        OmegaConf.to_container(OmegaConf.load(ROOT / "configs" / "miniature" / name))
        for name in ("finetune.yaml", "paper.yaml")
    )
    assert isinstance(own, dict)
    assert isinstance(paper, dict)
    assert paper["model"] == own["model"]
    assert paper["data"] == own["data"]


def test_the_papers_recipe_on_the_miniature() -> None:
    config = OmegaConf.load(ROOT / "configs" / "miniature" / "paper.yaml")
    assert config.model.base_learning_rate * config.lightning.images_per_step == 0.04
    assert config.lightning.trainer.max_steps == 5000
    assert config.model.params.loss_weighting == "simple"
    assert "scheduler_config" not in config.model.params
    words = config.model.params.personalization_config.params
    assert words.num_vectors_per_token == 1


@pytest.mark.parametrize("family", ["v1", "v2", "v2-v", "xl"])
def test_stable_diffusion_has_the_settings_of_diffusers_example(family: str) -> None:
    """Its README: learning rate 5e-4, scaled by 4 images a step; 3000 steps, fewer for SDXL."""
    config = OmegaConf.load(ROOT / "configs" / "stable-diffusion" / f"{family}-finetune.yaml")
    images = config.lightning.images_per_step
    assert images == 4
    assert config.model.base_learning_rate * images == pytest.approx(0.002)
    assert config.lightning.trainer.max_steps == (1500 if family == "xl" else 3000)
