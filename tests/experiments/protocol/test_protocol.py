"""The command with the shipped miniature: real training, generation and scoring."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from ldm.cli.protocol import main
from ldm.resources import ROOT
from ldm.words.files import read_words

SMOKE = [
    str(ROOT / "configs/protocol/smoke.yaml"),
    *("steps=2", "pictures=2", "sampler_steps=2", "resamples=20"),
]


@pytest.mark.slow
def test_the_smoke_protocol_learns_generates_and_scores(tmp_path: Path) -> None:
    chosen = ["--output", str(tmp_path), "--only", "*/[oi]*/*", "--workers", "1"]
    assert main([*SMOKE, *chosen]) == 0
    with (tmp_path / "table.csv").open() as file:
        rows = list(csv.DictReader(file))
    cells = {(row["concept"], row["variant"]) for row in rows}
    variants = ("ours", "ours_n2", "image_only")
    assert cells == {(c, v) for c in ("teal-star", "red-mug") for v in variants}
    assert len(rows) == len(cells) * 6
    word = read_words(tmp_path / "cells/teal-star/ours_n2/seed1/word.safetensors")
    facts = {k: word.metadata[k] for k in ("concept", "variant", "training_pictures", "step")}
    expected = {"concept": "teal-star", "variant": "ours_n2", "training_pictures": "2", "step": "2"}
    assert facts == expected
    assert not list(tmp_path.rglob("learning-*")), "logs of ended trainings are left"
    table = (tmp_path / "table.csv").read_bytes()
    log = tmp_path / "cells/teal-star/ours/seed1/cell.log"
    before = log.stat().st_size
    # Scores of more images need no new word.
    assert main([*SMOKE, *chosen[:2], "--only", "teal-star/ours/*", "pictures=3"]) == 0
    assert "steps/s" not in log.read_text()[before:]
    assert main([*SMOKE, *chosen]) == 0
    assert (tmp_path / "table.csv").read_bytes() == table
