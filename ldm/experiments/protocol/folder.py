"""A cell's folder: its files, whether the cell is finished, and the lock while it runs.

cell.json            what it is
word.safetensors     the learned word, with where it comes from
difference.safetensors  what tuning moved the networks by, for a variant that does
scores.json          written last and whole: with it the cell is finished
images.zip         the first images of each prompt, where the protocol keeps any
times.json           how long it took
metrics.csv          the training's curves
cell.log             everything the run said

A training under way has its log folder there too, learning-HASH.
"""

from __future__ import annotations

import fcntl
import io
import json
import os
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image

from ldm.experiments.protocol.cells import Cell
from ldm.util import UserError, write_whole

if TYPE_CHECKING:
    from ldm.evaluation.sources import ImageSource

CELL, SCORES, TIMES, LOG, LOCK = "cell.json", "scores.json", "times.json", "cell.log", ".lock"
WORD, DELTA, CURVES = "word.safetensors", "difference.safetensors", "metrics.csv"
IMAGES = "pictures.zip"
GROUP = "group.json"  # not a cell's: the folders of cells that one process runs
INDEX = "prompts.json"  # in it: the prompts, in the order of the images' first numbers
# What a cell run elsewhere sends home; the scores are to be written last.
KEPT = (LOG, CURVES, DELTA, WORD, IMAGES, TIMES, SCORES)
# What it may begin with: a word whose scores alone are to be made anew.
SENT = (WORD, DELTA)


def read_json(path: Path) -> dict[str, Any]:
    """Return a file's mapping; empty where there is none that can be read."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def scores_of(folder: Path, cell: Cell) -> dict[str, Any]:
    """Return a finished cell's scores.json; empty where it has none of these settings."""
    found = read_json(folder / SCORES)
    return found if found.get("score_hash") == cell.score_hash else {}


def is_outdated(folder: Path, cell: Cell) -> bool:
    """Tell whether a cell was finished under other settings."""
    return (folder / SCORES).is_file() and not scores_of(folder, cell)


def prepare(folder: Path, cell: Cell) -> None:
    """Make a cell's folder ready for its run: cell.json is its own, and no scores are of others."""
    folder.mkdir(parents=True, exist_ok=True)
    if is_outdated(folder, cell):
        (folder / SCORES).unlink()
    write_whole(folder / CELL, cell.to_json())


def files_of(folder: Path, names: Sequence[str]) -> dict[str, bytes]:
    """Return the contents of those files of a cell that are there: of `SENT`, or of `KEPT`."""
    return {name: (folder / name).read_bytes() for name in names if (folder / name).is_file()}


def receive(folder: Path, files: Mapping[str, bytes]) -> None:
    """Write what a run elsewhere made, the scores last."""
    for name in KEPT:
        if name in files:
            write_whole(folder / name, files[name])


@dataclass(frozen=True)
class Finished:
    """A finished cell, its scores.json and its folder."""

    cell: Cell
    scores: Mapping[str, Any]
    folder: Path = Path()

    @property
    def has_images(self) -> bool:
        """Whether it has the images of its scores, and not those of an earlier run."""
        return "keep" in self.cell.score and (self.folder / IMAGES).is_file()

    @property
    def unit(self) -> tuple[str, int]:
        """What cells of several variants have in common: concept and seed."""
        return self.cell.concept, self.cell.seed

    def has(self, score: str) -> bool:
        """Tell whether the cell has a score."""
        return score in self.scores or score in self.scores.get("extra", {})

    def value(self, score: str) -> float:
        """Return a score's mean."""
        found = self.scores[score] if score in self.scores else self.scores["extra"][score]
        return float(found["value"])

    @property
    def training_images(self) -> int:
        """How many images the word was learned from, or that there are of the concept."""
        part = self.cell.learn["pictures"] if self.cell.learn else self.cell.score["training"]
        return len(part)

    @property
    def steps(self) -> int:
        """Optimizer steps; 0 where nothing was learned."""
        return int(self.cell.learn["steps"]) if self.cell.learn else 0


def finished(folder: Path, cell: Cell) -> Finished | None:
    """Return a cell with its scores; None where it has none of these settings."""
    scores = scores_of(folder, cell)
    return Finished(cell, scores, folder) if scores else None


def keeping(source: ImageSource, count: int, kept: dict[str, list[Image.Image]]) -> ImageSource:
    """Return a source that puts the first `count` images of each prompt into `kept`, too."""

    def generated(prompts: Sequence[str], each: int) -> list[Image.Image]:
        images = source(prompts, each)
        for i, prompt in enumerate(prompts):
            kept[prompt] = images[i * each : i * each + min(count, each)]
        return images

    return generated


def write_images(path: Path, images: Mapping[str, Sequence[Image.Image]]) -> None:
    """Write prompts' images as a ZIP of PNG files, whole or not at all."""
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr(INDEX, json.dumps(list(images), ensure_ascii=False))
        for i, own in enumerate(images.values()):
            for j, image in enumerate(own):
                png = io.BytesIO()
                image.save(png, "PNG")
                file.writestr(f"{i:02d}-{j:02d}.png", png.getvalue())
    write_whole(path, archive.getvalue())


def read_images(path: Path) -> dict[str, list[Image.Image]]:
    """Return what `write_images` wrote; UserError where there is no such archive."""
    found: dict[str, list[Image.Image]] = {}
    try:
        with zipfile.ZipFile(path) as file:
            names = sorted(file.namelist())
            for i, prompt in enumerate(json.loads(file.read(INDEX))):
                own = [name for name in names if name.startswith(f"{i:02d}-")]
                found[prompt] = [Image.open(io.BytesIO(file.read(name))) for name in own]
    except OSError as error:
        raise UserError(f"images {path}: {error.strerror or error}") from error
    except (zipfile.BadZipFile, KeyError, ValueError) as error:
        raise UserError(f"images {path}: no archive that a protocol's cell kept") from error
    return found


class Lock:
    """Keeps a cell's folder for one process; ends when the last process that holds it has ended."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.handle = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT, 0o666)

    def take(self, wait: bool = False) -> bool:
        """Take it; False where another process has it and this is not to wait for that."""
        try:
            fcntl.flock(self.handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            return False
        return True

    def close(self) -> None:
        """Release it; processes that got `handle` keep it."""
        os.close(self.handle)
