"""A protocol's YAML file: what is learned from what, how often, and how it is scored.

    base: [configs/miniature/paper.yaml]    # configurations of the training
    checkpoint: models/miniature            # a file, a folder of diffusers or a Hub name
    config: models/miniature/config.yaml    # of the model that generates
    concepts:
      folder: examples/concepts             # a folder of images for each
      words:
        teal-star: {first_word: star, captions: {short: [teal star]}}
    variants:                               # name: what it changes
      ours: {}                              # the base as it is
      two_words: {}                         # configs/variants/two_words.yaml
      ours_5000: {overlay: base, steps: 5000, overrides: [a.b=c]}
      captions_short: {overlay: human_captions, captions: short}
    sizes: {variant: ours, pictures: [1, 3]}  # Fig. 12: of the first n training images
    seeds: [1, 2, 3]
    prompts: examples/prompts/miniature.txt # one a line

`DEFAULTS` holds the other keys. Paths are looked up from here and then from the project's folder.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ldm.checkpoint.hub import locate_base
from ldm.evaluation.prompts import check_prompts, read_prompts
from ldm.resources import locate
from ldm.training.variants import find_variant
from ldm.util import UserError, one_line

REQUIRED = ("base", "checkpoint", "config", "concepts", "variants", "seeds", "prompts")
# The paper's (section 5 and the authors' evaluation), where nothing says otherwise.
DEFAULTS: Mapping[str, Any] = {
    "placeholder": "*",
    "steps": 5000,  # optimizer steps of a variant that says no other
    "sizes": None,
    "image_prompt": "A photo of *",
    "pictures": 64,  # of each prompt
    "sampler_steps": 50,
    "scale": 5.0,  # of guidance
    "extractor": "openai/clip-vit-base-patch32",
    "resamples": 1000,  # of each interval
    "keep_pictures": 0,  # of each prompt, for people to look at and for the user study
    "words_at_once": 1,  # of a variant and a seed, learned in one run; not on a cluster
    "reference": None,  # the variant that others are compared with; the first by default
    "estimate": {"step": 0.1, "picture": 0.5},  # seconds, until cells have been timed
}
BASE = "base"  # the overlay that is none
# Names become folders.
FORBIDDEN = set('/\\:*?"<>|')


@dataclass(frozen=True)
class ProtocolConcept:
    """What a word is learned for: training images, sorted by name, and what is said of them.

    `captions` has a human's captions by kind, "short" or "long".
    """

    name: str
    folder: Path
    images: tuple[Path, ...]
    initializer_word: str
    captions: Mapping[str, tuple[str, ...]]


@dataclass(frozen=True)
class ProtocolVariant:
    """One way of getting images of a concept.

    Attributes:
        source: where they come from, one of `ldm.training.variants.SOURCES`.
        overlay: laid over the base; None for the base itself.
        overrides: further entries "a.b=c".
        steps: of the optimizer.
        captions: which kind, where captions are the source.
        size: learn from the first so many images; None for all.
    """

    name: str
    source: str
    overlay: Path | None
    overrides: tuple[str, ...]
    steps: int
    captions: str
    size: int | None = None


@dataclass(frozen=True)
class ProtocolSpec:
    """A protocol, checked as far as that takes no weights. Attributes as in the file."""

    base: tuple[Path, ...]
    checkpoint: Path
    config: Path
    placeholder: str
    concepts: tuple[ProtocolConcept, ...]
    variants: tuple[ProtocolVariant, ...]
    seeds: tuple[int, ...]
    prompts: tuple[str, ...]
    image_prompt: str
    images: int
    sampler_steps: int
    scale: float
    extractor: str
    resamples: int
    keep_images: int
    words_at_once: int
    reference: str
    estimate: Mapping[str, float]


def read_protocol(path: str | Path, overrides: Sequence[str] = ()) -> ProtocolSpec:
    """Read and check a protocol, with overrides "a.b=c"; UserError naming the file and the key."""
    from omegaconf import DictConfig, OmegaConf
    from omegaconf.errors import OmegaConfBaseException
    from yaml import YAMLError  # type: ignore[import-untyped]

    path = find(path, "protocol")
    try:
        merged = OmegaConf.merge(OmegaConf.load(path), OmegaConf.from_dotlist(list(overrides)))
        content = OmegaConf.to_container(merged, resolve=True)
    except (YAMLError, OmegaConfBaseException, OSError, ValueError, TypeError) as error:
        raise UserError(f"protocol {path}: {one_line(error)}") from error
    if not isinstance(merged, DictConfig) or not isinstance(content, dict):
        raise UserError(f"protocol {path}: expected a mapping with {', '.join(REQUIRED)}")
    try:
        return _build(_section("", content, REQUIRED, DEFAULTS))
    except UserError as error:
        raise UserError(f"protocol {path}: {error}") from error


def find(path: str | Path, what: str) -> Path:
    """Return a file's absolute path, from here or else from the project's folder; or UserError."""
    found = locate(path)
    if not found.is_file():
        raise UserError(f"{what} {path}: no such file")
    return found.absolute()


def _section(
    where: str, content: Any, required: Sequence[str], defaults: Mapping[str, Any]
) -> dict[str, Any]:
    """Return a mapping's values with the defaults; UserError for strange or missing keys."""
    if not isinstance(content, Mapping):
        raise UserError(f"{where or 'the file'} must be a mapping, got {content!r}")
    prefix = f"{where}." if where else ""
    known = (*required, *defaults)
    for key in content:
        if key not in known:
            raise UserError(f"unknown key {prefix}{key}: known are {', '.join(known)}")
    for key in required:
        if content.get(key) is None:
            raise UserError(f"{prefix}{key} is missing")
    return {**defaults, **content}


