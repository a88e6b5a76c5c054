"""Several words in one run: each is what it would be alone; one that fails stops no other."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

import main
from ldm.data.many import ManyConcepts
from ldm.training import watch
from ldm.util import UserError
from ldm.words.files import read_words
from tests.training.conftest import Outcome

Learn = Callable[..., Outcome]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two folders of different numbers of images."""
    parent, rng = tmp_path_factory.mktemp("concepts"), np.random.default_rng(5)
    for name, count in (("first", 2), ("second", 3)):
        (parent / name).mkdir()
        for i in range(count):
            pixels = rng.integers(0, 255, (8, 8, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(parent / name / f"{i}.png")
    return [parent / "first", parent / "second"]


def words_of(folder: Path, name: str) -> Tensor:
    """The learned vectors of a word of a joint run."""
    path = folder / name / "checkpoints" / "embeddings.safetensors"
    return read_words(path).words["*"]


def joint(folders: list[Path], *more: str) -> list[str]:
    """The arguments for both words; flags given later win."""
    return ["--data_root", *map(str, folders), "--init_word", "dog", "cat", *more]


def test_each_word_is_what_it_would_be_alone(learn: Learn, folders: list[Path]) -> None:
    steps = ("--max_steps", "3", "lightning.images_per_step=4")
    alone = [
        learn(f"alone{i}", "--data_root", str(folder), "--init_word", word, *steps)
        for i, (folder, word) in enumerate(zip(folders, ("dog", "cat"), strict=True))
    ]
    both = learn("both", *joint(folders, "--max_steps", "3", "lightning.images_per_step=4"))
    assert both.status == 0
    for folder, outcome in zip(folders, alone, strict=True):
        word = words_of(both.folder, folder.name)
        torch.testing.assert_close(word, outcome.word(), atol=2e-5, rtol=0)
        file = read_words(both.folder / folder.name / "checkpoints" / "embeddings.safetensors")
        own = read_words(outcome.folder / "checkpoints" / "embeddings.safetensors")
        same = ("pictures", "learning_rate", "images_per_step", "step")
        assert [file.metadata[k] for k in same] == [own.metadata[k] for k in same]
    first, second = (words_of(both.folder, folder.name) for folder in folders)
    assert not torch.allclose(first, second)


def test_an_interrupted_run_resumes(learn: Learn, folders: list[Path], tmp_path: Path) -> None:
    whole = learn("whole", *joint(folders, "--max_steps", "4"))
    half = learn("half", *joint(folders, "--max_steps", "2"))
    assert main.main(["-t", "--resume", str(half.folder), "--max_steps", "4"]) == 0
    for folder in folders:
        assert torch.equal(words_of(whole.folder, folder.name), words_of(half.folder, folder.name))


def test_a_folder_that_cannot_be_used_stops_no_other(
    learn: Learn, folders: list[Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "empty").mkdir()
    roots = [str(folders[0]), str(tmp_path / "empty"), str(folders[1])]
    arguments = ["--data_root", *roots, "--init_word", "dog", "cat", "sculpture"]
    outcome = learn("three", *arguments, "--max_steps", "2")
    assert outcome.status == 1
    assert "empty: left out" in caplog.text
    assert sorted(p.name for p in outcome.folder.glob("*/checkpoints")) == ["checkpoints"] * 2
    assert not (outcome.folder / "empty").exists()


def test_a_word_that_is_not_finite_is_not_saved(
    learn: Learn, folders: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a GPU the words are looked at where the loss is logged, and before each save."""
    check = watch.WatchEach.on_train_batch_end

    def spoil(self, trainer, module, *rest):  # type: ignore[no-untyped-def]
        check(self, trainer, module, *rest)
        if trainer.global_step == 3:
            with torch.no_grad():
                next(module.embedding_manager.embedding_parameters()).fill_(torch.nan)

    good = learn("good", *joint(folders, "--max_steps", "3"))
    monkeypatch.setattr(watch.WatchEach, "on_train_batch_end", spoil)
    spoilt = learn("spoilt", *joint(folders, "--max_steps", "3"))
    for name in ("first", "second"):
        assert torch.equal(words_of(spoilt.folder, name), words_of(good.folder, name))


def test_a_word_that_is_not_finite_stops_no_other(
    learn: Learn,
    folders: list[Path],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    check = watch.WatchEach.on_train_batch_end

    def spoil(self, trainer, module, *rest):  # type: ignore[no-untyped-def]
        if trainer.global_step == 2:
            with torch.no_grad():
                next(module.embedding_manager.embedding_parameters()).fill_(torch.nan)
        check(self, trainer, module, *rest)

    monkeypatch.setattr(watch.WatchEach, "on_train_batch_end", spoil)
    with caplog.at_level(logging.ERROR):
        outcome = learn("spoilt", *joint(folders, "--max_steps", "4"))
    assert outcome.status == 0
    assert "first: stopped at step 2: its word is not finite" in caplog.text
    monkeypatch.undo()
    good = learn("good", *joint(folders, "--max_steps", "4"))
    short = learn("short", *joint(folders, "--max_steps", "1"))
    assert torch.equal(words_of(outcome.folder, "first"), words_of(short.folder, "first"))
    assert torch.equal(words_of(outcome.folder, "second"), words_of(good.folder, "second"))


def test_samples_are_those_of_each_concept(folders: list[Path]) -> None:
    kind = "ldm.data.personalized.PersonalizedBase"
    concepts = {f.name: {"target": kind, "params": {"data_root": str(f)}} for f in folders}
    many = ManyConcepts(concepts, block=2)
    assert [many.place(s) for s in range(8)] == [
        *[(0, 0), (0, 1), (1, 0), (1, 1)],
        *[(0, 2), (0, 3), (1, 2), (1, 3)],
    ]
    for sample in range(12):
        place, own = many.place(sample)
        concept = list(many.concepts.values())[place]
        item, wanted = many[sample], concept[own]
        assert item["caption"] == wanted["caption"]
        assert item["sample"] == own
        np.testing.assert_array_equal(item["image"], wanted["image"])
    ids = many.image_ids()
    assert ids == sorted(set(ids))
    assert len(ids) == sum(len(concept.image_ids()) for concept in many.concepts.values())


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--init_word", "dog"], "2 folders of --data_root and 1 --init_word: give one for each"),
        (["--placeholder_string", "*", "@"], "one name serves all words"),
        (["lightning.trainer.gradient_clip_val=1.0"], "none of the folders"),
    ],
)
def test_wrong_arguments_are_one_line(
    learn: Learn, folders: list[Path], more: list[str], said: str
) -> None:
    with pytest.raises(UserError, match=said):
        learn("wrong", *joint(folders), *more)
