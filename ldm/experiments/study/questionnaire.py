"""The user study of the paper (Gal et al., section 5.3): two questionnaires, blinded and shuffled.

(a) `image`: four training images, and one image of every model to rank by likeness to them.
(b) `text`: a text without the word, and one image of every model to rank by likeness to it.

Images get names without meaning after shuffling. A key, which participants do not see, says which
model generated each image. `ldm.experiments.study.page` makes the pages,
`ldm.experiments.study.analysis` reads the answers.
"""

from __future__ import annotations

import csv
import hashlib
import io
import itertools
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from ldm.evaluation.similarity import without_placeholders
from ldm.image_io import open_rgb
from ldm.util import UserError, quote, read_text, write_json

KINDS = ("image", "text")
TRAINING = "training"  # the model's name in a manifest's rows of training images
SHOWN = 4  # training images a question
COLUMNS = ("model", "picture")
KEY_FORMAT = "ldm-study-key"


@dataclass(frozen=True)
class ManifestRow:
    """A row of the manifest: one image.

    Attributes:
        concept: what was learned; may be empty where there is one alone.
        model: what generated it, or `TRAINING`.
        prompt: with its placeholder; empty for training images.
    """

    concept: str
    model: str
    prompt: str
    image: Path


@dataclass(frozen=True)
class Choice:
    """An image to rank: a name without meaning, the model that generated it, the file."""

    name: str
    model: str
    image: str


@dataclass(frozen=True)
class Question:
    """One ranking to give.

    Attributes:
        name: name of the question.
        concept, prompt: what was generated.
        text: to compare with; empty in the questionnaire of images.
        examples: training images to compare with; none in the questionnaire of texts.
        choices: an image of each model, shuffled.
    """

    name: str
    concept: str
    prompt: str
    text: str
    examples: tuple[str, ...]
    choices: tuple[Choice, ...]


@dataclass(frozen=True)
class Study:
    """Both questionnaires, and the settings that made them.

    Attributes:
        name: 16 hexadecimal digits of all that is in it; answers name it.
        seed: seed of the shuffling and of the choice of images.
        models: sorted by name.
        questions: by kind of questionnaire.
    """

    name: str
    seed: int
    models: tuple[str, ...]
    questions: Mapping[str, tuple[Question, ...]]


def read_manifest(path: str | Path) -> list[ManifestRow]:
    """Read which model generated each image: CSV, or JSON with a list of objects.

    Columns: `model`, `image` (a file, looked up from the manifest's folder), `prompt`, and
    `concept`, which may be left out. Rows whose model is "training" name the training images.
    Raises UserError for a file that is unreadable, has no rows, or lacks a column or an image.
    """
    path = Path(path)
    text = read_text(path, "manifest")
    try:
        rows = (
            json.loads(text) if path.suffix == ".json" else list(csv.DictReader(io.StringIO(text)))
        )
    except ValueError as error:
        raise UserError(f"manifest {path}: {error}") from error
    if not isinstance(rows, list) or not rows or not all(isinstance(row, dict) for row in rows):
        raise UserError(f"manifest {path}: no rows; needed are {', '.join(COLUMNS)} and prompt")
    return [_row(path, number, row) for number, row in enumerate(rows, 1)]


def _row(path: Path, number: int, row: Mapping[str, Any]) -> ManifestRow:
    given = {key: str(value or "").strip() for key, value in row.items() if key is not None}
    for column in COLUMNS:
        if not given.get(column):
            raise UserError(f"manifest {path}, row {number}: no {column}")
    if given["model"] != TRAINING and not given.get("prompt"):
        raise UserError(f"manifest {path}, row {number}: no prompt")
    image = path.parent / given["picture"]
    if not image.is_file():
        raise UserError(f"manifest {path}, row {number}: image {image} does not exist")
    return ManifestRow(given.get("concept", ""), given["model"], given.get("prompt", ""), image)


def make_study(
    rows: Sequence[ManifestRow],
    *,
    seed: int = 0,
    image_prompt: str = "A photo of *",
    placeholders: Sequence[str] = ("*",),
) -> Study:
    """Choose images and shuffle them.

    Each concept gives one question about images, with the images of `image_prompt`, and one about
    each other prompt's text, without its placeholders. If a model has several images of a prompt,
    one is chosen at random; so are four of the training images. `seed` decides all random choices.

    Raises UserError for fewer than two models, a model without an image of a prompt that others
    have, fewer than four training images, or nothing to ask in one of the questionnaires.
    """
    models = tuple(sorted({row.model for row in rows} - {TRAINING}))
    if len(models) < 2:
        raise UserError(f"a ranking needs at least two models, the manifest has {list(models)}")
    rng = np.random.default_rng(seed)
    asked: dict[str, list[Question]] = {kind: [] for kind in KINDS}
    wanted = sorted({(row.concept, row.prompt) for row in rows if row.model != TRAINING})
    for concept, prompt in wanted:
        kind = "image" if prompt == image_prompt else "text"
        chosen = [_one_of(rows, concept, model, prompt, rng) for model in models]
        order = rng.permutation(len(models))
        choices = tuple(Choice("", models[i], str(chosen[i])) for i in order)
        text = without_placeholders(prompt, placeholders) if kind == "text" else ""
        examples = _examples(rows, concept, rng) if kind == "image" else ()
        asked[kind].append(Question("", concept, prompt, text, examples, choices))
    for kind, questions in asked.items():
        if not questions:
            raise UserError(
                f"nothing to ask in the {kind} questionnaire: the manifest's prompts are "
                f"{sorted({prompt for _, prompt in wanted})}, --image_prompt is {image_prompt!r}"
            )
    shuffled = {kind: _named(kind, asked[kind], rng) for kind in KINDS}
    return Study(_digest(shuffled), seed, models, shuffled)


