"""A table's results: a line for each cell and prompt, and for each variant its mean with intervals.

Everything comes from the cells' scores.json in the table's own order, so that a table that was
interrupted and resumed equals an uninterrupted one byte for byte. times.csv has the times.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ldm.evaluation.bootstrap import Estimate, mean_over
from ldm.experiments import tables
from ldm.experiments.protocol import claims
from ldm.experiments.protocol.cells import Cell
from ldm.experiments.protocol.folder import TIMES, WORD, Finished, finished, read_json
from ldm.experiments.protocol.run import cell_folder
from ldm.util import write_json, write_whole

SCORES = ("image", "text", "text_of_average")
# The miniature's CLIP gives these too (`ldm.miniature.editability`); another scorer does not.
EXTRA = ("scene_accuracy", "medium_accuracy", "edit_accuracy")
ENDS = ("value", "low", "high")
ROW = (
    *("concept", "variant", "source", "seed", "training_pictures", "steps", "prompt", "pictures"),
    *(f"{score}_{end}" for score in SCORES for end in ENDS),
    *("word_norm", "vocabulary_norm"),
)
SUMMARY = (
    *("variant", "source", "training_pictures", "steps", "cells", "concepts"),
    *(f"{score}_{end}" for score in SCORES + EXTRA for end in ENDS),
    *(f"{score}_minus_reference_{end}" for score in SCORES + EXTRA for end in ENDS),
    *("training", "word_norm", "vocabulary_norm"),
)
TIME = ("concept", "variant", "seed", "learn", "resumed", "steps", "score", "pictures", "finished")


@dataclass(frozen=True)
class VariantSummary:
    """A variant's means over concepts and seeds; intervals resample concepts, then seeds in each.

    Attributes:
        cells, concepts: how many finished ones they come from.
        scores: image, text, text_of_average and, where all cells have them, `EXTRA` → mean.
        differences: the same less the reference variant's, over the cells that both have.
        training: mean similarity of the training images with each other; None of single ones.
        word_norm, vocabulary_norm: means; None where nothing was learned.
    """

    variant: str
    source: str
    training_images: int
    steps: int
    cells: int
    concepts: int
    scores: Mapping[str, Estimate]
    differences: Mapping[str, Estimate]
    training: float | None
    word_norm: float | None
    vocabulary_norm: float | None


def finished_cells(output: Path, cells: Sequence[Cell]) -> list[Finished]:
    """Return the finished ones of a table's cells, in its order."""
    found = (finished(cell_folder(output, cell), cell) for cell in cells)
    return [item for item in found if item]


def rows(found: Sequence[Finished]) -> list[dict[str, Any]]:
    """Return a row for each cell and prompt; columns as in `ROW`, those without a value left out.

    The image prompt's row has the image similarity, the others have the text's.
    """
    made = []
    for item in found:
        common = {
            **{name: getattr(item.cell, name) for name in ("concept", "variant", "source", "seed")},
            "training_pictures": item.training_images,
            "steps": item.steps,
            "word_norm": item.scores["word_norm"],
            "vocabulary_norm": item.scores["vocabulary_norm"],
        }
        asked = item.cell.score
        own = {"prompt": asked["image_prompt"], "pictures": asked["pictures"]}
        made.append({**common, **own, **_ends("image", item.scores["image"])})
        for prompt in item.scores["prompts"]:
            count = prompt["images"] if "images" in prompt else prompt["pictures"]  # the older name
            own = {"prompt": prompt["prompt"], "pictures": count}
            text = _ends("text", prompt["mean"])
            made.append({**common, **own, **text, **_ends("text_of_average", prompt["of_average"])})
    return made


def summarise(
    found: Sequence[Finished], reference: str, resamples: int = 1000
) -> list[VariantSummary]:
    """Return each variant's means, in the table's order; differences are to the reference's."""
    variants = dict.fromkeys(item.cell.variant for item in found)
    base = {item.unit: item for item in found if item.cell.variant == reference}
    made = []
    for name in variants:
        own = [item for item in found if item.cell.variant == name]
        paired = [item for item in own if item.unit in base]
        differences = {}
        for score in _shared([*paired, *(base[item.unit] for item in paired)]):
            values = [item.value(score) - base[item.unit].value(score) for item in paired]
            differences[score] = mean_over(values, [i.cell.concept for i in paired], resamples)
        concepts = [item.cell.concept for item in own]
        made.append(
            VariantSummary(
                variant=name,
                source=own[0].cell.source,
                training_images=own[0].training_images,
                steps=own[0].steps,
                cells=len(own),
                concepts=len(set(concepts)),
                scores={
                    score: mean_over([i.value(score) for i in own], concepts, resamples)
                    for score in _shared(own)
                },
                differences=differences,
                training=_mean(item.scores["training"] for item in own),
                word_norm=_mean(item.scores["word_norm"] for item in own),
                vocabulary_norm=_mean(item.scores["vocabulary_norm"] for item in own),
            )
        )
    return made


