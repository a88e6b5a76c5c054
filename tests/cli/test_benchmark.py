"""The benchmark's variants do the same work in turns, and leave the model as it was."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
import torch

from ldm.cli import benchmark
from ldm.cli.benchmark import TRAINING, Timing, Variant, applied, measure, table
from ldm.util import UserError

ROOT = Path(__file__).parents[2]


def test_every_variant_is_timed_and_printed(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        few = ["--rounds", "1", "--repeat", "1", "--batch_size", "1"]
        assert benchmark.main([*few, "model.params.first_stage_config.params.embed_dim=16"]) == 0
    for variant in TRAINING:
        assert caplog.text.count(f"| {variant.name} |") >= 1


def test_cached_latents_give_the_loss_of_encoding() -> None:
    """What is compared is one computation: same draws, same loss, to rounding."""
    options = benchmark.parse(["--batch_size", "2"])
    model = benchmark.build(options, "cpu")
    batch = benchmark.make_batch(model, 2)
    losses = []
    real = model.shared_step
    model.shared_step = lambda given: (losses.append(real(given).loss.detach()), real(given))[1]
    step = benchmark.training_step(model, batch)
    weights = {n: p.detach().clone() for n, p in model.named_parameters()}
    for variant in (Variant("cached"), Variant("encoded", cached=False)):
        model.load_state_dict(weights, strict=False)
        step(variant)
    torch.testing.assert_close(losses[1], losses[0], rtol=1e-4, atol=1e-5)


def test_a_variant_leaves_the_model_as_it_was() -> None:
    block = torch.nn.Linear(1, 1)
    block.use_checkpoint, block.device = True, torch.device("cpu")
    with applied(Variant("x", checkpointing=False, half=True, fused=False), block):
        assert block.use_checkpoint is False
        assert torch.is_autocast_enabled("cpu")
    assert block.use_checkpoint is True
    assert not torch.is_autocast_enabled("cpu")


def test_variants_take_turns_and_the_first_turn_only_warms_up() -> None:
    calls: list[str] = []
    model = torch.nn.Linear(1, 1)
    model.device = torch.device("cpu")
    variants = (Variant("a"), Variant("b"))
    timings = measure(model, variants, lambda v: calls.append(v.name), rounds=2, repeat=2)
    assert calls == ["a", "a", "b", "b"] * 3
    assert all(timing.seconds > 0 for timing in timings)


def test_the_table_reports_ratios_to_the_first() -> None:
    text = table("step", (Variant("a"), Variant("b")), (Timing(0.2, 100), Timing(0.3, 150)))
    assert "| b | 300.0 ms | 1.50 | 150 MiB |" in text
    assert "MiB" not in table("step", (Variant("a"),), (Timing(0.2, 0),))


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--rounds", "0"], "--rounds must be at least 1, got 0"),
        (["--config", "nowhere.yaml"], "nowhere.yaml: no such file"),
        (["--config", str(ROOT / "configs/miniature/diffusion.yaml")], "learns no word"),
    ],
)
def test_wrong_arguments_are_one_line(arguments: list[str], said: str) -> None:
    with pytest.raises(UserError, match=said):
        benchmark.main(arguments)
