"""The user study's images from a protocol: choose its cells, and write a manifest of them."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from pathlib import Path

from ldm.experiments.protocol.cells import Cell
from ldm.experiments.protocol.folder import CELL, IMAGES, Finished, finished, read_images
from ldm.experiments.study.questionnaire import TRAINING
from ldm.image_io import write_image
from ldm.util import UserError, quote, write_table, write_whole

logger = logging.getLogger(__name__)

MANIFEST = "manifest.csv"
COLUMNS = ("concept", "model", "prompt", "picture")
# Settings that must be equal, because they are not properties of the models.
SAME = ("image_prompt", "prompts", "placeholder", "checkpoint", "sampler_steps", "scale")
ADVICE = "set keep_pictures in the protocol's YAML and run it again"


def read_table(output: Path, models: Sequence[str], seeds: Sequence[int] = ()) -> list[Finished]:
    """Choose the cells of a protocol's output whose images a study shows.

    They are sorted by concept, model and seed, and equal in the settings `SAME`.

    Of a concept these are the cells of the seeds that every model has finished, so that no model
    has more images to choose from than another. A concept that lacks a model, or one of the seeds
    asked for, is left out with a warning. `models` are variants; no `seeds` are all that there are.

    Raises UserError where there is no such folder, a model has no finished cells or no images, no
    concept is left, or cells have other prompts or settings than the rest.
    """
    if TRAINING in models:
        raise UserError(f"model {TRAINING!r} cannot be in a study: the training images are so")
    found = _finished(output)
    for model in models:
        own = [item for item in found if item.cell.variant == model]
        if not own:
            raise UserError(
                f"{output} has no finished cell of {model!r}: finish the protocol, or name other "
                "variants with --models"
            )
        if not any(item.has_images for item in own):
            raise UserError(f"{output}: the cells of {model!r} kept no images: {ADVICE}")
    usable = [item for item in found if item.cell.variant in models and item.has_images]
    cells: list[Finished] = []
    for concept in sorted({item.cell.concept for item in found}):
        own = [item for item in usable if item.cell.concept == concept]
        cells += _complete(concept, own, models, seeds)
    if not cells:
        asked = f" of seeds {', '.join(map(str, seeds))}" if seeds else ""
        raise UserError(
            f"{output}: no concept has images{asked} by every model of {', '.join(models)}: "
            "finish the protocol, or name fewer with --models or --seeds"
        )
    first = cells[0].cell
    for item in cells:
        for name in SAME:
            if item.cell.score[name] != first.score[name]:
                raise UserError(
                    f"{output}: cells {first.name} and {item.cell.name} differ in {name}: run the "
                    "protocol again, so that all are of one"
                )
    return cells


def _finished(output: Path) -> list[Finished]:
    if not (output / "cells").is_dir():
        raise UserError(f"{output} is no output of scripts/protocol.py: it has no folder 'cells'")
    found = []
    for path in sorted(output.glob(f"cells/*/*/seed*/{CELL}")):
        try:
            cell = Cell.from_json(path.read_text(encoding="utf-8"))
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UserError(f"{path} describes no cell of a protocol") from error
        if item := finished(path.parent, cell):
            found.append(item)
    return sorted(found, key=lambda item: (item.cell.concept, item.cell.variant, item.cell.seed))


def _complete(
    concept: str, usable: Sequence[Finished], models: Sequence[str], seeds: Sequence[int]
) -> list[Finished]:
    """Return a concept's cells of the seeds that all models have; none where that is not enough."""
    missing = [model for model in models if not any(i.cell.variant == model for i in usable)]
    if missing:
        names = ", ".join(missing)
        logger.warning("%s is left out: no finished cell with images of %s", concept, names)
        return []
    # The training images as such are the same whatever the seed, and have one cell.
    seeded = [item for item in usable if item.cell.source != "images"]
    of = {m: {i.cell.seed for i in seeded if i.cell.variant == m} for m in models}
    common = set.intersection(*(own for own in of.values() if own)) if seeded else set()
    wanted = set(seeds) or common
    if not wanted or not wanted <= common:
        lacking = sorted(wanted - common)
        what = f"seed {lacking[0]}" if lacking else "a seed"
        logger.warning("%s is left out: not every model has finished %s of it", concept, what)
        return []
    return [i for i in usable if i.cell.source == "images" or i.cell.seed in wanted]


def write_manifest(cells: Sequence[Finished], folder: Path) -> Path:
    """Write the cells' images to CONCEPT/MODEL/ and CONCEPT/training/ in a folder, with a manifest.

    Returns the manifest, as `read_manifest` takes it, with paths from its folder. Raises UserError
    for images that are not there, or are damaged.
    """
    rows: list[tuple[str, str, str, str]] = []
    concepts: set[str] = set()
    for item in cells:
        concept, model = item.cell.concept, item.cell.variant
        if concept not in concepts:
            concepts.add(concept)
            names = _copy_training(item.cell, folder)
            rows += ((concept, TRAINING, "", name) for name in names)
        rows += ((concept, model, prompt, name) for prompt, name in _unpack(item, folder))
    path = folder / MANIFEST
    write_table(path, [COLUMNS, *rows])
    return path


def _copy_training(cell: Cell, folder: Path) -> Iterator[str]:
    source = Path(cell.places["folder"])
    target = folder / cell.concept / TRAINING
    for name in cell.score["training"]:
        if not (source / name).is_file():
            raise UserError(
                f"training image {source / name} of cell {cell.name} does not exist: make the "
                "study where the protocol ran, or put the images there"
            )
        write_whole(target / name, (source / name).read_bytes())
        yield (target / name).relative_to(folder).as_posix()


def _unpack(item: Finished, folder: Path) -> Iterator[tuple[str, str]]:
    cell, kept = item.cell, read_images(item.folder / IMAGES)
    prompts = dict.fromkeys([cell.score["image_prompt"], *cell.score["prompts"]])
    target = folder / cell.concept / cell.variant
    for i, prompt in enumerate(prompts):
        if not kept.get(prompt):
            raise UserError(
                f"images {item.folder / IMAGES}: none of {quote(prompt)}, which the cell made: "
                f"delete {item.folder} and run the protocol again"
            )
        for j, image in enumerate(kept[prompt]):
            path = target / f"{i:02d}-seed{cell.seed}-{j:02d}.png"
            write_image(image, path)
            yield prompt, path.relative_to(folder).as_posix()