def write_results(output: Path, cells: Sequence[Cell], reference: str, resamples: int) -> int:
    """Write table.csv, summary.csv, .json and .md, claims.csv and .md, and times.csv.

    Returns how many cells they come from.
    """
    found = finished_cells(output, cells)
    summaries = summarise(found, reference, resamples)
    _write_csv(output / "table.csv", ROW, rows(found))
    _write_csv(output / "summary.csv", SUMMARY, [_summary_row(item) for item in summaries])
    content = {
        "reference": reference,
        "cells": len(found),
        "planned": len(cells),
        "variants": [asdict(item) for item in summaries],
    }
    write_json(output / "summary.json", content)
    write_whole(output / "summary.md", markdown(summaries))
    findings = claims.find(found, resamples)
    rows_of_claims = [finding.row() for finding in findings]
    write_whole(output / "claims.csv", tables.csv_text(claims.COLUMNS, rows_of_claims))
    write_whole(output / "claims.md", claims.markdown(findings))
    times = []
    for item in found:
        own = {name: getattr(item.cell, name) for name in TIME[:3]}
        times.append({**own, **read_json(item.folder / TIMES)})
    _write_csv(output / "times.csv", TIME, times)
    return len(found)


def keep_words(output: Path, cells: Sequence[Cell], target: Path) -> int:
    """Copy the words of a grid's finished cells to `target`/VARIANT/seedN/CONCEPT.safetensors.

    Each file says where it comes from: concept, variant, seed, steps, hashes of the configuration
    and of the model. A folder VARIANT/seedN is what `scripts/figures.py` takes as --words. Returns
    how many words there are.
    """
    count = 0
    for item in finished_cells(output, cells):
        cell = item.cell
        if cell.learn is not None:
            place = target / cell.variant / f"seed{cell.seed}" / f"{cell.concept}.safetensors"
            write_whole(place, (item.folder / WORD).read_bytes())
            count += 1
    return count


def markdown(summaries: Sequence[VariantSummary]) -> str:
    """Return the summary as a Markdown table."""
    head = ["variant", "steps", "image similarity", "text similarity", "of the average"]
    names = [*SCORES, "edit_accuracy"]
    if any("edit_accuracy" in item.scores for item in summaries):
        head.append("edit accuracy")
    else:
        names.pop()
    head.append("cells")
    rows = []
    for item in summaries:
        found = [item.scores.get(name) for name in names]
        means = [f"{e.value:.3f} [{e.low:.3f}, {e.high:.3f}]" if e else "" for e in found]
        rows.append((item.variant, str(item.steps or ""), *means, str(item.cells)))
    return tables.markdown(head, rows)


def _summary_row(item: VariantSummary) -> dict[str, Any]:
    row = {name: getattr(item, name) for name in SUMMARY if hasattr(item, name)}
    row["training_pictures"] = item.training_images
    for score, estimate in item.scores.items():
        row |= _ends(score, asdict(estimate))
    for score, estimate in item.differences.items():
        row |= _ends(f"{score}_minus_reference", asdict(estimate))
    return row


def _ends(score: str, estimate: Mapping[str, float]) -> dict[str, float]:
    return {f"{score}_{end}": estimate[end] for end in ENDS}


def _shared(found: Sequence[Finished]) -> list[str]:
    """Return the scores that all cells have; none of no cells."""
    names = SCORES + EXTRA if found else ()
    return [name for name in names if all(item.has(name) for item in found)]


def _mean(values: Any) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None


def _write_csv(path: Path, columns: Sequence[str], made: Sequence[Mapping[str, Any]]) -> None:
    rows = [[row.get(name) for name in columns] for row in made]
    write_whole(path, tables.csv_text(columns, rows))
