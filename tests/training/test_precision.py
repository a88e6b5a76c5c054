"""Half precision of frozen networks: nearly the same gradient, float32 words, one-line errors."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf
from torch import Tensor

from ldm.training import memory
from ldm.training.memory import Precision, cast_networks, choose, remark
from ldm.util import UserError, instantiate_from_config
from tests.training.conftest import Outcome, tiny_config

Learn = Callable[..., Outcome]


def word_gradient(vocabulary: Path, dtype: torch.dtype | None) -> Tensor:
    """The gradient of the tiny model's word on a fixed batch."""
    torch.manual_seed(0)
    model = instantiate_from_config(tiny_config(vocabulary).model)
    for weight in model.model.parameters():
        torch.nn.init.normal_(weight, std=0.1)
    if dtype is not None:
        cast_networks(model, dtype)
    rng = torch.Generator().manual_seed(1)
    latents, noise = (torch.randn(4, 2, 4, 4, generator=rng) for _ in range(2))
    condition = model.get_learned_conditioning(["a photo of a *"] * 4)
    timesteps = torch.tensor([50, 300, 550, 900])
    loss = model.p_losses(latents, condition, timesteps, noise).loss
    assert loss.dtype == torch.float32
    loss.backward()
    (word,) = model.embedding_manager.embedding_parameters()
    assert word.dtype == word.grad.dtype == torch.float32
    return word.grad


def test_the_gradient_of_bfloat16_points_where_that_of_float32_points(vocabulary: Path) -> None:
    full, half = (word_gradient(vocabulary, dtype) for dtype in (None, torch.bfloat16))
    assert not torch.equal(full, half)
    assert torch.cosine_similarity(full, half).item() > 0.999
    torch.testing.assert_close(half.norm(), full.norm(), rtol=0.02, atol=0)


def test_float16_keeps_the_autoencoder_in_float32(vocabulary: Path) -> None:
    model = instantiate_from_config(tiny_config(vocabulary).model)
    cast_networks(model, torch.float16)
    assert model.first_stage_model.encoder.conv_in.weight.dtype == torch.float32
    assert model.model.diffusion_model.out[2].weight.dtype == torch.float16


def test_a_run_in_bfloat16(learn: Learn, caplog: pytest.LogCaptureFixture) -> None:
    full = learn("full", "--max_steps", "3")
    explicit = learn("explicit", "--max_steps", "3", "--precision", "32")
    assert torch.equal(full.word(), explicit.word())
    with caplog.at_level(logging.INFO):
        half = learn("half", "--max_steps", "3", "--precision", "bf16")
    assert "frozen networks in bfloat16" in caplog.text
    assert half.word().dtype == torch.float32
    assert not torch.equal(full.word(), half.word())
    torch.testing.assert_close(half.word(), full.word(), atol=0.02, rtol=0)
    resumed = learn("resumed", "--max_steps", "2", "--precision", "bf16")
    assert resumed.status == 0


def wants(precision: str | None, base: Path | None = None, **params: Any) -> Any:
    """The parts of a configuration that decide the precision."""
    params = {"personalization_config": {"target": "x"}, **params}
    return SimpleNamespace(
        trainer={"precision": precision},
        model=OmegaConf.create({"params": params}),
        run=SimpleNamespace(base_checkpoint=str(base) if base else None),
    )


@pytest.mark.parametrize("capability", [(7, 5), (9, 0)])
def test_the_device_decides(
    capability: tuple[int, int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
    new = capability >= (8, 0)
    bf16 = Precision(torch.bfloat16, "32-true")
    assert choose(wants("auto"), "cuda:0") == (bf16 if new else Precision(None, "32-true"))
    if new:
        assert choose(wants("bf16"), "cuda:0") == bf16
    else:
        with pytest.raises(UserError, match="cuda:0 computes no bfloat16: use fp16 or 32"):
            choose(wants("bf16"), "cuda:0")
    assert choose(wants("fp16"), "cuda:0") == Precision(torch.float16, "16-mixed")
    with pytest.raises(UserError, match="fp16 needs a GPU"):
        choose(wants("fp16"), "cpu")
    assert choose(wants("bf16-mixed"), "cpu") == Precision(None, "bf16-mixed")
    assert choose(wants(None), "cpu") == Precision(None, None)


def test_networks_that_are_trained_stay_in_float32() -> None:
    assert choose(wants("bf16", unfreeze_model=True), "cpu") == Precision(None, "bf16-mixed")
    assert choose(wants("bf16", personalization_config=None), "cpu").weights is None


def test_auto_wants_a_large_model_on_a_cpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "has_bf16", lambda _: True)
    base = tmp_path / "model.ckpt"
    base.write_bytes(b"x" * 100)
    assert choose(wants("auto", base), "cpu").weights is None
    monkeypatch.setattr(memory, "LARGE", 20)
    assert choose(wants("auto", base), "cpu").weights == torch.bfloat16


def test_the_log_says_what_the_other_choice_brings(monkeypatch: pytest.MonkeyPatch) -> None:
    model = torch.nn.Linear(1000, 1000).requires_grad_(False)
    monkeypatch.setattr(memory, "LARGE", 1000)
    monkeypatch.setattr(memory, "has_bf16", lambda _: True)
    full, half = Precision(None, None), Precision(torch.bfloat16, "32-true")
    assert "--precision bf16 would need 0.0 GB less" in str(remark(model, full, "cpu"))
    assert "--precision 32 would need 0.0 GB more" in str(remark(model, half, "cpu"))
    assert remark(model, Precision(None, "bf16-mixed"), "cpu") is None
    monkeypatch.setattr(memory, "has_bf16", lambda _: False)
    assert remark(model, full, "cpu") is None
    assert "emulates" in str(remark(model, half, "cpu"))
