"""Differences to a base model: what is stored, what is added, what is refused."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from ldm.checkpoint.names import find_delta
from ldm.checkpoint.weight_delta import apply_weight_delta, check_weight_delta, save_weight_delta
from ldm.util import UserError
from tests.models.latent_models import WORDS, text_model

UNFROZEN = {"unfreeze_model": True, "cond_stage_trainable": True}


@pytest.fixture
def base(tmp_path: Path) -> Any:
    return text_model(tmp_path, personalization_config=WORDS, **UNFROZEN)


@pytest.fixture
def checkpoint(base: Any, tmp_path: Path) -> Path:
    """The base's file, without words, as published ones are."""
    state = {n: v for n, v in base.state_dict().items() if not n.startswith("embedding_manager.")}
    path = tmp_path / "base.safetensors"
    save_file(state, path)
    return path


def moves(name: str) -> bool:
    return "attn" in name and not name.startswith("first_stage_model.")


def tune(model: Any) -> Any:
    """Move some weights of the U-Net and the text encoder."""
    tuned = copy.deepcopy(model)
    generator = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for name, weight in tuned.named_parameters():
            if moves(name):
                weight += 1e-3 * torch.randn(weight.shape, generator=generator)
    return tuned


@pytest.mark.parametrize(("half", "bound"), [(True, 2e-6), (False, 1e-7)])
def test_base_and_weight_delta_are_the_tuned_model(
    base: Any, checkpoint: Path, tmp_path: Path, half: bool, bound: float
) -> None:
    tuned, path = tune(base), tmp_path / "d.safetensors"
    save_weight_delta(tuned, path, checkpoint, half=half, facts={"step": "7"})
    assert check_weight_delta(path, checkpoint)["step"] == "7"
    with safe_open(path, "pt") as file:
        stored = set(file.keys())
        assert {file.get_tensor(name).dtype for name in stored} == {
            torch.float16 if half else torch.float32
        }
    assert stored == {n for n, _ in tuned.named_parameters() if moves(n)}  # what moved
    assert {name.split(".")[0] for name in stored} == {"model", "cond_stage_model"}
    mended = copy.deepcopy(base)
    apply_weight_delta(mended, path, checkpoint)
    for (name, got), want in zip(mended.named_parameters(), tuned.parameters(), strict=True):
        torch.testing.assert_close(got, want, atol=bound, rtol=1e-6, msg=name)


def test_averaged_weights_are_what_is_stored_and_drawn_with(tmp_path: Path) -> None:
    model = text_model(tmp_path, personalization_config=WORDS, use_ema=True, **UNFROZEN)
    model.model_ema.restart(model.model)
    checkpoint, path = tmp_path / "base.safetensors", tmp_path / "d.safetensors"
    save_file({n: v for n, v in model.state_dict().items() if "embedding_m" not in n}, checkpoint)
    tuned = tune(model)
    tuned.model_ema(tuned.model)  # a step of the average: not yet the tuned weights
    save_weight_delta(tuned, path, checkpoint, half=False)
    apply_weight_delta(model, path, checkpoint)
    with tuned.ema_scope():
        averaged = [p.clone() for p in tuned.model.parameters()]
    with model.ema_scope():
        for got, want in zip(model.model.parameters(), averaged, strict=True):
            torch.testing.assert_close(got, want, atol=1e-7, rtol=1e-6)


def test_another_base_is_refused(base: Any, checkpoint: Path, tmp_path: Path) -> None:
    path, other = tmp_path / "d.safetensors", tmp_path / "other.safetensors"
    save_weight_delta(tune(base), path, checkpoint)
    save_file({"x": torch.zeros(3)}, other)
    for wrong in (other, None):
        with pytest.raises(UserError, match=r"a weight delta of the base model base\.safetensors"):
            apply_weight_delta(base, path, wrong)


def test_what_is_no_difference_is_named(checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"nowhere\.safetensors does not exist"):
        check_weight_delta("nowhere.safetensors", checkpoint)
    with pytest.raises(UserError, match=r"base\.safetensors: no weight delta"):
        check_weight_delta(checkpoint, checkpoint)
    (tmp_path / "text").write_text("no")
    with pytest.raises(UserError, match="text: not a safetensors file"):
        check_weight_delta(tmp_path / "text", checkpoint)


def test_another_configuration_is_refused(base: Any, checkpoint: Path, tmp_path: Path) -> None:
    path = tmp_path / "d.safetensors"
    save_weight_delta(tune(base), path, checkpoint)
    base.model = torch.nn.Linear(2, 2)
    with pytest.raises(UserError, match="has no place in this model"):
        apply_weight_delta(base, path, checkpoint)


def test_a_base_that_is_not_the_base(base: Any, tmp_path: Path) -> None:
    other = tmp_path / "other.safetensors"
    save_file({"model.x": torch.zeros(3)}, other)
    with pytest.raises(UserError, match="has no weight model"):
        save_weight_delta(tune(base), tmp_path / "d.safetensors", other)
    assert not (tmp_path / "d.safetensors").exists()


def test_a_weight_delta_is_found_under_its_old_name(tmp_path: Path) -> None:
    new, old = tmp_path / "weight_delta.safetensors", tmp_path / "difference.safetensors"
    assert find_delta(tmp_path) == new
    old.touch()
    assert find_delta(tmp_path) == old
    new.touch()
    assert find_delta(tmp_path) == new
