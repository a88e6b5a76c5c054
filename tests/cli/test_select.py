"""scripts/select_word.py on the saved words of a run, and its refusals."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from PIL import Image

from ldm.cli.select import main
from ldm.evaluation import sources
from ldm.evaluation.prompts import read_prompts
from ldm.inference import GeneratedImage
from ldm.models.diffusion.ddpm import LatentDiffusion
from ldm.util import UserError
from ldm.words.files import read_words, write_words

PROMPTS = Path(__file__).parents[2] / "examples" / "prompts"
FEW = ("--pictures", "2", "--steps", "1", "--device", "cpu")


@pytest.fixture
def run(untrained_miniature: Path, tmp_path: Path) -> Path:
    """A log folder as main.py leaves one, with three saved words."""
    folder, images = tmp_path / "logs" / "mugs", tmp_path / "mugs"
    images.mkdir()
    rng = np.random.default_rng(0)
    for i in range(2):
        Image.fromarray(rng.integers(0, 255, (16, 16, 3), np.uint8)).save(images / f"{i}.png")
    torch.manual_seed(0)
    for step in (0, 5, 10, 100):
        name = f"embeddings_gs-{step}.safetensors" if step else "embeddings.safetensors"
        word = {"@": torch.randn(1, 128)}
        write_words(folder / "checkpoints" / name, word, metadata={"step": str(step)})
    (folder / "configs").mkdir()
    data = {"data": {"params": {"train": {"params": {"data_root": str(images)}}}}}
    base = {"run": {"base_checkpoint": str(untrained_miniature / "model.safetensors")}}
    OmegaConf.save(OmegaConf.create(data), folder / "configs" / "2026-project.yaml")
    OmegaConf.save(OmegaConf.create(base), folder / "configs" / "2026-lightning.yaml")
    return folder


def test_every_step_is_scored_with_its_own_word(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All scores come from the same noises, with one word after the other, none beside another."""
    used: list[tuple[list[str], torch.Tensor]] = []
    generate = sources.generate

    def watched(model: LatentDiffusion, *given: Any, **options: Any) -> list[GeneratedImage]:
        assert model.embedding_manager is not None
        words = model.embedding_manager.placeholders
        used.append((words, model.embedding_manager.word(words[0]).detach().clone()))
        return generate(model, *given, **options)

    monkeypatch.setattr(sources, "generate", watched)
    assert main([str(run), *FEW]) == 0
    files = [run / "checkpoints" / f"embeddings_gs-{step}.safetensors" for step in (5, 10, 100)]
    assert [words for words, _ in used] == [["@"]] * 3
    for (_, vectors), file in zip(used, files, strict=True):
        torch.testing.assert_close(vectors, read_words(file).words["@"], rtol=0, atol=0)
    plain = json.loads((run / "checkpoints" / "selection.json").read_text())
    assert len({found["image"]["value"] for found in plain["steps"].values()}) == 3


def test_a_run_says_itself_what_it_was_learned_from(run: Path) -> None:
    assert main([str(run), *FEW]) == 0
    checkpoints = run / "checkpoints"
    plain = json.loads((checkpoints / "selection.json").read_text())
    assert list(plain["steps"]) == ["5", "10", "100"]
    assert plain["settings"]["seed"] == 1_000_000
    assert plain["settings"]["extractor"]["kind"] == "ClipExtractor"
    asked = [prompt["prompt"] for prompt in plain["steps"]["5"]["prompts"]]
    listed = read_prompts(PROMPTS / "miniature-selection.txt")
    assert asked == [prompt.replace("*", "@") for prompt in listed]
    best = read_words(checkpoints / "best.safetensors")
    chosen = read_words(checkpoints / f"embeddings_gs-{plain['chosen']}.safetensors")
    assert torch.equal(best.words["@"], chosen.words["@"])
    assert best.metadata["selected_step"] == best.metadata["step"] == str(plain["chosen"])
    assert best.metadata["selection_extractor_hash"] == plain["settings"]["extractor"]["hash"]

    with pytest.raises(UserError, match=r"best\.safetensors is there already: give --again"):
        main([str(run), *FEW])
    # Whatever the image similarity, the best text.
    assert main([str(checkpoints), *FEW, "--again", "--tolerance", "2"]) == 0
    plain = json.loads((checkpoints / "selection.json").read_text())
    texts = {int(step): found["text"]["value"] for step, found in plain["steps"].items()}
    assert plain["chosen"] == max(texts, key=texts.__getitem__)


def test_prompts_for_choosing_are_not_those_of_the_evaluation() -> None:
    for name in ("paper", "miniature"):
        held_out = set(read_prompts(PROMPTS / f"{name}-selection.txt"))
        assert not held_out & set(read_prompts(PROMPTS / f"{name}.txt"))


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["--tolerance", "-1"], r"--tolerance must be at least 0, got -1\.0"),
        (["--pictures", "0"], "--images must be at least 1, got 0"),
        (["--model", "nowhere"], "checkpoint nowhere does not exist"),
        (["--data_root", "nowhere"], "'nowhere' is not a folder"),
        (["--prompts", "none.txt"], r"prompts none\.txt: No such file"),
        (["--extractor", "a/b"], "run `hf download openai/clip-vit"),
        (["--image_prompt", "a cat"], "'a cat' names no learned word: put '@'"),
    ],
)
def test_mistakes_show_before_the_model_is_read(
    run: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], line: str
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise AssertionError("the model was read")

    monkeypatch.setattr("ldm.inference.load_model", fail)
    with pytest.raises(UserError, match=line):
        main([str(run), *FEW, *arguments])
    assert not (run / "checkpoints" / "best.safetensors").exists()


def test_a_folder_without_words_or_without_facts(run: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such folder"):
        main([str(tmp_path / "none"), *FEW])
    with pytest.raises(UserError, match="no embeddings_gs-<step>.safetensors in"):  # noqa: RUF043
        main([str(tmp_path / "mugs"), *FEW])
    for file in (run / "configs").iterdir():
        file.unlink()
    with pytest.raises(UserError, match="does not say where its base weights are: give --model"):
        main([str(run), *FEW])
