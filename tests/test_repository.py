"""What the repository tracks: no large files, and nothing that a command makes again."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest
from PIL import Image

ROOT = Path(__file__).parent.parent
WEIGHTS = ("models/miniature/",)
LIMIT = 1_000_000  # bytes


@pytest.fixture(scope="module")
def tracked() -> dict[str, int]:
    """Return the size in bytes of every tracked file that is there."""
    if not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    listed = subprocess.run(
        ["git", "ls-files", "-z"], cwd=ROOT, check=True, capture_output=True, text=True
    ).stdout
    paths = [name for name in listed.split("\0") if name and (ROOT / name).is_file()]
    assert "main.py" in paths
    return {name: (ROOT / name).stat().st_size for name in paths}


def test_only_the_miniatures_weights_are_large(tracked: dict[str, int]) -> None:
    large = {name: size for name, size in tracked.items() if size >= LIMIT}
    others = {
        n: s for n, s in large.items() if not (n.startswith(WEIGHTS) and n.endswith(".safetensors"))
    }
    assert not others, f"track no file of {LIMIT} bytes or more"


def test_questionnaires_are_made_and_not_tracked(tracked: dict[str, int]) -> None:
    assert not [name for name in tracked if "questionnaires/" in name]


def test_figures_are_quantized(tracked: dict[str, int]) -> None:
    figures = [
        n
        for n in tracked
        if n.startswith(("docs/results/", "examples/miniature/")) and n.endswith(".png")
    ]
    assert figures
    for name in figures:
        with Image.open(ROOT / name) as image:
            assert image.mode == "P", f"{name} has {image.mode} pixels: store a palette of colours"


def test_files_are_written_whole() -> None:
    """Every writer goes through `write_whole`, which names the path and leaves nothing half.

    `convert.py` writes a folder of files, which takes its name when it is whole.
    """
    raw = re.compile(r"write_text\(|write_bytes\(|open\([^)]*[\"'][wx]b?\+?[\"']|to_csv\(")
    direct = re.compile(
        r"\b(?:savefig|torch\.save|save_file|np\.save)\((?!buffer|whole|part|content)"
    )
    found = [
        f"{path.relative_to(ROOT)}: {line.strip()}"
        for path in sorted((ROOT / "ldm").rglob("*.py"))
        if path.name not in ("util.py", "folder.py", "convert.py")
        for line in path.read_text(encoding="utf-8").splitlines()
        if (raw.search(line) or direct.search(line)) and "lambda part" not in line
    ]
    assert not found
