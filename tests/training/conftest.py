"""A tiny model, a vocabulary and images, and the real command line to train it with."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from omegaconf import DictConfig, OmegaConf
from PIL import Image

import main
from ldm.util import instantiate_from_config
from ldm.words.files import read_words

HERE = Path(__file__).parent
VOCABULARY = (
    "[PAD] [UNK] [CLS] [SEP] [MASK] * @ a the my one photo of cat dog painting sculpture style "
    "in close - up cropped good bright dark rendering rendition nice cool small clean dirty weird "
    "large"
)


@pytest.fixture(scope="session")
def vocabulary(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that BERTEmbedder takes as tokenizer."""
    folder = tmp_path_factory.mktemp("vocabulary")
    (folder / "vocab.txt").write_text("\n".join(VOCABULARY.split()) + "\n")
    return folder


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of three images, named after what they show."""
    folder = tmp_path_factory.mktemp("pictures") / "mugs"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for i in range(3):
        pixels = rng.integers(0, 255, (12, 10, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{i}.png")
    return folder


def tiny_config(vocabulary: Path) -> DictConfig:
    """The tiny model's configuration with a vocabulary."""
    config = OmegaConf.load(HERE / "tiny.yaml")
    assert isinstance(config, DictConfig)
    config.model.params.cond_stage_config.params.tokenizer = str(vocabulary)
    return config


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory, vocabulary: Path) -> Path:
    """A checkpoint of the tiny model, as published ones are: no learned word in it."""
    torch.manual_seed(0)
    model = instantiate_from_config(tiny_config(vocabulary).model)
    for weight in model.model.parameters():  # new U-Nets predict nothing: their last layer is zero
        torch.nn.init.normal_(weight, std=0.1)
    state = {k: v for k, v in model.state_dict().items() if not k.startswith("embedding_manager.")}
    path = tmp_path_factory.mktemp("base") / "model.ckpt"
    torch.save({"state_dict": state}, path)
    return path


@dataclass(frozen=True)
class Outcome:
    """What a run left: exit status and log folder."""

    status: int
    folder: Path

    def word(self, name: str = "embeddings.pt") -> torch.Tensor:
        """The learned vectors of `*`."""
        return read_words(self.folder / "checkpoints" / name).words["*"]

    def table(self) -> list[dict[str, str]]:
        """The rows of metrics.csv."""
        lines = (self.folder / "logger" / "metrics.csv").read_text().splitlines()
        names = lines[0].split(",")
        return [dict(zip(names, line.split(","), strict=True)) for line in lines[1:]]


@pytest.fixture
def arguments(tmp_path: Path, vocabulary: Path, pictures: Path, base: Path) -> list[str]:
    """The command line that learns a word on the tiny model."""
    return [
        *("--base", str(HERE / "tiny.yaml"), str(HERE / "personal.yaml"), "-t"),
        *("--data_root", str(pictures), "--init_word", "dog", "--actual_resume", str(base)),
        *("-l", str(tmp_path / "logs")),
        f"model.params.cond_stage_config.params.tokenizer={vocabulary}",
    ]


@pytest.fixture
def learn(tmp_path: Path, arguments: list[str]) -> Callable[..., Outcome]:
    """Run main.py's command line in this process: learn("name", more arguments) → Outcome."""

    def run(name: str, *more: str) -> Outcome:
        status = main.main([*arguments, "-n", name, *more])
        (folder,) = (tmp_path / "logs").glob(f"*_{name}")
        return Outcome(status, folder)

    return run
