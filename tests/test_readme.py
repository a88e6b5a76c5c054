"""What the README and the docs tell a stranger to type works: code runs, flags and files exist."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
DOCUMENTS = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    *sorted((ROOT / "docs").rglob("*.md")),
    *sorted((ROOT / "models").rglob("*.md")),
]
IDS = [str(path.relative_to(ROOT)) for path in DOCUMENTS]


def commands(text: str) -> list[list[str]]:
    """Find the command lines of indented blocks and of inline code, lines joined."""
    blocks = re.findall(r"(?:^    .*\n)+", text, re.MULTILINE)
    inline = re.findall(r"`([^`\n]+)`", text)
    lines = [line for b in blocks for line in b.replace("\\\n", " ").splitlines()] + inline
    found = [shlex.split(line, comments=True) for line in lines if _starts_command(line)]
    return [words for words in found if words]


def _starts_command(line: str) -> bool:
    return bool(re.match(r"\s*(python \S+\.py|make [a-z]|scripts/\S+\.sh|merge_embeddings)", line))


@cache
def help_of(script: str) -> str:
    command = [sys.executable] if script.endswith(".py") else ["bash"]
    run = subprocess.run(
        [*command, str(ROOT / script), "--help"], capture_output=True, text=True, check=True
    )
    return run.stdout


@pytest.mark.parametrize("path", DOCUMENTS, ids=IDS)
def test_flags_and_targets_of_named_commands_exist(path: Path) -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for words in commands(path.read_text("utf-8")):
        if words[0] == "make":
            assert words[1] in targets, words
            continue
        script, *rest = words[1:] if words[0] == "python" else words
        text = help_of(script)
        for flag in (word.split("=")[0] for word in rest if re.match(r"--?[a-z]", word)):
            assert re.search(rf"{re.escape(flag)}\b", text), f"{script} has no {flag}"


def test_commands_are_found() -> None:
    found = [words[:2] for words in commands((ROOT / "README.md").read_text("utf-8"))]
    assert len(found) >= 8
    assert ["make", "demo"] in found
    assert ["python", "scripts/txt2img.py"] in found


@pytest.mark.parametrize("path", DOCUMENTS, ids=IDS)
def test_links_lead_to_files(path: Path) -> None:
    text = path.read_text("utf-8")
    links = re.findall(r"\]\(([^)#]+)[^)]*\)", text) + re.findall(r'src="([^"]+)"', text)
    for link in links:
        if not link.startswith("https://"):
            assert (path.parent / link).exists(), f"{path.name} leads to {link}"


@pytest.mark.parametrize("path", DOCUMENTS, ids=IDS)
def test_named_configurations_exist(path: Path) -> None:
    for name in re.findall(r"configs/[\w/.-]+\.yaml", path.read_text("utf-8")):
        assert (ROOT / name).is_file(), f"{path.name} names {name}"


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text("utf-8").split()) <= 1200


def blocks(path: Path) -> list[str]:
    return re.findall(r"```python\n(.*?)```", path.read_text("utf-8"), re.DOTALL)


# Documents with code. README's code continues that of the method.
CODE = [path for path in DOCUMENTS if blocks(path)]
LEARNING = (ROOT / "docs/method.md", ROOT / "README.md")
# Bases that are not there, and devices that may not be.
STAND_INS = ("CompVis/ldm-text2im-large-256", "v1-5.safetensors")


def test_the_documented_code_learns_a_word_and_generates_it(
    untrained_miniature: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import ldm.inference
    from ldm.inference import Sampling

    found = [block for path in LEARNING for block in blocks(path)]
    assert len(found) == 2
    assert len([line for line in found[0].splitlines() if line]) <= 25, "twenty lines and imports"
    full = ldm.inference.generate
    monkeypatch.setattr(
        ldm.inference, "generate", lambda m, p, *_, **k: full(m, p, Sampling(steps=1), **k)
    )
    monkeypatch.chdir(tmp_path)
    code = "\n".join(found).replace('"examples/', f'"{ROOT}/examples/')
    for name in ("config.yaml", "model.safetensors"):
        code = code.replace(f"models/miniature/{name}", str(untrained_miniature / name))
    assert "range(400)" in code
    names: dict[str, object] = {}
    exec(code.replace("range(400)", "range(2)"), names)
    for file in ("star.safetensors", "moon.png", "star.png"):
        assert (tmp_path / file).is_file()
    assert len(names["images"]) == 8  # type: ignore[arg-type]


@pytest.mark.parametrize("path", [p for p in CODE if p not in LEARNING], ids=lambda p: p.name)
def test_the_code_of_other_documents_runs(path: Path, untrained_miniature: Path) -> None:
    code = "\n".join(blocks(path)).replace('"cuda"', '"cpu"')
    for base in STAND_INS:
        code = code.replace(f'"{base}"', repr(str(untrained_miniature / "model.safetensors")))
    exec(code, {})
