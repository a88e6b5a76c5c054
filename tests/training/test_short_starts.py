"""Short starts: which first value they choose, and that they change nothing else of a run."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf
from torch import Tensor

import main
from ldm.checkpoint.loading import load_model
from ldm.experiments.benchmark.sides import make_batch
from ldm.models.diffusion.ddpm import LatentDiffusion
from ldm.training import short_starts
from ldm.training.callbacks import CUDACallback
from ldm.training.short_starts import ShortStarts, candidate_tokens
from ldm.words.manager import EmbeddingManager
from tests.training.conftest import Outcome, tiny_config

Learn = Callable[..., Outcome]
QUIET = ("--limit_val_batches", "0", "--no-test")


def starting(count: int = 3, steps: int = 2, candidates: int = 6, batches: int = 2) -> list[str]:
    """The overrides that switch it on."""
    place = "lightning.callbacks.short_starts"
    values = {"count": count, "steps": steps, "candidates": candidates, "batches": batches}
    return [
        f"{place}.target=ldm.training.short_starts.ShortStarts",
        *(f"{place}.params.{name}={value}" for name, value in values.items()),
    ]


@pytest.fixture
def model(vocabulary: Path, base: Path) -> LatentDiffusion:
    """The tiny model with a word that begins at "dog"."""
    config = tiny_config(vocabulary)
    config.model.params.personalization_config.params.initializer_words = ["dog"]
    model = load_model(OmegaConf.create({"model": config.model}), str(base))
    assert isinstance(model, LatentDiffusion)
    model.learning_rate = 0.01
    return model.train()


def started(callback: ShortStarts, model: LatentDiffusion, step: int = 0) -> tuple[Tensor, Any]:
    """The word after the callback met a trainer, and the steps whose batches it asked for."""
    asked: list[tuple[int, int]] = []

    def batches(name: str, first_step: int, count: int) -> list[dict[str, Any]]:
        asked.append((first_step, count))
        return [{"caption": ["a photo of *"]}] * count

    trainer = SimpleNamespace(
        global_step=step,
        max_steps=100,
        is_global_zero=True,
        datamodule=SimpleNamespace(batches=batches),
        strategy=SimpleNamespace(broadcast=lambda value: value),
        precision_plugin=SimpleNamespace(forward_context=torch.enable_grad),
    )
    callback.on_train_start(trainer, model)  # type: ignore[arg-type]
    assert model.embedding_manager is not None
    return model.embedding_manager.word("*").detach().clone(), asked


def loss_to(model: LatentDiffusion, targets: Sequence[Tensor]) -> Callable[[Any, Any], Tensor]:
    """A loss with a minimum at each target, all equally deep but the first, which is deepest."""

    def losses(batch: Any, embedding_manager: Any) -> Tensor:
        assert model.embedding_manager is not None
        ids = model.cond_stage_model.tokenize(batch["caption"])
        spliced = embedding_manager(ids, torch.zeros(*ids.shape, targets[0].shape[1]))
        words = spliced[ids == model.embedding_manager.token_id("*")]
        away = torch.stack([(words - target).square().sum(1) for target in targets], 1)
        return (away + 0.1 * (torch.arange(len(targets)) > 0)).amin(1)

    return losses


def test_another_start_is_taken_where_the_initializer_words_minimum_is_higher(
    model: LatentDiffusion, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    manager = model.embedding_manager
    assert manager is not None
    token = candidate_tokens(manager.embedder, 6, model.seed)[4]
    best, own = manager.embedder.token_vectors([token]).detach(), manager.word("*").detach().clone()
    monkeypatch.setattr(model, "sample_losses", loss_to(model, [best + 0.001, own]))
    with caplog.at_level("INFO"):
        word, asked = started(ShortStarts(2, 3, 6, 2), model)
    assert (word - best).norm() < (own - best).norm() / 2
    assert asked == [(0, 3), (100, 2)]
    name = manager.embedder.tokenizer.decode([token])
    assert f"the one from {name!r} is best" in caplog.text


def test_the_initializer_words_own_start_is_kept_where_it_is_best(
    model: LatentDiffusion, monkeypatch: pytest.MonkeyPatch
) -> None:
    manager = model.embedding_manager
    assert manager is not None
    own = manager.word("*").detach().clone()
    monkeypatch.setattr(model, "sample_losses", loss_to(model, [own + 0.001]))
    word, _ = started(ShortStarts(3, 3, 6, 1), model)
    torch.testing.assert_close(word, own, atol=0.05, rtol=0)
    assert all(p.grad is None for p in model.parameters())


def test_rounds_double_their_samples_and_use_each_once() -> None:
    batches = [{"caption": list("abcd"), "sample": torch.arange(4) + 4 * i} for i in range(3)]
    rounds = list(short_starts._rounds(batches))
    assert [len(part["caption"]) for part in rounds] == [1, 2, 4]
    assert torch.cat([part["sample"] for part in rounds]).tolist() == list(range(7))
    assert "".join(text for part in rounds for text in part["caption"]) == "abcdabc"


@pytest.mark.parametrize("weight", [0.0, 0.1])
def test_starts_that_share_a_batch_are_those_of_batches_of_their_own(
    model: LatentDiffusion, monkeypatch: pytest.MonkeyPatch, weight: float
) -> None:
    """Against the run's own step, with its optimizer and its regularization."""
    manager = model.embedding_manager
    assert manager is not None
    model.embedding_reg_weight = weight
    batch = make_batch(model, 4)
    batches = [batch | model.batch_noise()(batch | {"sample": torch.arange(4) + i}) for i in (0, 9)]
    tokens = candidate_tokens(manager.embedder, 5, model.seed)
    starts = manager.embedder.token_vectors(tokens).detach()[:, None]
    own = manager.string_to_param_dict["*"]
    initial = own.detach().clone()
    learned = short_starts._trained(model, "*", starts, batches)
    losses = short_starts._losses(model, "*", learned, batches)
    assert torch.equal(own, initial)
    monkeypatch.setattr(manager, "distance_to_initializers", lambda: (own - initial).square().sum())
    for start, word, loss in zip(starts, learned, losses, strict=True):
        own.data.copy_(start)
        optimizer = model.configure_optimizers()
        for shown in batches:
            optimizer.zero_grad()
            model.shared_step(shown).loss.backward()
            optimizer.step()
        torch.testing.assert_close(word, own.detach(), atol=2e-4, rtol=0)
        assert (word - start).norm() > 0.01
        with torch.no_grad():
            own.copy_(word)
            steps = [model.shared_step(shown).loss for shown in batches]
        torch.testing.assert_close(loss, torch.stack(steps).mean(), atol=1e-5, rtol=1e-5)


