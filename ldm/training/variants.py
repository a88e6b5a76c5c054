"""The paper's variants by name: small YAML files laid over a base configuration.

`configs/variants/NAME.yaml` holds what the variant changes, and a mapping `variant:` with

    about: one sentence on what it is
    source: what its images come from; see `SOURCES`

A leaf: `main.py` finds overlays here; the protocol and the evaluation learn from `source` what
there is to learn and to draw.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ldm.resources import ROOT
from ldm.util import UserError

FOLDER = ROOT / "configs" / "variants"
# Where a variant's images come from (paper, section 4): of these only the first is trained.
SOURCES: Mapping[str, str] = {
    "learned": "drawn from prompts that name a learned word",
    "captions": "drawn by the base model from a human's captions in the word's place",
    "images": "the training images themselves",
    "prompts": "drawn by the base model from the prompts without the word",
}
KEYS = ("name", "about", "source")


@dataclass(frozen=True)
class Variant:
    """One variant of the method.

    Attributes:
        name: of the file, without its suffix.
        path: of the overlay.
        about: one sentence.
        source: one of `SOURCES`.
    """

    name: str
    path: Path
    about: str
    source: str


def variant_names(folder: Path = FOLDER) -> list[str]:
    """Return the names of the variants there are, sorted."""
    return sorted(path.stem for path in folder.glob("*.yaml"))


def find_variant(name: str, folder: Path = FOLDER) -> Variant:
    """Return a variant by name.

    Raises:
        UserError: there is none of that name (names the nearest first), or its file does not say
            what it is.
    """
    names = variant_names(folder)
    if name not in names:
        near = difflib.get_close_matches(name, names, len(names), cutoff=0.0)
        raise UserError(f"no variant {name!r}: there are {', '.join(near) or 'none'} in {folder}")
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException
    from yaml import YAMLError  # type: ignore[import-untyped]

    path = folder / f"{name}.yaml"
    try:
        content = OmegaConf.to_container(OmegaConf.load(path))
    except (YAMLError, OmegaConfBaseException, OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read variant {path}: {' '.join(str(error).split())}") from error
    found = content.get("variant") if isinstance(content, Mapping) else None
    facts = check_variant(found, str(path))
    return Variant(name, path, facts["about"], facts["source"])


def check_variant(facts: Any, where: str) -> Mapping[str, Any]:
    """Return a `variant:` mapping, checked.

    Args:
        facts: the mapping.
        where: what to call its file.

    Raises:
        UserError: it is none, has other keys, or a `source` that does not exist.
    """
    if not isinstance(facts, Mapping):
        raise UserError(f"{where}: expected variant: {{about: one sentence, source: learned}}")
    strangers = [str(key) for key in facts if key not in KEYS]
    if strangers:
        raise UserError(f"{where}: unknown key variant.{strangers[0]}: known are {', '.join(KEYS)}")
    if not isinstance(facts.get("about"), str):
        raise UserError(f"{where}: variant.about must be one sentence, got {facts.get('about')!r}")
    if facts.get("source") not in SOURCES:
        raise UserError(
            f"{where}: variant.source must be one of {', '.join(SOURCES)}, "
            f"got {facts.get('source')!r}"
        )
    return facts


def check_learned(facts: Mapping[str, Any]) -> None:
    """Raise UserError where a variant has nothing to train.

    Args:
        facts: a checked `variant:` mapping, with its `name` where that is known.
    """
    if facts["source"] != "learned":
        name = facts.get("name") or facts["about"]
        raise UserError(
            f"variant {name} learns nothing, its images are {SOURCES[facts['source']]}: score "
            "them with scripts/evaluate_model.py"
        )