def _one_of(
    rows: Sequence[ManifestRow], concept: str, model: str, prompt: str, rng: np.random.Generator
) -> Path:
    have = [r.image for r in rows if (r.concept, r.model, r.prompt) == (concept, model, prompt)]
    if not have:
        of = f" of {concept!r}" if concept else ""
        raise UserError(f"the manifest has no image{of} by {model!r} from {quote(prompt)}: add one")
    return have[rng.integers(len(have))]


def _examples(
    rows: Sequence[ManifestRow], concept: str, rng: np.random.Generator
) -> tuple[str, ...]:
    have = [r.image for r in rows if (r.concept, r.model) == (concept, TRAINING)]
    if len(have) < SHOWN:
        of = f" of {concept!r}" if concept else ""
        raise UserError(
            f"the manifest has {len(have)} training images{of}, a question shows {SHOWN}: add "
            f"rows whose model is {TRAINING!r}"
        )
    return tuple(str(have[i]) for i in rng.choice(len(have), SHOWN, replace=False))


def _named(
    kind: str, questions: Sequence[Question], rng: np.random.Generator
) -> tuple[Question, ...]:
    """Shuffle questions, and give them and their images names by a second shuffling."""
    names = iter(rng.permutation(sum(len(question.choices) for question in questions)))
    named = []
    for number, i in enumerate(rng.permutation(len(questions)), 1):
        choices = tuple(
            replace(choice, name=f"{kind[0]}p{next(names):03d}") for choice in questions[i].choices
        )
        named.append(replace(questions[i], name=f"{kind[0]}{number:02d}", choices=choices))
    return tuple(named)


def _digest(questions: Mapping[str, tuple[Question, ...]]) -> str:
    """Return a name for what a study shows: its texts, the names and the pixels of its images."""
    digest = hashlib.sha256()
    for kind in KINDS:
        for question in questions[kind]:
            digest.update(f"{kind} {question.name} {question.text}".encode())
            for choice in question.choices:
                digest.update(f"{choice.name} {choice.model}".encode())
            for file in (*question.examples, *(choice.image for choice in question.choices)):
                digest.update(open_rgb(file).tobytes())
    return digest.hexdigest()[:16]


def write_key(path: Path, study: Study) -> None:
    """Write which model generated each image; the file is not for those who answer.

    Images below the key's folder are written as seen from there, so that the folder may be moved;
    others with their whole path.
    """
    folder = path.parent.resolve()

    def place(file: str) -> str:
        whole = Path(file).resolve()
        return whole.relative_to(folder).as_posix() if whole.is_relative_to(folder) else str(whole)

    content = {"format": KEY_FORMAT, **asdict(study)}
    for question in itertools.chain(*content["questions"].values()):
        question["examples"] = list(map(place, question["examples"]))
        for choice in question["choices"]:
            choice["image"] = place(choice["image"])
    write_json(path, content, indent=1)


def read_key(path: str | Path) -> Study:
    """Read what `write_key` wrote, or UserError; its images need not be there."""
    folder = Path(path).parent

    def place(file: str) -> str:
        beside = folder / file
        # Keys of earlier versions have paths relative to where the study was made.
        return file if not beside.exists() and Path(file).exists() else str(beside)

    def typed(entry: dict[str, Any]) -> Any:
        if "choices" in entry:
            examples, choices = tuple(map(place, entry["examples"])), tuple(entry["choices"])
            return Question(**{**entry, "examples": examples, "choices": choices})
        if "model" in entry:  # older keys say `picture` for `image`
            file = entry.get("image") or entry["picture"]
            return Choice(entry["name"], entry["model"], place(file))
        return entry

    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"), object_hook=typed)
        if content.pop("format") != KEY_FORMAT:
            raise KeyError
        questions = {kind: tuple(content["questions"][kind]) for kind in KINDS}
        return Study(content["name"], content["seed"], tuple(content["models"]), questions)
    except OSError as error:
        raise UserError(f"key {path}: {error.strerror}") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"key {path} is no key of a study: give the key.json that `user_study.py make` wrote"
        ) from error
