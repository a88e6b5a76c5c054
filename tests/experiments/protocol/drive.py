"""A driver to be killed: runs a small table with the double. `drive.py OUTPUT`."""

from __future__ import annotations

import sys
from pathlib import Path

from ldm.experiments.protocol.cells import Cell
from ldm.experiments.protocol.engines import Engine, LocalEngine
from ldm.experiments.protocol.run import Progress, Runner
from ldm.experiments.protocol.table import write_results

PROGRAM = (sys.executable, str(Path(__file__).with_name("double.py")))


def small_table(seeds: int = 2, **score: object) -> list[Cell]:
    """Cells of two concepts and two variants, one of which learns."""
    asked = {
        "prompts": ["a * here", "a * there"], "image_prompt": "a *", "pictures": 2,
        "training": {"1.png": "x"}, **score
    }  # fmt: skip
    cells = []
    for concept in ("cat", "dog"):
        for variant, source in (("ours", "learned"), ("prompt_only", "prompts")):
            for seed in range(1, seeds + 1):
                learn = {"concept": concept, "steps": 3, "pictures": {"1.png": "x"}, "seed": seed}
                own = {**asked, "seed": seed, "concept": concept}
                known = learn if source == "learned" else None
                cells.append(Cell(concept, variant, seed, source, known, own, {}))
    return cells


def run_table(
    output: Path, cells: list[Cell], engine: Engine | None = None, **environment: str
) -> dict[str, str]:
    """Run cells with the double and write the results; return the failures."""
    told = {"DOUBLE_TRACE": str(output / "trace"), **environment}
    output.mkdir(parents=True, exist_ok=True)
    progress = Progress(len(cells), {}, 2)
    runner = Runner(output, engine or LocalEngine(2), progress, PROGRAM, told)
    failures = runner.run(cells)
    write_results(output, cells, "ours", 50)
    return failures


def trace(output: Path) -> list[str]:
    """Return the names of the cells that were begun, in order, repeats included."""
    path = output / "trace"
    return path.read_text().splitlines() if path.exists() else []


if __name__ == "__main__":
    run_table(Path(sys.argv[1]), small_table(), DOUBLE_SECONDS="0.3")
