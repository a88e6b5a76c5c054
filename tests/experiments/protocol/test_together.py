"""Words of several cells learned in one run: which cells, and that nothing else changes."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from ldm.cli.protocol import main
from ldm.experiments.protocol import together
from ldm.experiments.protocol.cells import Cell
from ldm.experiments.protocol.command import read_plan
from ldm.experiments.protocol.engines import LocalEngine, Task
from ldm.experiments.protocol.folder import LOG, TIMES, WORD, Lock
from ldm.experiments.protocol.run import Progress, Runner, cell_folder
from ldm.resources import ROOT
from ldm.words.files import read_words, write_words

SMOKE = str(ROOT / "configs/protocol/smoke.yaml")
# The stand-in for the program of a group: it notes what it was given, and fails if it is told to.
NOTES = """import json, os, pathlib, sys
folder = pathlib.Path(sys.argv[1])
given = json.loads((folder / "group.json").read_text())
(folder.parent.parent / "noted").open("a").write(json.dumps(given) + "\\n")
sys.exit(int(os.environ.get("STATUS", "0")))
"""


def plan(*overrides: str) -> list[Cell]:
    return read_plan(SMOKE, overrides)[1]


def names(found: Sequence[Task]) -> list[list[str]]:
    return [[cell.name for cell in group.cells] for group in found]


def test_cells_of_a_variant_and_seed_make_a_group(tmp_path: Path) -> None:
    cells = plan("seeds=[1,2]", "variants.progressive={}", "variants.per_image_tokens={}")
    # The words of progressive and per_image_tokens cannot share a run; prompts learn nothing.
    assert names(together.groups(cells, tmp_path, 8)) == [
        [f"{concept}/{variant}/seed{seed}" for concept in ("teal-star", "red-mug")]
        for variant, seed in (("ours", 1), ("ours", 2), ("ours_n2", 1), ("ours_n2", 2))
    ]
    assert together.groups(cells, tmp_path, 1) == []


def test_a_learned_word_and_a_single_one_make_no_group(tmp_path: Path) -> None:
    cells = [cell for cell in plan() if cell.variant == "ours"]
    file = cell_folder(tmp_path, cells[0]) / WORD
    file.parent.mkdir(parents=True)
    facts = {"protocol_learn_hash": cells[0].learn_hash}
    write_words(file, {"*": torch.zeros(1, 128)}, {"*": 5}, facts)
    assert together.groups(cells, tmp_path, 8) == []


def learned(
    cells: Sequence[Cell], output: Path, monkeypatch: pytest.MonkeyPatch, status: int = 0
) -> list[list[str]]:
    """Run groups with the stand-in; return the folders of each group that it was given."""
    program = output / "program.py"
    output.mkdir(exist_ok=True)
    program.write_text(NOTES)
    monkeypatch.setattr(together, "PROGRAM", (sys.executable, str(program)))
    found = together.groups(cells, output, 8)
    progress = Progress(len(cells), {}, 1)
    told = {"STATUS": str(status)}
    Runner(output, LocalEngine(1), progress, environment=told).run([], found)
    noted = output / "noted"
    return [json.loads(line) for line in noted.read_text().splitlines()] if noted.exists() else []


def test_a_group_holds_its_cells_while_it_runs_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    cells = [cell for cell in plan() if cell.variant == "ours"]
    given = learned(cells, tmp_path, monkeypatch)
    folders = [cell_folder(tmp_path, cell) for cell in cells]
    assert given == [[str(folder) for folder in folders]]
    assert all((folder / "cell.json").is_file() for folder in folders)
    assert not list((tmp_path / "together").iterdir())
    assert all(Lock(folder).take() for folder in folders)
    assert "words learned and scored together" in capsys.readouterr().err


def test_a_group_that_fails_keeps_its_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    cells = [cell for cell in plan() if cell.variant == "ours"]
    learned(cells, tmp_path, monkeypatch, status=1)
    (log,) = (tmp_path / "together").glob("*/cell.log")
    assert f"failed together, so each cell alone (see {log})" in capsys.readouterr().err


def test_a_cell_of_another_process_keeps_its_group_apart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cells = [cell for cell in plan() if cell.variant == "ours"]
    other = Lock(cell_folder(tmp_path, cells[1]))
    assert other.take()
    assert learned(cells, tmp_path, monkeypatch) == []
    assert Lock(cell_folder(tmp_path, cells[0])).take()
    other.close()


@pytest.mark.slow
def test_words_learned_at_once_are_those_learned_alone(tmp_path: Path) -> None:
    few = ("steps=3", "pictures=2", "sampler_steps=2", "resamples=20", "--only", "*/ours_n2/*")
    for name, count in (("alone", 1), ("together", 2)):
        output = ("--output", str(tmp_path / name), "--workers", "1")
        assert main([SMOKE, *few, f"words_at_once={count}", *output]) == 0
    words = list((tmp_path / "alone").rglob(WORD))
    assert len(words) == 2
    for file in words:
        other = tmp_path / "together" / file.relative_to(tmp_path / "alone")
        alone, shared = read_words(file), read_words(other)
        torch.testing.assert_close(shared.words["*"], alone.words["*"], atol=1e-3, rtol=0)
        same = ("concept", "variant", "training_pictures", "step", "learning_rate", "pictures")
        assert {k: shared.metadata[k] for k in same} == {k: alone.metadata[k] for k in same}
        times = json.loads((other.parent / TIMES).read_text())
        assert times["words_at_once"] == 2
        assert times["learn"] > 0
        assert not (other.parent / LOG).exists(), "the cell was run alone"
    assert not list((tmp_path / "together" / "together").iterdir())
