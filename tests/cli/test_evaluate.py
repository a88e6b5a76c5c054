"""scripts/evaluate_model.py from end to end on an untrained miniature, and its refusals."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from ldm.checkpoint.loading import checkpoint_hash
from ldm.cli.evaluate import main
from ldm.image_io import read_settings
from ldm.util import UserError


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three training images."""
    folder = tmp_path_factory.mktemp("mugs")
    rng = np.random.default_rng(0)
    for i in range(3):
        Image.fromarray(rng.integers(0, 255, (20, 16, 3), np.uint8)).save(folder / f"{i}.png")
    return folder


class Evaluate:
    """Runs the command on few images and reads what it wrote."""

    def __init__(self, model: Path, images: Path, folder: Path) -> None:
        self.word = model / "words" / "sepia.safetensors"
        self.fixed = ["--model", model, "--data_root", images, "--output", folder]
        self.fixed += ["--pictures", 2, "--steps", 1, "--resamples", 20, "--device", "cpu"]
        self.folder = folder

    def __call__(self, *arguments: object) -> dict[str, Any]:
        assert main([str(a) for a in (*self.fixed, *arguments)]) == 0
        found: dict[str, Any] = json.loads((self.folder / "scores.json").read_text())
        return found


@pytest.fixture
def score(untrained_miniature: Path, images: Path, tmp_path: Path) -> Evaluate:
    """The command: score(more arguments) → scores.json."""
    return Evaluate(untrained_miniature, images, tmp_path / "out")


