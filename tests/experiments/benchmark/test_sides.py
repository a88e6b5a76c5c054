"""The sides do the same work: equal networks by count, equal loss by both ways to the latents."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from ldm.experiments.benchmark import peer, sections, sides
from ldm.experiments.benchmark.report import Results, slope, spread, tables, write
from ldm.experiments.benchmark.sides import SIDES, SIZES, training_step
from ldm.experiments.benchmark.turn import Turn
from ldm.util import UserError

SMALL = replace(SIZES["miniature"], batch=1)


def test_the_peer_has_the_same_networks() -> None:
    side = SIDES["ours, float32"]
    ours, theirs = sides.build(SMALL, side, "cpu"), peer.build(SMALL, side, "cpu")
    # The published text encoder has an output layer that nothing evaluates.
    text = ours.cond_stage_model.transformer
    unused = sum(p.numel() for p in text.to_logits.parameters())
    for network, other, extra in (
        (ours.model, theirs.unet, 0),
        (ours.first_stage_model, theirs.vae, 0),
        (text, theirs.text, unused),
    ):
        count, same = (sum(p.numel() for p in n.parameters()) for n in (network, other))
        assert count == pytest.approx(same, rel=0.01, abs=extra)


def test_all_sides_in_float32_have_the_same_loss() -> None:
    losses = []
    own = [side for side in SIDES.values() if not side.peer and not side.half]
    assert len(own) == 4
    for side in own:
        model = sides.build(SMALL, side, "cpu")
        with sides.applied(side):
            losses.append(training_step(model, side, 2)())
    assert losses == pytest.approx([losses[0]] * len(own), rel=1e-4)


def test_half_precision_is_of_the_networks_alone() -> None:
    model = sides.build(SMALL, SIDES["ours, bfloat16"], "cpu")
    assert model.embedding_manager is not None
    kinds = {name.split(".")[0]: p.dtype for name, p in model.named_parameters()}
    assert kinds.pop("embedding_manager") == torch.float32
    assert set(kinds.values()) == {torch.bfloat16}


def test_sides_take_turns(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked: list[str] = []

    def do_turn(turn: Turn, _: bool) -> dict[str, Any]:
        asked.append(turn.side)
        seconds = [1.0 + len(asked), 3.0]
        found: dict[str, Any] = {
            "step": seconds,
            "wall": seconds,
            "peak": 2**30,
            "flops": 8e12,
            "rate": 4e12,
        }
        if "diffusers" not in turn.side:
            found["gradient"] = [3.0, 4.0] if "float32" in turn.side else [4.0, 3.0]
        return found | ({"generation": [5.0]} if turn.generations else {})

    monkeypatch.setattr(sections, "do_turn", do_turn)
    plan = sections.Plan(tmp_path, 2, Turn("miniature", "ours, float32"), Path("x"))
    found = sections.compare(plan, "1.4B")
    assert asked == [*SIDES, *SIDES]
    first = found["sides"]["ours, float32"]
    assert first["step"] == {"median": 3.0, "min": 2.0, "max": 2.0 + len(SIDES)}
    assert first["share"] == pytest.approx(8 / 3 / 4)
    assert first["generation"]["median"] == 5.0
    cosines = {name: side.get("cosine") for name, side in found["sides"].items()}
    assert cosines["ours, float32"] == pytest.approx(1)
    assert cosines["ours, bfloat16"] == pytest.approx(24 / 25)
    assert cosines["diffusers, float32"] is None
    text = tables({"1.4B": found})
    assert "| ours, float32 | 3.00 s | 2.00 s to 10.00 s | 3.00 s | 1.00 |" in text


def test_a_turn_that_fails_is_one_line() -> None:
    turn = Turn("miniature", "nobody")
    with pytest.raises(UserError, match=r"nobody at miniature failed \(1\): KeyError: 'nobody'"):
        sections.do_turn(turn, quick=False)


def test_statistics() -> None:
    assert spread([3.0, 1.0, 2.0]) == {"median": 2.0, "min": 1.0, "max": 3.0}
    assert slope({1: 2.0, 2: 4.0, 8: 16.0}) == pytest.approx(1)
    assert slope({1: 5.0, 10: 5.0}) == pytest.approx(0)


def test_a_page_without_marks_stays(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("text")
    results: Results = {}
    with pytest.raises(UserError, match="expected the marks"):
        write(tmp_path / "out", results, page)
    assert page.read_text() == "text"
