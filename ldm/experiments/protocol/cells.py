"""The cells of a protocol's table: what decides each cell's scores, and where its files are.

A cell is one concept learned by one variant with one seed. Two hashes tell whether a finished cell
is still valid: one of what decided the word, one of what decided its scores. Both cover the
contents of files, not their paths, so a table may be moved, and cells of several machines are the
same.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

from ldm.experiments.protocol.spec import ProtocolConcept, ProtocolSpec, ProtocolVariant
from ldm.resources import ROOT

# Seeds are multiplied by this, so that no two seeds of a protocol share a noise.
NOISES_A_SEED = 1_000_000


@dataclass(frozen=True)
class Cell:
    """One run of the table.

    Attributes:
        concept, variant, seed: what the cell is.
        source: where its images come from, one of `ldm.training.variants.SOURCES`.
        learn: what decides the word; None where none is learned.
        score: what decides the scores, except the word.
        places: where the files are on this machine; not part of the hashes.
    """

    concept: str
    variant: str
    seed: int
    source: str
    learn: Mapping[str, Any] | None
    score: Mapping[str, Any]
    places: Mapping[str, Any]

    @property
    def name(self) -> str:
        """The cell's folder, below that of all cells."""
        return f"{self.concept}/{self.variant}/seed{self.seed}"

    @property
    def learn_hash(self) -> str:
        """16 hexadecimal digits of what decides the word; empty where there is none."""
        return "" if self.learn is None else digest(self.learn)

    @property
    def score_hash(self) -> str:
        """16 hexadecimal digits of what decides the scores."""
        return digest({"learn": self.learn_hash, "score": self.score, "source": self.source})

    @property
    def images_generated(self) -> int:
        """How many images its scoring generates."""
        if self.source == "images":
            return 0
        prompts = {self.score["image_prompt"], *self.score["prompts"]}
        return int(self.score["pictures"]) * len(prompts)

    def to_json(self) -> str:
        """Return everything as text; `from_json` takes it back."""
        plain = {**asdict(self), "learn_hash": self.learn_hash, "score_hash": self.score_hash}
        return json.dumps(plain, indent=2, ensure_ascii=False) + "\n"

    @classmethod
    def from_json(cls, text: str) -> Cell:
        """Build a cell from what `to_json` gave."""
        plain = json.loads(text)
        return cls(**{name: plain[name] for name in cls.__dataclass_fields__})


def digest(value: Any) -> str:
    """Return 16 hexadecimal digits of a plain value; a mapping's order does not count."""
    text = json.dumps(value, sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def build_cells(spec: ProtocolSpec, extractor: Mapping[str, str]) -> list[Cell]:
    """Return the table's cells: concept by concept, then by variant, then by seed.

    The training images as such are the same whatever the seed: one cell for each concept.
    `extractor` is what decides the extractor's features; see `extractor_facts`.
    """
    from ldm.checkpoint.loading import checkpoint_hash  # torch: a worker may not need it

    once = cache(checkpoint_hash), cache(_hash_config)  # each file is read once
    return [
        _cell(spec, concept, variant, seed, dict(extractor), *once)
        for concept in spec.concepts
        for variant in spec.variants
        for seed in (spec.seeds[:1] if variant.source == "images" else spec.seeds)
    ]


def learning_options(
    spec: ProtocolSpec, concept: ProtocolConcept, variant: ProtocolVariant
) -> list[str]:
    """Return what main.py is told to learn a cell's word, its seed apart."""
    return [
        *("--base", *(str(path) for path in _configs(spec, variant)), "-t", "--no-test"),
        *("--data_root", str(concept.folder), "--init_word", concept.initializer_word),
        *("--placeholder_string", spec.placeholder),
        *("--actual_resume", str(spec.checkpoint), "--max_steps", str(variant.steps)),
        # Nobody looks at the preview images of hundreds of runs.
        "lightning.callbacks.image_logger.params.disabled=true",
        *variant.overrides,
    ]


def _configs(spec: ProtocolSpec, variant: ProtocolVariant) -> list[Path]:
    return [*spec.base, *([variant.overlay] if variant.overlay else [])]


def _hash_config(path: Path) -> str:
    """Hash what a configuration says.

    Comments, the variant's description and `run.threads`, which a cell is told anew, do not count.
    """
    from omegaconf import OmegaConf

    content = OmegaConf.to_container(OmegaConf.load(path))
    assert isinstance(content, dict)
    content.pop("variant", None)
    run = content.pop("run", None) or {}
    run.pop("threads", None)
    return digest(content | ({"run": run} if run else {}))


def _cell(
    spec: ProtocolSpec,
    concept: ProtocolConcept,
    variant: ProtocolVariant,
    seed: int,
    extractor: dict[str, str],
    hash_file: Callable[[Path], str],
    hash_config: Callable[[Path], str],
) -> Cell:
    shown = concept.images[: variant.size]
    learn = None
    if variant.source == "learned":
        learn = {
            "configs": [hash_config(path) for path in _configs(spec, variant)],
            "overrides": list(variant.overrides),
            "checkpoint": hash_file(spec.checkpoint),
            "pictures": {path.name: hash_file(path) for path in shown},
            "first_word": concept.initializer_word,
            "placeholder": spec.placeholder,
            "steps": variant.steps,
            "seed": seed,
        }
    score = {
        "config": hash_config(spec.config),
        "checkpoint": hash_file(spec.checkpoint),
        "extractor": extractor,
        # Of all sizes of the training set the whole of it is the measure.
        "training": {path.name: hash_file(path) for path in concept.images},
        "captions": list(concept.captions.get(variant.captions, ())),
        "placeholder": spec.placeholder,
        "prompts": list(spec.prompts),
        "image_prompt": spec.image_prompt,
        "pictures": len(concept.images) if variant.source == "images" else spec.images,
        "sampler_steps": spec.sampler_steps,
        "scale": spec.scale,
        "resamples": spec.resamples,
        "seed": seed * NOISES_A_SEED,
    }
    if spec.keep_images:
        score["keep"] = spec.keep_images
    places = {
        "root": str(ROOT),
        "checkpoint": str(spec.checkpoint),
        "config": str(spec.config),
        "extractor": spec.extractor,
        "folder": str(concept.folder),
        "size": variant.size,
        "options": learning_options(spec, concept, variant),
    }
    return Cell(concept.name, variant.name, seed, variant.source, learn, score, places)
