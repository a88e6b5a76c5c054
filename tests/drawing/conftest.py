"""A tiny model as its user has it: configuration, weights, vocabulary and learned words."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

VOCABULARY = [
    *("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "*", "@", "#", ",", ".", "##s"),
    *("a", "an", "the", "of", "on", "in", "photo", "painting", "red", "blue", "cat", "dog"),
    *("beach", "moon", "night", "ring", "star"),
]


@dataclass(frozen=True)
class TinyModel:
    """Paths of a model's files."""

    folder: Path
    config: Path
    checkpoint: Path  # .safetensors
    ckpt: Path  # the same weights in the published form
    word: Path  # "*" learned for this model
    other_word: Path  # another "*"


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> TinyModel:
    from safetensors.torch import save_file

    from ldm.checkpoint import load_model
    from ldm.modules.embedding_file import write_words

    folder = tmp_path_factory.mktemp("tiny")
    shutil.copy(Path(__file__).with_name("tiny.yaml"), folder / "config.yaml")
    (folder / "tokenizer").mkdir()
    (folder / "tokenizer" / "vocab.txt").write_text("\n".join(VOCABULARY) + "\n")
    files = TinyModel(
        folder,
        folder / "config.yaml",
        folder / "model.safetensors",
        folder / "model.ckpt",
        folder / "word.pt",
        folder / "other.safetensors",
    )
    model = load_model(files.config, None)
    rng = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if not name.startswith("embedding_manager."):
                spread = 0.2 if weight.ndim < 2 else weight[0].numel() ** -0.5
                weight.normal_(0.0, spread, generator=rng)
                weight += float(weight.ndim == 1 and name.endswith("weight"))
    state = {k: v for k, v in model.state_dict().items() if not k.startswith("embedding_manager.")}
    save_file(state, files.checkpoint)
    extra = {"model_ema.decay": torch.tensor(0.9999), "model_ema.num_updates": torch.tensor(7)}
    torch.save({"state_dict": {**state, **extra}}, files.ckpt)
    write_words(files.word, {"*": torch.randn(2, 32, generator=rng)}, {"*": 5})
    write_words(files.other_word, {"*": torch.randn(1, 32, generator=rng)})
    return files
