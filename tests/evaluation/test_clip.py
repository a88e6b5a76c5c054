"""CLIP and DINO scores equal those of `transformers` alone; missing weights are one clear line."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers.image_utils import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD

from ldm.evaluation.clip import ClipExtractor
from ldm.evaluation.evaluate import evaluate
from ldm.evaluation.extractors import (
    MEAN,
    STD,
    DinoExtractor,
    default_extractor,
    default_selector,
    extractor_facts,
    find_dino,
    find_extractor,
)
from ldm.evaluation.similarity import without_placeholders
from ldm.util import UserError
from tests.modules.vocabularies import write_clip

ROOT = Path(__file__).parents[2]
SMALL = {
    "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2
}  # fmt: skip
PROMPTS = ("a photo of * on the moon", "a cat, *", "*")


@pytest.fixture(scope="module", params=[224, 32])
def clip_folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small CLIP with random weights that reads images of 224 (the paper's) or 32 pixels."""
    from transformers import CLIPConfig, CLIPModel, CLIPTokenizer

    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("clip")
    write_clip(folder)
    tokenizer = CLIPTokenizer.from_pretrained(folder)
    text = {
        "vocab_size": len(tokenizer),
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        **SMALL,
    }
    vision = {"image_size": request.param, "patch_size": request.param // 4, **SMALL}
    config = CLIPConfig(text_config=text, vision_config=vision, projection_dim=16)
    CLIPModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def dino_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small ViT as DINO's files hold one: no pooler."""
    from transformers import ViTConfig, ViTModel

    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("dino")
    config = ViTConfig(image_size=112, patch_size=28, **SMALL)
    ViTModel(config, add_pooling_layer=False).save_pretrained(folder)
    return folder


def some_images(count: int = 5) -> list[Image.Image]:
    """Pictures of several sizes and shapes."""
    rng = np.random.default_rng(0)
    sizes = [(256, 256), (64, 64), (300, 200), (97, 130), (224, 224)]
    return [
        Image.fromarray(rng.integers(0, 256, (*sizes[i % 5], 3), dtype=np.uint8))
        for i in range(count)
    ]


def by_transformers(folder: Path, images: list[Image.Image], texts: list[str]):
    """Embed by transformers' processor and model, one image and one text at a time."""
    from transformers import CLIPModel, CLIPTokenizer
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    model = CLIPModel.from_pretrained(folder).eval()
    side = model.config.vision_config.image_size
    processor = CLIPImageProcessorPil(
        size={"shortest_edge": side}, crop_size={"height": side, "width": side}
    )
    tokenizer = CLIPTokenizer.from_pretrained(folder)
    seen, read = [], []
    with torch.no_grad():
        for image in images:
            tokens = tokenizer(["cat"], return_tensors="pt")
            pixels = processor(images=image, return_tensors="pt")
            seen.append(model(**tokens, **pixels).image_embeds[0])
        for text in texts:
            tokens = tokenizer([text], truncation=True, max_length=77, return_tensors="pt")
            read.append(model(**tokens, **pixels).text_embeds[0])
    return torch.stack(seen), torch.stack(read)


def test_features_equal_transformers_alone(clip_folder: Path) -> None:
    extractor = ClipExtractor.load(clip_folder)
    texts = ["a cat", "a photo of a cat on the moon", "", "cat " * 100]
    images, words = by_transformers(clip_folder, some_images(), texts)
    torch.testing.assert_close(extractor.image_features(some_images()), images, atol=1e-6, rtol=0)
    torch.testing.assert_close(extractor.text_features(texts), words, atol=1e-6, rtol=0)


def by_pil(image: Image.Image, size: tuple[int, int], mean: list[float], std: list[float]):
    """Prepare an image by PIL and numpy alone, resized to exactly (width, height)."""
    levels = np.asarray(image.resize(size, Image.Resampling.BICUBIC), np.float64)
    scaled = (levels * (1 / 255)).astype(np.float32)
    normal = (scaled - np.float32(mean)) / np.float32(std)
    return torch.from_numpy(normal.transpose(2, 0, 1))


def test_pixels_are_pils(clip_folder: Path) -> None:
    extractor = ClipExtractor.load(clip_folder)
    side = extractor.model.config.vision_config.image_size
    square = [image for image in some_images() if image.width == image.height]
    expected = [by_pil(i, (side, side), OPENAI_CLIP_MEAN, OPENAI_CLIP_STD) for i in square]
    assert torch.equal(extractor.pixels(square), torch.stack(expected))


def test_the_folder_says_how_images_are_prepared(tmp_path: Path, clip_folder: Path) -> None:
    """No crop, and another mean and deviation, as a CLIP of another origin may have."""
    shutil.copytree(clip_folder, tmp_path / "clip")
    side = json.loads((clip_folder / "config.json").read_text())["vision_config"]["image_size"]
    mean, std = [0.5, 0.4, 0.3], [0.2, 0.25, 0.3]
    own = {
        "image_processor_type": "CLIPImageProcessor", "resample": 3, "do_center_crop": False,
        "size": {"height": side, "width": side}, "image_mean": mean, "image_std": std,
    }  # fmt: skip
    (tmp_path / "clip" / "preprocessor_config.json").write_text(json.dumps(own))
    expected = [by_pil(image, (side, side), mean, std) for image in some_images()]
    found = ClipExtractor.load(tmp_path / "clip").pixels(some_images())
    assert torch.equal(found, torch.stack(expected))
    grey = some_images()[0].convert("L")
    assert torch.equal(
        ClipExtractor.load(tmp_path / "clip").pixels([grey]),
        by_pil(grey.convert("RGB"), (side, side), mean, std)[None],
    )


def test_a_clip_with_word_pieces_equals_transformers_alone(untrained_miniature: Path) -> None:
    from transformers import BertTokenizer, CLIPModel

    folder = untrained_miniature / "scorer"
    texts = ["a red mug on the beach", "a star", ""]
    model = CLIPModel.from_pretrained(folder).eval()
    tokenizer = BertTokenizer.from_pretrained(folder)
    with torch.no_grad():
        read = [
            model.get_text_features(**_without_types(tokenizer([text], return_tensors="pt")))
            for text in texts
        ]
    expected = torch.cat([getattr(one, "pooler_output", one) for one in read])
    found = find_extractor(folder).text_features(texts)
    torch.testing.assert_close(
        found, torch.nn.functional.normalize(expected, dim=-1), atol=1e-6, rtol=0
    )


def _without_types(tokens: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Leave out what only BERT reads."""
    return {name: tokens[name] for name in ("input_ids", "attention_mask")}


def test_scores_equal_transformers_alone(clip_folder: Path) -> None:
    """Every score of an evaluation, against sums written out over transformers' own embeddings."""
    generated = some_images(4 * 3)
    training = some_images(3)
    found = evaluate(
        lambda prompts, each: generated[: len(prompts) * each], ClipExtractor.load(clip_folder),
        training, PROMPTS[:2], image_prompt=PROMPTS[2], images=4,
    )  # fmt: skip
    texts = [without_placeholders(prompt, ["*"]) for prompt in PROMPTS[:2]]
    images, words = by_transformers(clip_folder, generated + training, texts)
    own, given = images[:4], images[12:]
    pairs = [float(a @ b) for a in own for b in given]
    assert found.image.value == pytest.approx(sum(pairs) / 12, abs=1e-5)
    for i, score in enumerate(found.prompts):
        part = images[4 * (i + 1) : 4 * (i + 2)]
        cosines = [float(a @ words[i]) for a in part]
        average = part.mean(0)
        assert score.mean.value == pytest.approx(sum(cosines) / 4, abs=1e-5)
        of_average = float(average @ words[i] / average.norm())
        assert score.of_average.value == pytest.approx(of_average, abs=1e-5)


def test_more_images_than_a_batch_keep_their_order(clip_folder: Path) -> None:
    extractor = ClipExtractor.load(clip_folder)
    many = some_images(37)
    alone = torch.cat([extractor.image_features([image]) for image in many[-5:]])
    torch.testing.assert_close(extractor.image_features(many)[-5:], alone, atol=1e-6, rtol=0)


def test_dino_features_equal_transformers_alone(dino_folder: Path) -> None:
    from transformers import ViTModel
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    processor = CLIPImageProcessorPil(
        size={"shortest_edge": 128}, crop_size={"height": 112, "width": 112},
        image_mean=list(MEAN), image_std=list(STD),
    )  # fmt: skip
    model = ViTModel.from_pretrained(dino_folder, add_pooling_layer=False).eval()
    with torch.no_grad():
        pixels = [processor(images=image, return_tensors="pt") for image in some_images()]
        tokens = torch.cat([model(**p).last_hidden_state[:, 0] for p in pixels])
    expected = torch.nn.functional.normalize(tokens, dim=-1)
    extractor = find_dino(dino_folder)
    assert isinstance(extractor, DinoExtractor)
    torch.testing.assert_close(extractor.image_features(some_images()), expected, atol=1e-6, rtol=0)


def test_the_folder_decides_the_extractor(clip_folder: Path, untrained_miniature: Path) -> None:
    clip, own = find_extractor(clip_folder), find_extractor(untrained_miniature / "scorer")
    assert isinstance(clip, ClipExtractor)
    assert isinstance(own, ClipExtractor)
    facts = extractor_facts(clip_folder, clip)
    assert facts == extractor_facts(clip_folder, find_extractor(str(clip_folder)))
    assert facts["hash"] != extractor_facts(untrained_miniature / "scorer", own)["hash"]
    weights = untrained_miniature / "model.safetensors"
    assert default_extractor(weights) == str(untrained_miniature / "scorer")
    assert default_extractor(clip_folder / "model.safetensors") == ClipExtractor.published


def test_one_clip_chooses_and_another_reports(untrained_miniature: Path, tmp_path: Path) -> None:
    """The selector comes first for choices, and never reports."""
    weights = tmp_path / "model.safetensors"
    assert default_selector(weights) == default_extractor(weights) == ClipExtractor.published
    shutil.copytree(untrained_miniature / "scorer", tmp_path / "scorer")
    assert default_selector(weights) == default_extractor(weights) == str(tmp_path / "scorer")
    shutil.copytree(untrained_miniature / "scorer", tmp_path / "selector")
    assert default_selector(weights) == str(tmp_path / "selector")
    assert default_extractor(weights) == str(tmp_path / "scorer")


def test_missing_weights_say_how_to_get_them(
    tmp_path: Path, clip_folder: Path, dino_folder: Path
) -> None:
    line = r"run `hf download openai/clip-vit-base-patch32` .* --extractor models/miniature/scorer$"
    for name in (ClipExtractor.published, "models/none", "no-such-folder", tmp_path / "none"):
        with pytest.raises(UserError, match=line):
            find_extractor(name)
    with pytest.raises(UserError, match=r"hf download facebook/dino-vits16.*leave --dino out$"):
        find_dino("facebook/dino-vits16")
    with pytest.raises(UserError, match="is a 'vit' model: give a CLIP"):
        find_extractor(dino_folder)
    with pytest.raises(UserError, match="is a 'clip' model: give a ViT"):
        find_dino(clip_folder)


@pytest.mark.parametrize("broken", ["config.json", "model.safetensors", "tokenizer.json"])
@pytest.mark.parametrize("how", ["gone", "cut"])
def test_damaged_folders_are_one_line(
    tmp_path: Path, clip_folder: Path, broken: str, how: str
) -> None:
    folder = tmp_path / "clip"
    shutil.copytree(clip_folder, folder)
    for extra in ("vocab.json", "merges.txt"):  # the tokenizer's older files
        (folder / extra).unlink(missing_ok=True)
    if how == "gone":
        (folder / broken).unlink()
    else:
        (folder / broken).write_bytes((folder / broken).read_bytes()[:50])
    with pytest.raises(UserError) as caught:
        find_extractor(folder)
    assert str(folder) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_weights_that_lack_entries_are_refused(tmp_path: Path, clip_folder: Path) -> None:
    from safetensors.torch import load_file, save_file

    folder = tmp_path / "clip"
    shutil.copytree(clip_folder, folder)
    weights = load_file(folder / "model.safetensors")
    del weights["text_projection.weight"]
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(UserError, match=r"lack 1 entries, text_projection\.weight first"):
        find_extractor(folder)
    config = json.loads((folder / "config.json").read_text())
    config["projection_dim"] = 8
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match="cannot be read"):
        find_extractor(folder)


@pytest.mark.parametrize("answers", [True, False])
def test_a_hub_out_of_reach_is_asked_once(answers: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    from ldm.evaluation import extractors

    class Session:
        def head(self, url: str, timeout: float) -> None:
            asked.append((url, timeout))
            if not answers:
                raise ConnectionError("no network")

    asked: list[tuple[str, float]] = []
    monkeypatch.setattr(huggingface_hub, "get_session", Session)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    assert extractors._hub_answers() is answers
    assert asked == [(huggingface_hub.constants.ENDPOINT, 5)]


def test_the_end_that_clip_does_not_read_is_a_warning(
    clip_folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    clip = ClipExtractor.load(clip_folder)
    clip.text_features(["a cat"])
    assert not caplog.text
    clip.text_features(["a " * 75 + "photo of the moon"] * 2)
    clip.text_features(["a " * 75 + "photo of the moon"])
    (record,) = caplog.records
    assert "CLIP reads 77: its end does not count in the score: " in record.message
    assert "moon" in record.message