def _build(values: dict[str, Any]) -> ProtocolSpec:
    for name in ("placeholder", "prompts", "image_prompt", "checkpoint", "config", "extractor"):
        _text(name, values[name])
    for name, least in {
        "pictures": 1,
        "resamples": 1,
        "keep_pictures": 0,
        "words_at_once": 1,
    }.items():
        _whole(name, values[name], least)
    prompts = read_prompts(find(values["prompts"], "prompts"))
    check_prompts([values["image_prompt"], *prompts], [values["placeholder"]])
    concepts = _concepts(values["concepts"])
    variants = _variants(values["variants"], _whole("steps", values.pop("steps")), concepts)
    variants += _sizes(values.pop("sizes"), variants, concepts)
    reference = values["reference"] or variants[0].name
    if reference not in {variant.name for variant in variants}:
        raise UserError(f"reference {reference!r} is not among the variants")
    seeds = tuple(_whole("seeds", seed, 0) for seed in _list("seeds", values["seeds"]))
    if len(set(seeds)) < len(seeds):
        raise UserError(f"seeds must differ, got {list(seeds)}")
    estimate = _section("estimate", values["estimate"], (), DEFAULTS["estimate"])
    extractor = locate(values["extractor"])  # a folder, or a name on the Hub
    own = {
        "base": tuple(find(path, "base") for path in _list("base", values["base"])),
        "checkpoint": locate_base(values["checkpoint"]).absolute(),
        "config": find(values["config"], "config"),
        "concepts": concepts,
        "variants": variants,
        "seeds": seeds,
        "prompts": tuple(dict.fromkeys(prompts)),
        "images": values.pop("pictures"),
        "keep_images": values.pop("keep_pictures"),
        "sampler_steps": _whole("sampler_steps", values["sampler_steps"], 1, 1000),
        "scale": _number("scale", values["scale"]),
        "extractor": str(extractor.absolute()) if extractor.is_dir() else values["extractor"],
        "reference": reference,
        "estimate": {name: _number(f"estimate.{name}", value) for name, value in estimate.items()},
    }
    return ProtocolSpec(**(values | own))


def _concepts(content: Any) -> tuple[ProtocolConcept, ...]:
    from ldm.data.folder import list_images

    section = _section("concepts", content, ("folder", "words"), {})
    given = _text("concepts.folder", section["folder"])
    folder = locate(given)
    if not folder.is_dir():
        raise UserError(f"concepts.folder {given}: no such folder")
    words = _named("concepts.words", section["words"])
    concepts = []
    for name, entry in words.items():
        where = f"concepts.words.{name}"
        entry = _section(where, entry, ("first_word",), {"captions": {}})
        captions = {
            str(kind): tuple(_text(f"{where}.captions.{kind}", text) for text in _list(kind, texts))
            for kind, texts in _named(f"{where}.captions", entry["captions"] or {}, 0).items()
        }
        own = (folder / name).absolute()
        if not own.is_dir():
            raise UserError(f"concept {name!r} has no folder {own}")
        first = _text(f"{where}.first_word", entry["first_word"])
        concepts.append(ProtocolConcept(name, own, list_images(own), first, captions))
    return tuple(concepts)


