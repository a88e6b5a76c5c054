"""`scripts/demo.py`: learn a word with the miniature, draw it, score it, lay it all on a page."""

from __future__ import annotations

import argparse
import json
import logging
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from ldm.cli.common import ROOT, Parser, check_output_folder
from ldm.util import UserError

if TYPE_CHECKING:
    from PIL.Image import Image

    from ldm.experiments.demo.page import DemoResult
    from ldm.experiments.demo.scores import Drawing, Painter, Scores
    from ldm.miniature.measure import Concept

log = logging.getLogger(__name__)
EXAMPLES = """examples:
  python scripts/demo.py
  python scripts/demo.py --concept red-mug --second chalk
  python scripts/demo.py --concept blueprint --steps 200 --outdir outputs/blueprint
"""
# Option, where it points by default, what it is.
FILES = (
    ("base", "configs/miniature/finetune.yaml", "configuration of the training"),
    ("config", "models/miniature/config.yaml", "configuration of the model"),
    ("ckpt", "models/miniature/model.safetensors", "its weights"),
    ("judge", "models/miniature/judge", "folder of the CLIP that scores"),
    ("concepts", "examples/concepts", "folder of what can be learned"),
    ("words", "examples/words", "folder of shipped words"),
)
SECOND_PLACEHOLDERS = ("@", "&")  # the shipped word's new name: the first that is free
STYLE_DATA = (
    "data.params.train.target=ldm.data.personalized_style.PersonalizedBase",
    "data.params.validation.target=ldm.data.personalized_style.PersonalizedBase",
)


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = Parser(
        prog="demo.py",
        description="Learn a word with the miniature model, draw it in five prompts, score it, and "
        "write index.html, grids of images and metrics.json.",
        epilog=EXAMPLES,
    )
    parser.add_argument("--concept", default="teal-star", help="what to learn (teal-star)")
    parser.add_argument("--second", help="shipped word of the composition (a style or a thing)")
    parser.add_argument("--steps", type=int, default=400, help="optimiser steps (400)")
    parser.add_argument("--outdir", type=Path, default=Path("outputs/demo"), help="(outputs/demo)")
    parser.add_argument("--seed", type=int, default=23, help="of the training (23)")
    parser.add_argument("--samples", type=int, default=8, help="pictures a prompt (8)")
    parser.add_argument("--scored", type=int, default=32, help="pictures of the word alone (32)")
    parser.add_argument("--ddim_steps", type=int, default=50, help="of the sampler (50)")
    parser.add_argument("--scale", type=float, default=3.0, help="of guidance (3)")
    group = parser.add_argument_group("other files")
    for name, default, text in FILES:
        group.add_argument(
            f"--{name}", type=Path, default=ROOT / default, metavar="PATH", help=text
        )
    return parser.parse_args(argv)


def check(options: argparse.Namespace) -> None:
    """Check what was asked for, before anything is imported that takes time.

    Raises:
        UserError: a number out of range, a file that is not there, a folder that takes no files.
    """
    for name, least in (("steps", 1), ("samples", 1), ("scored", 2), ("ddim_steps", 1)):
        if getattr(options, name) < least:
            raise UserError(f"--{name} must be at least {least}, got {getattr(options, name)}")
    for name in ("base", "config", "ckpt"):
        if not getattr(options, name).is_file():
            raise UserError(f"--{name} {getattr(options, name)}: no such file")
    if not (options.judge / "model.safetensors").is_file():
        raise UserError(f"--judge {options.judge}: no model.safetensors in it")
    check_output_folder(options.outdir)


def find_second(options: argparse.Namespace, concept: Concept) -> tuple[Path, str]:
    """Return the file of the word to compose with, and the name it goes by in the prompt.

    Raises:
        UserError: there is no such file.
    """
    name = options.second or ("teal-star" if concept.is_style else "chalk")
    path = options.words / f"{name}.safetensors"
    if not path.is_file():
        there = ", ".join(sorted(p.stem for p in options.words.glob("*.safetensors"))) or "none"
        raise UserError(f"no word {name!r} in {options.words} to compose with; there are {there}")
    return path, next(p for p in SECOND_PLACEHOLDERS if p != concept.placeholder)


