"""The scorer's plumbing on a tiny untrained CLIP, and what the shipped one sees."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ldm.image_io import from_pil
from ldm.miniature.clip import MOST_IMAGES, PROMPTS, TRAINING, MiniatureClip, preprocess
from ldm.miniature.world import MiniatureWorld, Spec, render, sample_spec
from ldm.util import UserError

MODELS = Path(__file__).parents[2] / "models" / "miniature"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved untrained CLIP of the scorer's form, in half precision as shipped."""
    from transformers import BertTokenizer, CLIPConfig, CLIPModel

    tokenizer = BertTokenizer.from_pretrained(MODELS / "tokenizer")
    small = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
    small |= {"num_attention_heads": 2}
    text = small | {"vocab_size": len(tokenizer), "max_position_embeddings": 32}
    text |= {"bos_token_id": 2, "eos_token_id": 3, "pad_token_id": 0}
    vision = small | {"image_size": 16, "patch_size": 8}
    torch.manual_seed(0)
    model = CLIPModel(CLIPConfig(projection_dim=8, text_config=text, vision_config=vision))
    path = tmp_path_factory.mktemp("scorer")
    model.half().save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


def test_features_are_unit_vectors_in_float32(folder: Path) -> None:
    scorer = MiniatureClip.load(folder)
    images = scorer.image_features(torch.zeros(3, 3, 16, 16))
    texts = scorer.text_features(["a star", "a photo of a red mug on the beach"])
    assert (images.shape, texts.shape) == ((3, 8), (2, 8))
    for features in (images, texts):
        assert features.dtype == torch.float32
        torch.testing.assert_close(features.norm(dim=-1), torch.ones(len(features)))


def test_images_and_tensors_give_the_same_features(folder: Path) -> None:
    scorer = MiniatureClip.load(folder)
    pixels = render(Spec("star", "red"), 64)
    image = Image.fromarray(((pixels + 1) * 127.5).round().astype(np.uint8)).resize((16, 16))
    torch.testing.assert_close(
        scorer.image_features([image]), scorer.image_features(from_pil(image)[None])
    )
    mixed = scorer.image_features([image, image.resize((32, 32)), image.convert("L")])
    assert mixed.shape == (3, 8)
    torch.testing.assert_close(mixed[:1], scorer.image_features([image]))


def test_padding_does_not_change_a_text(folder: Path) -> None:
    scorer = MiniatureClip.load(folder)
    alone = scorer.text_features(["a star"])
    padded = scorer.text_features(["a star", "a photo of a red mug on the beach"])[:1]
    torch.testing.assert_close(alone, padded)


def test_classify_picks_the_prompt_nearest_to_the_image(folder: Path) -> None:
    scorer = MiniatureClip.load(folder)
    features = scorer.text_features(list(PROMPTS["scene"].values()))
    assert scorer.classify(features, "scene") == list(PROMPTS["scene"])
    pixels = torch.rand(2, 3, 16, 16)
    by_features = scorer.classify(scorer.image_features(pixels), "shape")
    assert scorer.classify(pixels, "shape") == by_features
    with pytest.raises(ValueError, match=r"attribute must be one of shape, .*, got 'mood'"):
        scorer.classify(features, "mood")


def test_preprocess_normalises_as_clip_does() -> None:
    from transformers.image_utils import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD

    black = preprocess(torch.full((1, 3, 8, 8), -1.0), 4)
    assert black.shape == (1, 3, 4, 4)
    expected = -torch.tensor(OPENAI_CLIP_MEAN) / torch.tensor(OPENAI_CLIP_STD)
    torch.testing.assert_close(black[0, :, 0, 0], expected)


def test_a_folder_without_a_scorer_is_one_clear_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no CLIP in .*train_clip\.py"):
        MiniatureClip.load(tmp_path)


def test_the_clip_that_chooses_and_the_clip_that_reports_share_no_image_and_no_seed() -> None:
    seeds = [images.seed for images in TRAINING.values()]
    # 0 is the diffusion model's seed.
    assert len({0, *seeds}) == 1 + len(TRAINING) == 3
    starts = sorted(images.first_index for images in TRAINING.values())
    assert all(b - a >= MOST_IMAGES for a, b in itertools.pairwise(starts))
    # Validation images begin at 2^40.
    assert starts[-1] + MOST_IMAGES <= 2**40
    shown = {
        name: {MiniatureWorld(seed=i.seed, first_index=i.first_index).spec(n) for n in range(100)}
        for name, i in TRAINING.items()
    }
    assert not shown["scorer"] & shown["selector"]


@pytest.mark.skipif(
    not (MODELS / "scorer" / "model.safetensors").is_file(), reason="the scorer is not trained"
)
def test_the_shipped_scorer_recognises_unseen_images() -> None:
    scorer = MiniatureClip.load(MODELS / "scorer")
    specs = [sample_spec(123, 2**41 + i) for i in range(96)]
    pixels = np.stack([render(spec, 64) for spec in specs])
    features = scorer.image_features(torch.from_numpy(pixels).permute(0, 3, 1, 2))
    for attribute, at_least in (("shape", 0.9), ("scene", 0.9)):
        found = scorer.classify(features, attribute)
        right = [a == getattr(spec, attribute) for a, spec in zip(found, specs, strict=True)]
        assert np.mean(right) >= at_least, attribute
    colourful = [i for i, spec in enumerate(specs) if spec.medium in ("photo", "painting")]
    found = scorer.classify(features[colourful], "colour")
    right = [a == specs[i].colour for a, i in zip(found, colourful, strict=True)]
    assert np.mean(right) >= 0.85


def test_answers_outside_the_vocabulary_are_left_out() -> None:
    scorer = MiniatureClip.load(MODELS / "scorer")
    known = scorer.tokenizer.get_vocab()
    media = scorer.answers["medium"]
    assert {"photo", "painting", "neon"} <= set(media)
    assert all(word in known for text in media.values() for word in text.split())
