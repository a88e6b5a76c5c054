"""The notebook of examples/ runs from its first cell to its last."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
NOTEBOOK = ROOT / "examples" / "learn_a_word.ipynb"


def cells() -> list[str]:
    content = json.loads(NOTEBOOK.read_text(encoding="utf-8"))
    return ["".join(c["source"]) for c in content["cells"] if c["cell_type"] == "code"]


def test_its_outputs_are_stripped() -> None:
    content = json.loads(NOTEBOOK.read_text(encoding="utf-8"))
    assert len(cells()) >= 5
    assert not any(cell.get("outputs") for cell in content["cells"])


@pytest.mark.slow
def test_it_learns_a_word_that_resembles_the_images(tmp_path: Path) -> None:
    code = "\n".join(cells()).replace("Path.cwd().parents", f"Path({str(ROOT)!r})")
    code = code.replace("(Path.cwd(), *Path(", "(Path.cwd(), Path(")
    code += "\nprint(similarity / own_similarity(training))\n"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert float(done.stdout.split()[-1]) > 0.8