def test_a_resumed_run_and_words_on_a_sphere_are_left_alone(model: LatentDiffusion) -> None:
    manager = model.embedding_manager
    assert manager is not None
    own = manager.word("*").detach().clone()
    word, asked = started(ShortStarts(), model, step=5)
    assert torch.equal(word, own)
    assert not asked

    class Sphere(EmbeddingManager):
        pass

    manager.__class__ = Sphere
    word, asked = started(ShortStarts(), model)
    assert torch.equal(word, own)
    assert not asked


def test_candidates_are_distinct_words_of_the_seed(model: LatentDiffusion) -> None:
    assert model.embedding_manager is not None
    embedder = model.embedding_manager.embedder
    tokens = candidate_tokens(embedder, 1000, 1)
    assert sorted([*tokens, *embedder.special_ids]) == list(range(embedder.vocab_size))
    assert candidate_tokens(embedder, 5, 1) == tokens[:5] != candidate_tokens(embedder, 5, 2)


def test_the_run_continues_from_the_choice_as_from_any_word(
    learn: Learn, caplog: pytest.LogCaptureFixture
) -> None:
    """Its steps are those of a run whose word comes from a file."""
    with caplog.at_level("INFO"):
        chosen = learn("chosen", "--max_steps", "3", *QUIET, *starting())
    assert chosen.status == 0
    assert "of 3 short starts" in caplog.text
    words: list[Tensor] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(CUDACallback, "on_train_batch_start", keep_first(words), raising=False)
        again = learn("again", "--max_steps", "3", *QUIET, *starting())
    assert torch.equal(again.word(), chosen.word())
    file = chosen.folder.parent / "start.pt"
    torch.save({"string_to_param": {"*": words[0]}, "string_to_token": {"*": 5}}, file)
    plain = learn("plain", "--max_steps", "3", *QUIET, "--embedding_manager_ckpt", str(file))
    assert torch.equal(plain.word(), chosen.word())


def keep_first(words: list[Tensor]) -> Callable[..., None]:
    """A hook that keeps the word before each step."""

    def keep(self: object, trainer: object, module: Any, batch: object, index: int) -> None:
        words.append(module.embedding_manager.word("*").detach().clone())

    return keep


def test_an_interrupted_run_ends_like_a_whole_one(learn: Learn) -> None:
    whole = learn("whole", "--max_steps", "4", *QUIET, *starting())

    def interrupt(self: object, trainer: object, module: object, batch: object, i: int) -> None:
        if i == 1:
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(CUDACallback, "on_train_batch_start", interrupt, raising=False)
        part = learn("part", "--max_steps", "4", *QUIET, *starting())
    assert part.status == 128 + signal.SIGTERM
    assert main.main(["-t", "--resume", str(part.folder), "--no-test"]) == 0
    assert torch.equal(part.word(), whole.word())


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"count": 0}, "count must be at least 1"),
        ({"steps": 0}, "steps must be at least 1"),
        ({"batches": 0}, "batches must be at least 1"),
        ({"count": 4, "candidates": 2}, "candidates must be at least 3"),
    ],
)
def test_values_out_of_range(values: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ShortStarts(**values)