def _variants(
    content: Any, steps: int, concepts: Sequence[ProtocolConcept]
) -> tuple[ProtocolVariant, ...]:
    variants = []
    defaults: dict[str, Any] = {"overlay": None, "steps": steps, "overrides": [], "captions": None}
    for name, entry in _named("variants", content).items():
        where = f"variants.{name}"
        values = _section(where, entry or {}, (), defaults)
        overlay = values["overlay"] or (BASE if name == "ours" else name)
        found = None if overlay == BASE else find_variant(_text(f"{where}.overlay", overlay))
        source = found.source if found else "learned"
        if (values["captions"] is not None) != (source == "captions"):
            raise UserError(
                f"{where}.captions must name a kind of caption where they are the images' "
                f"source, and only there; here it is {source!r}"
            )
        overrides = tuple(_text(f"{where}.overrides", o) for o in values["overrides"] or ())
        for text in overrides:
            if "=" not in text:
                raise UserError(f"{where}.overrides: expected a.b=c, got {text!r}")
        path, count = found.path if found else None, _whole(f"{where}.steps", values["steps"])
        captions = str(values["captions"] or "")
        for concept in concepts if source == "captions" else ():
            if not concept.captions.get(captions):
                raise UserError(
                    f"variant {name} wants {captions!r} captions: concept {concept.name!r} has "
                    f"{', '.join(concept.captions) or 'none'}"
                )
        variants.append(ProtocolVariant(name, source, path, overrides, count, captions))
    return tuple(variants)


def _sizes(
    content: Any, variants: Sequence[ProtocolVariant], concepts: Sequence[ProtocolConcept]
) -> tuple[ProtocolVariant, ...]:
    """Return a variant for each size of the training set: NAME_n1, NAME_n2 and so on."""
    if content is None:
        return ()
    section = _section("sizes", content, ("variant", "pictures"), {})
    parent = next((v for v in variants if v.name == section["variant"]), None)
    if parent is None or parent.source != "learned":
        raise UserError(f"sizes.variant {section['variant']!r} is no variant that learns a word")
    sizes = [_whole("sizes.pictures", n) for n in _list("sizes.pictures", section["pictures"])]
    short = min(concepts, key=lambda concept: len(concept.images))
    if max(sizes) > len(short.images):
        raise UserError(
            f"sizes.images: {max(sizes)}, but concept {short.name!r} has {len(short.images)}"
        )
    made = tuple(replace(parent, name=f"{parent.name}_n{size}", size=size) for size in sizes)
    names = [variant.name for variant in (*variants, *made)]
    if len(set(names)) < len(names):
        raise UserError(f"sizes makes a variant twice: {', '.join(v.name for v in made)}")
    return made


def _named(where: str, content: Any, least: int = 1) -> dict[str, Any]:
    """Return a mapping whose names can be folders'."""
    if not isinstance(content, Mapping) or len(content) < least:
        raise UserError(f"{where} must be a mapping of names, got {content!r}")
    for name in content:
        if not isinstance(name, str) or not name.strip(". ") or FORBIDDEN & set(name):
            raise UserError(f"{where}: {name!r} cannot be a folder's name")
    return dict(content)


def _list(where: str, content: Any) -> list[Any]:
    if not isinstance(content, list) or not content:
        raise UserError(f"{where} must be a list of at least one, got {content!r}")
    return content


def _text(where: str, value: Any) -> str:
    if not isinstance(value, str) or not value.strip():
        raise UserError(f"{where} must be a text, got {value!r}")
    return value


def _whole(where: str, value: Any, least: int = 1, most: int = 2**32 - 1) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
        raise UserError(f"{where} must be a whole number from {least} to {most}, got {value!r}")
    return value


def _number(where: str, value: Any) -> float:
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0 <= value < 1e6:
        raise UserError(f"{where} must be a number of at least 0, got {value!r}")
    return float(value)
