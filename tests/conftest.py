"""What holds for every test: nothing is fetched, and hypothesis does not time a busy machine."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import settings

ROOT = Path(__file__).parents[1]

# Before transformers is imported: a test that needs a hub must fail here, not on the next machine.
os.environ.setdefault("HF_HUB_OFFLINE", "1")

settings.register_profile("steady", deadline=None, derandomize=True, max_examples=50)
settings.load_profile("steady")


@pytest.fixture(scope="session")
def untrained_miniature(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untrained miniature of the shipped form, with a judge and a word to compose with."""
    import torch
    from omegaconf import OmegaConf
    from safetensors.torch import save_file
    from transformers import BertTokenizer, CLIPConfig, CLIPModel

    from ldm.modules.embedding_file import write_words
    from ldm.util import instantiate_from_config

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
    judge = CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=8))
    judge.save_pretrained(folder / "judge")
    tokenizer.save_pretrained(folder / "judge")
    width = config.model.params.cond_stage_config.params.n_embed
    for name in ("sepia", "chalk"):
        word = {"*": torch.randn(1, width)}
        write_words(folder / "words" / f"{name}.safetensors", word, {"*": 5})
    return folder