@dataclass
class Watch:
    """Keeps how long the parts took, in seconds."""

    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def time(self, part: str) -> Iterator[None]:
        """Add the time spent inside to `part`."""
        start = time.monotonic()
        try:
            yield
        finally:
            self.seconds[part] = self.seconds.get(part, 0.0) + time.monotonic() - start


def training_command(options: argparse.Namespace, concept: Concept) -> list[str]:
    """Return the arguments of `python` that teach the word: those that a user would type."""
    every = max(1, options.steps // 4)
    command = ["main.py", "--base", _short(options.base), "-t", "--no-test"]
    command += ["--actual_resume", _short(options.ckpt)]
    command += ["--data_root", _short(options.concepts / concept.name)]
    command += ["--init_word", concept.first_word, "--placeholder_string", concept.placeholder]
    command += ["--seed", str(options.seed), "--max_steps", str(options.steps)]
    command += ["--logdir", _short(options.outdir.absolute() / "logs"), "--name", concept.name]
    command += ["--log_every_n_steps", str(max(1, options.steps // 80))]
    command += [f"lightning.modelcheckpoint.params.every_n_train_steps={every}"]
    return command + list(STYLE_DATA if concept.is_style else ())


def _short(path: Path) -> str:
    """Write a path from the project's folder, where it is inside."""
    absolute = path.absolute()
    return str(absolute.relative_to(ROOT) if absolute.is_relative_to(ROOT) else absolute)


def learn(options: argparse.Namespace, concept: Concept) -> Path:
    """Teach the word with the command line that users have; return the run's log folder.

    Raises:
        UserError: the training failed; it has said why itself.
    """
    command = training_command(options, concept)
    log.info("$ %s", shlex.join(["python", *command]))
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    run = subprocess.run([sys.executable, *command], cwd=ROOT, env=environment, check=False)
    if run.returncode:
        raise UserError(f"main.py ended with status {run.returncode}: see above")
    folders = (options.outdir / "logs").glob(f"*_{concept.name}/checkpoints/embeddings.pt")
    newest = max(folders, key=lambda path: path.stat().st_mtime, default=None)
    if newest is None:
        raise UserError(f"main.py left no word in {options.outdir / 'logs'}")
    return newest.parent.parent


def draw_all(
    options: argparse.Namespace,
    concept: Concept,
    run: Path,
    second: tuple[Path, str],
    watch: Watch,
) -> DemoResult:
    """Draw the word and its first word in every prompt, and score the images."""
    from transformers.utils import logging as transformers_logging

    from ldm.experiments.demo.page import DemoResult
    from ldm.experiments.demo.scores import PROMPTS, Painter, Scores, read_curves, saved_words
    from ldm.inference import load_model
    from ldm.miniature.clip import Judge

    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    with watch.time("load"):
        model = load_model(options.config, options.ckpt)
        judge = Judge.load(options.judge)
    painter = Painter(model, options.samples, options.ddim_steps, options.scale)
    scores = Scores(judge, concept.pictures, (concept.placeholder, second[1]))
    saved = saved_words(run / "checkpoints")
    studio = Studio(concept, painter, scores, second, watch)
    last = list(saved.values())[-1]
    plain = concept.prompt("{word}")
    drawings = [studio.ask(kind, text, last) for kind, text in PROMPTS[concept.kind]]
    first_drawings = [studio.ask(kind, text, None) for kind, text in PROMPTS[concept.kind]]
    course = [(0, studio.draw(plain, None, 4))]
    course += [(step, studio.draw(plain, path, 4)) for step, path in saved.items()]
    return DemoResult(
        concept=concept,
        second=(second[1], second[0].stem),
        over_steps=course,
        plain=studio.ask("alone", plain, last, options.scored),
        drawings=drawings,
        first_plain=studio.ask("alone", plain, None, options.scored),
        first_drawings=first_drawings,
        training_similarity=scores.training_own(),
        training_text_similarity=scores.training_text([d.prompt for d in drawings]),
        curves=read_curves(run / "logger" / "metrics.csv"),
        steps=options.steps,
        seconds=watch.seconds,
        command=_wrapped(training_command(options, concept)),
    )


@dataclass(frozen=True)
class Studio:
    """Draws and scores prompts, with the learned word or with its first word in its place."""

    concept: Concept
    painter: Painter
    scores: Scores
    second: tuple[Path, str]
    watch: Watch

    def draw(self, text: str, learned: Path | None, samples: int = 0) -> list[Image]:
        """Draw a prompt with {word} and {second}; `learned` None draws the first word."""
        word = self.concept.placeholder if learned else self.concept.first_word
        words: dict[Path, Mapping[str, str]] = {learned: {}} if learned else {}
        path, name = self.second
        if "{second}" in text:
            words[path] = _renamed(path, name)
        log.info("drawing %s", text.format(word=word, second=name))
        with self.watch.time("draw"):
            return self.painter.draw(text.format(word=word, second=name), words, samples)

    def ask(self, kind: str, text: str, learned: Path | None, samples: int = 0) -> Drawing:
        """Draw and score a prompt, always against the prompt that names the learned word."""
        word = self.concept.placeholder if learned else self.concept.first_word
        asked = text.format(word=self.concept.placeholder, second=self.second[1])
        pictures = self.draw(text, learned, samples)
        with self.watch.time("score"):
            return self.scores.drawing(
                kind, text.format(word=word, second=self.second[1]), pictures, asked
            )


def _renamed(path: Path, name: str) -> dict[str, str]:
    from ldm.words.files import read_words

    return dict.fromkeys(read_words(path).words, name)


def _wrapped(command: Sequence[str]) -> str:
    """Write a command over several lines, an option a line."""
    lines, words = [], ["python"]
    for word in command:
        if word.startswith("--") or "=" in word:
            lines.append(" ".join(words))
            words = []
        words.append(shlex.quote(word))
    return " \\\n    ".join([*lines, " ".join(words)])


def write(result: DemoResult, outdir: Path) -> None:
    """Write index.html, metrics.json, and the images as PNG grids under grids/CONCEPT/."""
    from ldm.experiments.demo.page import build_page
    from ldm.image_io import pil_grid, safe_name

    grids = outdir / "grids" / result.concept.name
    grids.mkdir(parents=True, exist_ok=True)
    pil_grid(result.concept.pictures, len(result.concept.pictures)).save(grids / "training.png")
    steps = [picture for _, pictures in result.over_steps for picture in pictures]
    pil_grid(steps, len(result.over_steps[0][1])).save(grids / "over-steps.png")
    pil_grid(result.plain.pictures, 8).save(grids / "0-alone.png")
    pil_grid(result.first_plain.pictures, 8).save(grids / "0-first-word.png")
    for i, drawing in enumerate(result.drawings, 1):
        name = f"{i}-{drawing.kind}-{safe_name(drawing.prompt)}.png"
        pil_grid(drawing.pictures, 8).save(grids / name)
    text = json.dumps(result.metrics(), indent=2, ensure_ascii=False)
    (outdir / "metrics.json").write_text(text + "\n", encoding="utf-8")
    build_page(result).write(outdir / "index.html")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the demo."""
    options = parse(argv)
    check(options)
    from ldm.miniature.measure import load_concepts

    watch = Watch()
    concept = load_concepts(options.concepts, [options.concept])[0]
    second = find_second(options, concept)
    with watch.time("learn"):
        run = learn(options, concept)
    result = draw_all(options, concept, run, second, watch)
    write(result, options.outdir)
    found = result.metrics()
    log.info(
        "image similarity %.3f (first word %.3f, training images %.3f), text similarity %.3f",
        found["image_similarity"],
        found["first_word"]["image_similarity"],
        found["training_pictures"]["image_similarity"],
        found["text_similarity"],
    )
    log.info("%.0f s; open %s", found["seconds"], options.outdir / "index.html")
    return 0
