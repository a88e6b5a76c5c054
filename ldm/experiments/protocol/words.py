"""The words that a table learned, put where they stay: VARIANT/seedN/CONCEPT.safetensors.

A folder VARIANT/seedN is what `scripts/figures` takes as --words. Each file says where it comes
from: concept, variant, seed, steps, hashes of the configuration and of the model.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ldm.experiments.protocol.cells import Cell
from ldm.experiments.protocol.folder import WORD, scores_of, write_whole
from ldm.experiments.protocol.run import cell_folder


def keep_words(output: Path, cells: Sequence[Cell], target: Path) -> int:
    """Copy the words of a table's finished cells.

    Args:
        output: the table's folder.
        cells: of the table.
        target: where to; files of the same names are replaced.

    Returns:
        How many.
    """
    count = 0
    for cell in cells:
        folder = cell_folder(output, cell)
        if cell.learn is None or not scores_of(folder, cell):
            continue
        place = target / cell.variant / f"seed{cell.seed}" / f"{cell.concept}.safetensors"
        write_whole(place, (folder / WORD).read_bytes())
        count += 1
    return count
