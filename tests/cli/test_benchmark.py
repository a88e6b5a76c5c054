"""The benchmark command: one line for wrong arguments, JSON and tables of what it measured."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ldm.cli import benchmark
from ldm.experiments.benchmark.report import BEGIN, END
from ldm.experiments.benchmark.sides import SIDES
from ldm.util import UserError


def test_a_quick_look_measures_every_side(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(f"# Speed\n{BEGIN}\nold\n{END}\nafter\n")
    command = ["--quick", "--sections", "miniature", "--batch_size", "1", "--threads", "1"]
    assert benchmark.main([*command, "--out", str(tmp_path / "out"), "--page", str(page)]) == 0
    found = json.loads((tmp_path / "out" / "benchmark.json").read_text())["miniature"]
    assert list(found["sides"]) == list(SIDES)
    for name, side in found["sides"].items():
        assert side["step"]["median"] > 0
        assert side["flops"] > 1e8
        assert ("generation" in side) == (name != "diffusers, bfloat16")
    text = page.read_text()
    assert all(f"| {name} |" in text for name in SIDES)
    assert "old" not in text
    assert text.startswith("# Speed\n")
    assert text.endswith("after\n")
    cached, encoded = (found["sides"][n]["flops"] for n in ("ours, float32", "diffusers, float32"))
    assert encoded > 1.2 * cached  # the script encodes at every step


@pytest.mark.slow
def test_a_quick_look_at_the_start_of_a_run(tmp_path: Path) -> None:
    command = ["--quick", "--sections", "start", "--threads", "1", "--out", str(tmp_path)]
    assert benchmark.main(command) == 0
    first, *parts, loop = json.loads((tmp_path / "benchmark.json").read_text())["start"]["rows"]
    assert float(first["ratio"]) > 1  # 15 MB are read faster than Python starts
    seconds = [float(part["seconds"].removesuffix(" s")) for part in parts]
    assert sum(seconds) == pytest.approx(float(first["seconds"].removesuffix(" s")), abs=0.03)
    assert min(seconds[:2]) >= 0  # what is left may be below 0: each process imports anew
    assert float(loop["ratio"].split()[0]) > 0
    assert loop["what"] == "a step in a run of 3, miniature"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--rounds", "0"], "--rounds must be at least 1, got 0"),
        (["--sections", "all"], "invalid choice: 'all'"),
        (["--device", "cuda:9"], "cuda"),
        (["--model", "nowhere.ckpt"], "checkpoint nowhere.ckpt does not exist"),
    ],
)
def test_wrong_arguments_are_one_line(arguments: list[str], said: str) -> None:
    with pytest.raises(UserError, match=said):
        benchmark.main(arguments)
