"""What holds for every test, and the models that many of them share."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from hypothesis import settings

ROOT = Path(__file__).parents[1]

# Before transformers is imported: a test that needs a hub must fail here, not on the next machine.
os.environ.setdefault("HF_HUB_OFFLINE", "1")

settings.register_profile("steady", deadline=None, derandomize=True, max_examples=50)
settings.load_profile("steady")


@pytest.fixture(scope="session")
def untrained_miniature(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untrained miniature of the shipped form, with a scorer and a word to compose with."""
    import torch
    from omegaconf import OmegaConf
    from safetensors.torch import save_file
    from transformers import BertTokenizer, CLIPConfig, CLIPModel

    from ldm.util import instantiate_from_config
    from ldm.words.files import write_words

    folder = tmp_path_factory.mktemp("miniature")
    torch.manual_seed(0)
    config = OmegaConf.load(ROOT / "configs/miniature/finetune.yaml")
    del config.model.params.personalization_config
    weights = instantiate_from_config(config.model).state_dict()
    # Layers that begin at zero would hide the word.
    weights = {k: v if v.any() else torch.randn_like(v) / 10 for k, v in weights.items()}
    save_file({k: v.contiguous() for k, v in weights.items()}, folder / "model.safetensors")
    OmegaConf.save(OmegaConf.create({"model": config.model}), folder / "config.yaml")
    tokenizer = BertTokenizer.from_pretrained(ROOT / "models/miniature/tokenizer")
    small = {
        "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2
    }  # fmt: skip
    text = {"vocab_size": len(tokenizer), "max_position_embeddings": 32, "eos_token_id": 3, **small}
    vision = {"image_size": 64, "patch_size": 32, **small}
    scorer = CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=8))
    scorer.save_pretrained(folder / "scorer")
    tokenizer.save_pretrained(folder / "scorer")
    width = config.model.params.cond_stage_config.params.n_embed
    for name in ("sepia", "chalk"):
        word = {"*": torch.randn(1, width)}
        write_words(folder / "words" / f"{name}.safetensors", word, {"*": 5})
    return folder


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

    from ldm.checkpoint.loading import load_model
    from ldm.words.files import write_words

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
