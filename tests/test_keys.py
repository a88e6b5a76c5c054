"""The page of YAML keys describes every parameter, and every key that a shipped YAML sets."""

from __future__ import annotations

import importlib.util
import inspect
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from omegaconf import OmegaConf

from ldm.modules.diffusionmodules.model import Encoder
from ldm.training.variants import variant_names
from ldm.util import get_obj_from_str, parameters

ROOT = Path(__file__).parents[1]
# Mappings whose keys are names that the file gives.
NAMED = ("lightning.callbacks",)
# Described beside the tables; the last is taken out by the model before it builds the words.
BESIDE = {"target", "params", "base_learning_rate", "embedding_manager_ckpt"}


@pytest.fixture(scope="module")
def keys() -> ModuleType:
    spec = importlib.util.spec_from_file_location("keys", ROOT / "docs" / "keys.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def known(keys: ModuleType) -> set[str]:
    """Every key of a table, and every name in code in the introduction and lists."""
    text = (ROOT / "docs/reference/keys.md").read_text("utf-8") + keys.page()
    names = re.findall(r"`([\w.]+)`", text)
    return {part for name in names for part in name.split(".")} | BESIDE


def configurations() -> list[Path]:
    found = sorted((ROOT / "configs").rglob("*.yaml"))
    return [path for path in found if path.parent.name != "protocol"]


def mappings(where: str, node: Any) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Every mapping in a tree, and the dotted name of its place."""
    if isinstance(node, Mapping):
        yield where, node
        for name, value in node.items():
            yield from mappings(f"{where}.{name}".lstrip("."), value)


def test_every_parameter_is_described(keys: ModuleType) -> None:
    for kind, name in keys.CLASSES.items():
        missing = [parameter.name for parameter, about in keys.keys_of(kind) if not about]
        assert not missing, f"{name}: the docstring's Args lack {missing}"


def test_a_description_is_of_a_parameter(keys: ModuleType) -> None:
    for kind, name in keys.CLASSES.items():
        own = keys.described(kind)
        doc = inspect.cleandoc(kind.__doc__ or "")
        args = set(own) if "Attributes:" not in doc else set()
        taken = {*parameters(kind)[0], *inspect.signature(kind).parameters}
        assert args <= taken, f"{name}: no parameter {args - taken}"


@pytest.mark.parametrize("path", configurations(), ids=lambda p: str(p.relative_to(ROOT)))
def test_the_page_knows_what_a_configuration_sets(
    path: Path, keys: ModuleType, known: set[str]
) -> None:
    content = OmegaConf.to_container(OmegaConf.load(path))
    for where, mapping in mappings("", content):
        if where not in NAMED:
            assert set(map(str, mapping)) <= known, f"{where}: {set(mapping) - known}"
        name = str(mapping.get("target", ""))
        if not name.startswith(("ldm.", "main.")):
            continue
        kind = get_obj_from_str(name)
        assert kind in keys.CLASSES, f"the page has no section of {name}"
        taken = set(parameters(kind)[0]) | BESIDE
        assert set(mapping.get("params") or {}) <= taken
        networks = (mapping.get("params") or {}).get("ddconfig") or {}
        assert set(networks) <= set(parameters(Encoder)[0])


def test_the_page_knows_what_a_protocol_sets(keys: ModuleType) -> None:
    text = "\n".join(keys.protocol())
    for path in (ROOT / "configs/protocol").glob("*.yaml"):
        for key in OmegaConf.load(path):
            assert re.search(rf"^\s+\"?{key}\b", text, re.MULTILINE), f"no {key} in the page"


def test_the_guide_lists_every_variant() -> None:
    guide = (ROOT / "docs/configuration.md").read_text("utf-8")
    assert not [name for name in variant_names() if f"`{name}`" not in guide]
