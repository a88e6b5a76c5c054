"""The commands on bases whose text encoder, prediction or conditioning differs from the 1.4B's."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from ldm.cli import edit, evaluate, img2img, invert, select, train, txt2img
from ldm.words.files import read_words
from tests.checkpoint.pipelines import PIPELINES

SCORER = ("--extractor", "models/miniature/scorer")
FEW = ("--pictures", "2", "--steps", "1", "--device", "cpu", *SCORER)


@pytest.fixture(scope="module", params=["sd2-v", "sdxl"])
def place(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a base, a concept's images, an image, a mask, and a run that learned a word."""
    folder = tmp_path_factory.mktemp(request.param)
    PIPELINES[request.param](folder / "vocabulary").save_pretrained(folder / "base")
    (folder / "cats").mkdir()
    for path in ("cats/a.png", "cats/b.png", "image.png"):
        Image.effect_noise((64, 64), 60).convert("RGB").save(folder / path)
    mask = Image.new("L", (64, 64))
    mask.paste(255, (0, 0, 32, 64))
    mask.save(folder / "mask.png")
    line = ["-t", "--no-test", "--model", folder / "base", "--data_root", folder / "cats"]
    line += ["--init_word", "cat", "--max_steps", 2, "-l", folder / "logs", "-n", "run"]
    line += ["--accelerator", "cpu", "data.params.num_workers=0"]
    line += ["lightning.callbacks.image_logger=null"]
    assert train.main([str(part) for part in line]) == 0
    return folder


def run_of(place: Path) -> Path:
    (run,) = (place / "logs").iterdir()
    return run


def common(place: Path, out: Path, *more: object) -> list[str]:
    """Return the options that every command has, and further ones."""
    word = run_of(place) / "checkpoints" / "embeddings.safetensors"
    line = ["--model", place / "base", "--embedding_path", word, "--device", "cpu"]
    return [str(part) for part in (*line, "--outdir", out, *more)]


def test_prompts_with_weights_a_negative_prompt_and_clip_skip(place: Path, tmp_path: Path) -> None:
    prompt = ("--prompt", "a photo of (*:1.2), cat", "--weighted_prompts", "--clip_skip", 2)
    more = ("--negative_prompt", "*, the moon", "--ddim_steps", 2, "--n_samples", 1)
    assert txt2img.main(txt2img.STABLE_DIFFUSION, common(place, tmp_path, *prompt, *more)) == 0
    assert list(tmp_path.rglob("*.png"))


def test_images_are_changed_edited_and_inverted(place: Path, tmp_path: Path) -> None:
    image = place / "image.png"
    few = ("--prompt", "a *", "--ddim_steps", 3, "--n_samples", 1)
    assert img2img.main(common(place, tmp_path / "a", "--init-img", image, *few)) == 0
    given = ("--image", image, "--prompt", "a *", "--steps", 2)
    assert edit.main(common(place, tmp_path / "b", *given, "--mask", place / "mask.png")) == 0
    assert invert.main(common(place, tmp_path / "c", *given)) == 0
    assert all(list((tmp_path / name).rglob("*.png")) for name in "abc")


def test_a_word_is_scored_and_a_step_is_selected(place: Path, tmp_path: Path) -> None:
    run, out = run_of(place), tmp_path / "scores"
    word = run / "checkpoints" / "embeddings.safetensors"
    line = ["--model", place / "base", "--embedding_path", word, "--data_root", place / "cats"]
    line += ["--output", out, "--resamples", 20, *FEW]
    assert evaluate.main([str(part) for part in line]) == 0
    assert -1 <= json.loads((out / "scores.json").read_text())["image"]["value"] <= 1
    assert select.main([str(run), *FEW]) == 0
    assert read_words(run / "checkpoints" / "best.safetensors").metadata["selected_step"] == "2"
