"""The ideas that `fast` does not use: what the words of a real run end at, or start from."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from ldm.checkpoint.loading import load_model
from ldm.models.diffusion.ddpm import LatentDiffusion
from ldm.words.files import read_words
from tests.training.conftest import (  # noqa: F401 - fixtures of a run of a tiny model
    Outcome,
    arguments,
    base,
    learn,
    pictures,
    tiny_config,
    vocabulary,
)

Learn = Callable[..., Outcome]
SIX = ("--max_steps", "6", "--limit_val_batches", "0", "--no-test")
EACH = "lightning.modelcheckpoint.params.every_n_train_steps=1"


def lead(name: str, **params: int) -> list[str]:
    """The overrides that switch one on."""
    values = [f"lightning.callbacks.lead.params.{key}={value}" for key, value in params.items()]
    return [f"lightning.callbacks.lead.target=ldm.experiments.leads.{name}", *values]


def at_step(run: Outcome, step: int) -> torch.Tensor:
    """The word that a run saved after a step."""
    return run.word(f"embeddings_gs-{step}.pt")


def test_the_word_ends_at_the_mean_of_the_late_steps(learn: Learn) -> None:  # noqa: F811
    plain = learn("plain", *SIX, EACH)
    mean = torch.stack([at_step(plain, step) for step in (4, 5, 6)]).mean(0)
    found = learn("mean", *SIX, *lead("MeanOfLate", steps=3)).word()
    torch.testing.assert_close(found, mean)
    assert not torch.equal(found, plain.word())


def test_each_vector_keeps_the_norm_of_its_initializer_word(learn: Learn) -> None:  # noqa: F811
    found = learn("fixed", *SIX, *lead("FixedNorm"), EACH)
    start = learn("plain", "--max_steps", "1", *SIX[2:], "model.base_learning_rate=1.0e-12")
    torch.testing.assert_close(found.word().norm(), start.word().norm())
    assert not torch.allclose(found.word(), start.word(), rtol=1e-3)


def test_a_word_starts_at_the_encoders_output(
    learn: Learn,  # noqa: F811
    vocabulary: Any,  # noqa: F811
    base: Any,  # noqa: F811
) -> None:
    still = "model.base_learning_rate=1.0e-12"
    found = learn("cross", "--max_steps", "1", *SIX[2:], still, *lead("CrossInitialization"))
    config = tiny_config(vocabulary)
    config.model.params.personalization_config.params.initializer_words = ["dog"]
    encoder = load_model({"model": config.model}, str(base)).cond_stage_model
    torch.testing.assert_close(found.word(), encoder(["dog"])[0, 1:2].detach())  # after [CLS]


def test_the_step_of_the_lowest_loss_is_kept(
    learn: Learn,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    plain = learn("plain", *SIX, EACH)
    losses = iter([3.0, 1.0, 2.0])  # of the steps 4, 5 and 6

    def scripted(self: LatentDiffusion, batch: Any, manager: Any) -> torch.Tensor:
        return torch.full((len(batch["caption"]),), next(losses))

    monkeypatch.setattr(LatentDiffusion, "sample_losses", scripted)
    found = learn("best", *SIX, *lead("BestStep", every=1, batches=1))
    assert torch.equal(found.word(), at_step(plain, 5))
    saved = read_words(found.folder / "checkpoints" / "embeddings.safetensors")
    assert torch.equal(saved.words["*"], at_step(plain, 5))
