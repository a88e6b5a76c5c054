"""Imports run one way, nothing imports what the project does without, every command has help."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
# Layers from the ground up. A folder or file may import earlier layers, itself, and sisters below.
GROUND = ("util", "hub", "randomness", "image_io", "lr_scheduler", "sampling", "resources")
LAYERS: tuple[tuple[str, ...], ...] = (
    GROUND,
    ("words", "modules"),
    ("checkpoint", "models"),
    ("data", "inference"),
    ("training", "evaluation", "editing"),
    ("miniature",),
    ("experiments",),
    ("cli",),
)
LEVEL = {name: level for level, layer in enumerate(LAYERS) for name in layer}
# Sisters of one layer that know each other, one way.
SISTERS = {
    ("image_io", "util"),
    ("hub", "util"),
    ("randomness", "util"),
    ("lr_scheduler", "util"),
    ("sampling", "util"),
    ("modules", "words"),  # text encoders split texts at placeholders
    ("models", "checkpoint"),  # an autoencoder reads the checkpoint that its YAML names
    ("editing", "evaluation"),  # edits are ranked by CLIP
}
# One-line names that YAML files use for what has moved up.
ALIASES = {
    "ldm/modules/embedding_manager.py": "ldm.words.manager",
    "ldm/modules/directional.py": "ldm.words.directional",
    "ldm/data/miniature.py": "ldm.miniature.world",
}
# torchvision and friends were the original's; the quantiser's package only with the extra `vq`.
DONE_WITHOUT = {"torchvision", "clip", "albumentations", "test_tube", "cv2", "imageio"}
# Beside the command lines: what reads the options of main.py, and a signature of Lightning's.
SEE_ARGPARSE = {
    "ldm/training/arguments.py",
    "ldm/training/config.py",
    "ldm/training/csv_log.py",
    "ldm/training/merge.py",
}
COMMANDS = [
    path.relative_to(ROOT)
    for path in [*ROOT.glob("*.py"), *sorted((ROOT / "scripts").rglob("*.py"))]
    if "argparse" in path.read_text() or "__main__" in path.read_text()
]


def sources(*folders: str) -> list[Path]:
    return [path for folder in folders for path in sorted((ROOT / folder).rglob("*.py"))]


def imports(path: Path) -> Iterator[str]:
    """Every absolute module name that a file imports, wherever in the file."""
    for node in ast.walk(ast.parse(path.read_text(), str(path))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield node.module or ""
            # `from ldm import util` names a module too
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def test_every_module_stands_in_a_layer() -> None:
    found = {p.relative_to(ROOT / "ldm").parts[0].removesuffix(".py") for p in sources("ldm")}
    assert found - {"__init__"} == set(LEVEL)


@pytest.mark.parametrize("path", sources("ldm"), ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_run_one_way(path: Path) -> None:
    if str(path.relative_to(ROOT)) in ALIASES:
        return
    here = path.relative_to(ROOT / "ldm").parts[0].removesuffix(".py")
    for name in imports(path):
        package, *rest = name.split(".")
        assert package not in {"main", "scripts", "tests"}, f"{name} is above the library"
        if package == "ldm" and rest and rest[0] in LEVEL and rest[0] != here:
            below = LEVEL[rest[0]] < LEVEL[here] or (here, rest[0]) in SISTERS
            assert below, f"{name} is not for ldm.{here}"


def test_no_circles_between_files() -> None:
    """Also inside a folder, and also through imports inside functions."""
    files = {".".join(p.relative_to(ROOT).with_suffix("").parts): p for p in sources("ldm")}
    needs = {
        name: {other for other in imports(path) if other in files and other != name}
        for name, path in files.items()
        if str(path.relative_to(ROOT)) not in ALIASES
    }
    try:
        tuple(TopologicalSorter(needs).static_order())
    except CycleError as error:
        pytest.fail("a circle of imports: " + " -> ".join(error.args[1]))


@pytest.mark.parametrize("file", ALIASES, ids=str)
def test_an_alias_is_one_import(file: str) -> None:
    body = ast.parse((ROOT / file).read_text()).body
    assert len(body) == 2, f"{file} holds a docstring and one import, nothing else"
    assert set(imports(ROOT / file)) > {ALIASES[file]}


def test_only_command_lines_see_parsed_arguments() -> None:
    """After `ldm.training.config` a run's configuration is typed."""
    found = {
        str(path.relative_to(ROOT))
        for path in sources("ldm")
        if "cli" not in path.parts and "argparse.Namespace" in imports_and_attributes(path)
    }
    assert found == SEE_ARGPARSE


def imports_and_attributes(path: Path) -> set[str]:
    """Every absolute name that a file imports, and every `a.b` in its code."""
    attributes = {
        f"{node.value.id}.{node.attr}"
        for node in ast.walk(ast.parse(path.read_text(), str(path)))
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name)
    }
    return attributes | set(imports(path))


def test_a_model_has_a_type() -> None:
    """An argument or attribute `model` or `module` of type Any would hollow out strict mypy."""
    untyped = [
        f"{path.relative_to(ROOT)}:{node.lineno}"
        for path in sources("ldm")
        for node in ast.walk(ast.parse(path.read_text(), str(path)))
        if isinstance(node, ast.arg | ast.AnnAssign) and node.annotation is not None
        if ast.unparse(node.annotation) == "Any"
        if (node.arg if isinstance(node, ast.arg) else ast.unparse(node.target))
        in ("model", "module", "pl_module", "self.model")
    ]
    assert not untyped


def test_nothing_imports_what_the_project_does_without() -> None:
    for path in [*ROOT.glob("*.py"), *sources("ldm", "scripts", "tests")]:
        used = {name.split(".")[0] for name in imports(path)}
        assert not used & DONE_WITHOUT, f"{path.relative_to(ROOT)} imports {used & DONE_WITHOUT}"


@pytest.mark.parametrize("command", COMMANDS, ids=str)
def test_every_command_answers_help_at_once(command: Path, tmp_path: Path) -> None:
    """From a folder that is not the root, and without the seconds that importing torch takes.

    The miniature's own tools may take those seconds: only who retrains it calls them.
    """
    result = subprocess.run(
        [sys.executable, "-X", "importtime", str(ROOT / command), "--help"],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert result.returncode == 0, result.stderr[-2000:]
    assert "usage:" in result.stdout
    assert len(result.stdout.splitlines()) > 5
    loaded = {line.rpartition("|")[2].strip() for line in result.stderr.splitlines()}
    late = "torch" not in loaded or "miniature" in command.parts
    assert late, "import torch after the arguments are parsed"