def test_a_word_is_scored(score: Evaluate, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO"):
        found = score("--embedding_path", score.word, "--save_pictures")
    name = found.pop("name")
    assert name == "sepia"
    assert found["image"]["low"] <= found["image"]["value"] <= found["image"]["high"]
    assert len(found["prompts"]) == 5  # the miniature's own
    facts = found["settings"]
    assert facts["words"] == [
        {"file": "sepia.safetensors", "hash": checkpoint_hash(score.word), "name": None}
    ]
    assert (facts["pictures"], facts["steps"], facts["scale"], facts["seed"]) == (2, 1, 5.0, 42)
    assert facts["extractor"]["kind"] == "ClipExtractor"
    assert len(facts["checkpoint_hash"]) == len(facts["extractor"]["hash"]) == 16
    assert list(facts["training"]) == ["0.png", "1.png", "2.png"]
    with (score.folder / "scores.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 3 + 3 + 2 * 5
    assert set(found["extra"]) == {"scene_accuracy", "medium_accuracy", "edit_accuracy"}
    assert float(rows[0]["value"]) == pytest.approx(found["image"]["value"], abs=1e-6)
    generated = sorted((score.folder / "pictures").iterdir())
    assert len(generated) == 2 * 6
    assert {read_settings(path)["seed"] for path in generated} == set(range(42, 54))
    assert "image similarity" in caplog.text


def test_the_same_command_gives_the_same_scores(score: Evaluate) -> None:
    arguments = ("--embedding_path", score.word, "--prompt", "a sketch of *")
    one = score(*arguments)
    with pytest.raises(UserError, match=r"holds scores already.*--again to replace"):
        score(*arguments)
    two = score(*arguments, "--again", "--batch_size", 1)
    assert two["text"]["value"] == pytest.approx(one["text"]["value"], abs=1e-3)
    for found in (one, two):
        found["settings"].pop("seconds")
    assert one["settings"] == two["settings"]
    other = score(*arguments, "--again", "--seed", 7)
    assert other["image"] != one["image"]


def test_prompts_come_from_files_and_flags(score: Evaluate, tmp_path: Path) -> None:
    file = tmp_path / "prompts.txt"
    file.write_text("# scenes\na photo of * on the moon\n")
    renamed = f"one={score.word}"
    found = score(
        "--embedding_path", renamed, "--prompts", file, "--prompt", "a sketch of one"
    )  # fmt: skip
    assert [p["prompt"] for p in found["prompts"]] == [
        "a photo of one on the moon",
        "a sketch of one",
    ]
    assert found["settings"]["image_prompt"] == "A photo of one"
    assert found["settings"]["placeholders"] == ["one"]


def test_what_the_paper_compares_with(score: Evaluate, images: Path, tmp_path: Path) -> None:
    given = score("--variant", "image_only")
    assert given["name"] == "image_only"
    assert given["settings"]["pictures"] == 3
    assert "steps" not in given["settings"]
    # Each image with itself too: 1 for three of the nine pairs.
    assert given["image"]["value"] == pytest.approx((1 + 2 * given["training"]) / 3, abs=1e-5)
    assert given["settings"]["source"] == "images"

    plain = score("--variant", "prompt_only", "--again")
    assert plain["settings"]["words"] == []

    text = tmp_path / "captions.txt"
    text.write_text("a red mug\na mug\n")
    captions = score("--variant", "human_captions", "--captions", text, "one mug", "--again")
    assert captions["settings"]["captions"] == ["a red mug", "a mug", "one mug"]
    beside = tmp_path / "captioned"
    shutil.copytree(images, beside)
    (beside / "0.txt").write_text("my mug\n")
    score.fixed[3] = beside
    assert score("--variant", "human_captions", "--again")["settings"]["captions"] == ["my mug"]


def test_clip_and_dino_score_where_they_are_given(
    score: Evaluate, tmp_path: Path, untrained_miniature: Path
) -> None:
    import torch
    from transformers import ViTConfig, ViTModel

    torch.manual_seed(0)
    small = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = ViTConfig(image_size=28, patch_size=14, intermediate_size=16, **small)
    ViTModel(config, add_pooling_layer=False).save_pretrained(tmp_path / "dino")
    scorer = untrained_miniature / "scorer"
    found = score(
        "--embedding_path", score.word, "--prompt", "a *", "--dino", tmp_path / "dino",
        "--extractor", scorer,
    )  # fmt: skip
    assert -1 <= found["dino"]["low"] <= found["dino"]["value"] <= 1
    assert found["settings"]["dino"]["kind"] == "DinoExtractor"


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        ([], "nothing to score: give a learned word"),
        (["--embedding_path", "WORD", "--prompt", "a cat"], "'a cat' names no learned word"),
        (["--embedding_path", "WORD", "--image_prompt", "a cat"], "'a cat' names no learned word"),
        (["--embedding_path", "WORD", "--prompts", "none.txt"], "prompts none.txt: No such file"),
        (["--embedding_path", "none.pt"], r"'none\.pt' does not exist"),
        (["--embedding_path", "WORD", "--variant", "image_only"], "leave --embedding_path out"),
        (["--embedding_path", "WORD", "--captions", "x"], "--captions go with --variant human"),
        (["--variant", "human_captions"], "needs --captions TEXT or FILE"),
        (["--variant", "imageonly"], "no variant 'imageonly': there are image_only"),
        (["--embedding_path", "WORD", "--data_root", "nowhere"], "'nowhere' is not a folder"),
        (["--embedding_path", "WORD", "--pictures", "0"], "--images must be at least 1, got 0"),
        (["--embedding_path", "WORD", "--steps", "0"], r"--steps must lie in 1\.\.1000, got 0"),
        (["--embedding_path", "WORD", "--scale", "-1"], "--scale must be at least 0"),
        (["--embedding_path", "WORD", "--seed", "-1"], "--seed must lie in"),
        (["--embedding_path", "WORD", "--extractor", "a/b"], "run `hf download openai/clip-vit"),
        (["--embedding_path", "WORD", "--dino", "a/b"], "run `hf download facebook/dino"),
        (["--embedding_path", "WORD", "--model", "nowhere"], "checkpoint nowhere does not exist"),
    ],
)
def test_mistakes_show_before_the_model_is_read(
    score: Evaluate, monkeypatch: pytest.MonkeyPatch, arguments: list[str], line: str
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise AssertionError("the model was read")

    monkeypatch.setattr("ldm.inference.load_model", fail)
    given = [str(score.word) if a == "WORD" else a for a in arguments]
    with pytest.raises(UserError, match=line) as caught:
        score(*given)
    assert "\n" not in str(caught.value)
    assert not score.folder.exists()


def test_a_caption_too_long_for_the_model_is_refused(score: Evaluate) -> None:
    with pytest.raises(UserError, match="tokens and the model reads 32"):
        score("--variant", "human_captions", "--captions", "a red mug " * 20)
