"""The commands on bases whose text encoder, prediction or conditioning differs from the 1.4B's."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf
from PIL import Image
from safetensors import safe_open

from ldm.cli import edit, evaluate, img2img, invert, protocol, select, train, txt2img
from ldm.words.files import read_words
from tests.checkpoint.pipelines import PIPELINES

SCORER = ("--extractor", "models/miniature/scorer")
FEW = ("--pictures", "2", "--steps", "1", "--device", "cpu", *SCORER)


@pytest.fixture(scope="module", params=["sd1", "sd2-v", "sdxl"])
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
    learn(folder, folder / "logs")
    return folder


def learn(place: Path, logs: Path, *more: object) -> Path:
    """Learn a word in two steps, or as further arguments say; return the log folder."""
    line = ["-t", "--no-test", "--model", place / "base", "--data_root", place / "cats"]
    line += ["--init_word", "cat", "--max_steps", 2, "-l", logs, "-n", "run"]
    line += ["--accelerator", "cpu", "data.params.num_workers=0"]
    line += ["lightning.callbacks.image_logger=null", *more]
    assert train.main([str(part) for part in line]) == 0
    (run,) = logs.iterdir()
    return run


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


SECOND = (
    "second_stage.lightning.trainer.max_steps=2",
    *("second_stage.model.base_learning_rate=1e-2", "second_stage.model.params.model_lr=1e-3"),
)
VARIANTS = {
    "pivotal": SECOND,
    "pivotal_dreambooth": (*SECOND, "second_stage.data.params.train.params.class_pictures=2"),
    "per_image_tokens": (),
    "progressive": ("model.params.personalization_config.params.progressive_steps=1",),
    "directional": (),
}


@pytest.mark.parametrize(
    "variant",
    [
        pytest.param(name, marks=[pytest.mark.slow] if name == "pivotal_dreambooth" else [])
        for name in VARIANTS
    ],
)
def test_variants(place: Path, tmp_path: Path, variant: str) -> None:
    run = learn(place, tmp_path / "logs", "--variant", variant, *VARIANTS[variant])
    second = run / "second_stage" / "checkpoints"
    folder = second if second.is_dir() else run / "checkpoints"
    file, plain = (
        read_words(path / "embeddings.safetensors")
        for path in (folder, run_of(place) / "checkpoints")
    )
    count = 3 if variant == "progressive" else 1
    for found, first in ((file.words, plain.words), (file.second, plain.second)):
        assert found.keys() == first.keys()  # SDXL's second encoder has its own
        assert all(found[word].shape == (count, first[word].shape[1]) for word in first)
        assert all(not torch.equal(found[word], first[word]) for word in first)
    assert second.is_dir() == variant.startswith("pivotal")
    if second.is_dir():
        delta = second / "weight_delta.safetensors"
        with safe_open(delta, "pt") as file_of_delta:
            moved = " ".join(file_of_delta.keys())
        encoders = ("embedders.0.", "embedders.1.") if file.second else ("",)
        parts = ("model.diffusion_model.", *(f"cond_stage_model.{name}" for name in encoders))
        assert all(part in moved for part in parts)
        more = ("--weight_delta", delta, "--prompt", "a *", "--ddim_steps", 1, "--n_samples", 1)
        line = ["--model", place / "base", "--embedding_path", folder / "embeddings.safetensors"]
        line += ["--device", "cpu", "--outdir", tmp_path / "images", *more]
        assert txt2img.main(txt2img.STABLE_DIFFUSION, [str(part) for part in line]) == 0


@pytest.mark.slow
def test_a_benchmark_grid(place: Path, tmp_path: Path) -> None:
    """Two cells, with and without tuned networks, each in a process of its own."""
    parts = [str(path) for path in sorted((run_of(place) / "configs").glob("*.yaml"))]
    (tmp_path / "concepts").mkdir()
    (tmp_path / "concepts" / "cats").symlink_to(place / "cats")
    (tmp_path / "prompts.txt").write_text("a photo of * on the moon\n")
    content = {
        "base": parts,
        "checkpoint": str(place / "base"),
        "config": next(path for path in parts if path.endswith("-project.yaml")),
        "concepts": {
            "folder": str(tmp_path / "concepts"),
            "words": {"cats": {"first_word": "cat"}},
        },
        "variants": {"ours": None, "pivotal": {"overrides": list(SECOND)}},
        "seeds": [1],
        "prompts": str(tmp_path / "prompts.txt"),
        **{"steps": 1, "pictures": 1, "sampler_steps": 1, "resamples": 20},
        "extractor": "models/miniature/scorer",
    }
    OmegaConf.save(OmegaConf.create(content), tmp_path / "protocol.yaml")
    out = tmp_path / "grid"
    line = [str(tmp_path / "protocol.yaml"), "--output", str(out), "--workers", "1"]
    assert protocol.main([*line, "--device", "cpu"]) == 0
    rows = (out / "table.csv").read_text().splitlines()[1:]
    assert [row.split(",")[:2] for row in rows] == 2 * [["cats", "ours"]] + 2 * [
        ["cats", "pivotal"]
    ]
    for variant in ("ours", "pivotal"):
        word = read_words(out / "cells/cats" / variant / "seed1" / "word.safetensors")
        assert bool(word.second) == (place.name.startswith("sdxl"))
