"""Activations are counted without computing them, and kept where they fit."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from ldm.training import memory, run
from ldm.training.memory import activation_bytes, choose_checkpointing, free_bytes, what_fits
from ldm.util import UserError, instantiate_from_config
from tests.training.conftest import Outcome, tiny_config

Learn = Callable[..., Outcome]


@pytest.fixture
def model(vocabulary: Path) -> Any:
    config = tiny_config(vocabulary)
    config.model.params.unet_config.params.use_checkpoint = "auto"
    return instantiate_from_config(config.model)


def recomputing(model: Any) -> set[bool]:
    """What the blocks of a model do."""
    blocks = [getattr(m, "use_checkpoint", None) for m in model.modules()]
    return {b for b in blocks if isinstance(b, bool)}


@pytest.mark.parametrize("images", [1, 3])
def test_the_count_is_what_a_step_keeps(model: Any, images: int) -> None:
    kept: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage()._cdata] = tensor
        return tensor

    latents = torch.randn(images, 2, 4, 4)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
        condition = model.get_learned_conditioning(["a photo of a *"] * images)
        model.apply_model(latents, torch.zeros(images, dtype=torch.int64), condition)
    for weight in model.state_dict().values():
        kept.pop(weight.untyped_storage()._cdata, None)
    true = sum(t.untyped_storage().nbytes() for t in kept.values())
    assert activation_bytes(model, images) == pytest.approx(true, rel=0.2)


@pytest.mark.parametrize(("free", "keeps"), [(10**9, True), (10**5, False), (None, False)])
def test_activations_are_kept_where_they_fit(
    model: Any,
    free: int | None,
    keeps: bool,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(memory, "free_bytes", lambda _: free)
    assert recomputing(model) == {False}
    with caplog.at_level(logging.INFO):
        choose_checkpointing(model, 2, "cpu")
    assert recomputing(model) == {not keeps}
    said = "activations are kept" if keeps else "computed again in the backward pass"
    assert said in caplog.text
    assert ("unknown" in caplog.text) == (free is None)


def test_what_is_configured_stays(vocabulary: Path) -> None:
    config = tiny_config(vocabulary)
    for value in (True, False):
        config.model.params.unet_config.params.use_checkpoint = value
        model = instantiate_from_config(config.model)
        choose_checkpointing(model, 2, "cpu")
        assert recomputing(model) == {value}
    config.model.params.unet_config.params.use_checkpoint = "maybe"
    with pytest.raises(ValueError, match="use_checkpoint must be true, false or auto, got 'maybe'"):
        instantiate_from_config(config.model)


def test_free_memory_is_plausible() -> None:
    free = free_bytes("cpu")
    assert free is None or 10**7 < free < 10**14


def test_the_word_does_not_depend_on_the_choice(learn: Learn) -> None:
    where = "model.params.unet_config.params.use_checkpoint"
    kept, again = learn("kept", f"{where}=auto"), learn("again", f"{where}=true")
    assert torch.equal(kept.word(), again.word())


def test_out_of_memory_is_one_line_with_what_fits(
    model: Any, learn: Learn, monkeypatch: pytest.MonkeyPatch
) -> None:
    total = (memory.weight_bytes(model) + 10 * activation_bytes(model, 1)) / memory.USABLE
    device = SimpleNamespace(total_memory=total)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: device)
    assert "data.params.batch_size=7 should fit" in what_fits(model, 64, "cuda")
    assert "use_checkpoint=true" in what_fits(model, 1, "cuda")

    def full(*_: object, **__: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory\nmore lines")

    monkeypatch.setattr("pytorch_lightning.Trainer.fit", full)
    monkeypatch.setattr(run, "what_fits", lambda *_: "advice")
    with pytest.raises(UserError, match="out of memory with 2 images at a time: advice"):
        learn("full")
