"""The demo: learn a word with the miniature, generate its images, score them, write a page."""

from __future__ import annotations

import logging
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from transformers.utils import logging as transformers_logging

from ldm.checkpoint.hub import locate_base
from ldm.evaluation.extractors import find_extractor
from ldm.experiments.demo.page import DemoResult, page
from ldm.experiments.demo.scores import PROMPTS, ScoredPrompt, Scores, read_curves, saved_words
from ldm.image_io import pil_grid, safe_name, write_image
from ldm.inference import Sampling, generate, load_model, load_words
from ldm.miniature.measure import Concept, load_concepts
from ldm.resources import ROOT
from ldm.util import UserError, write_json, write_whole

if TYPE_CHECKING:
    from PIL.Image import Image

    from ldm.models.diffusion.ddpm import LatentDiffusion

log = logging.getLogger(__name__)
SECOND_PLACEHOLDERS = ("@", "&")  # the shipped word's new name: the first that is free
COURSE = 4  # images of each step of the course


@dataclass(frozen=True)
class DemoOptions:
    """The options of `ldm.cli.demo`, by their names there."""

    concept: str
    second: str | None
    variant: str
    steps: int
    outdir: Path
    seed: int
    samples: int
    scored: int
    ddim_steps: int
    scale: float
    model: str
    config: str | None
    base: Path
    scorer: Path
    concepts: Path
    words: Path


@contextmanager
def timed(seconds: dict[str, float], part: str) -> Iterator[None]:
    """Add the time spent inside to a part's seconds."""
    start = time.monotonic()
    yield
    seconds[part] = seconds.get(part, 0.0) + time.monotonic() - start


def find_second(options: DemoOptions, concept: Concept) -> tuple[Path, str]:
    """Return the file of the word to compose with, or UserError, and its name in the prompt."""
    name = options.second or ("teal-star" if concept.is_style else "chalk")
    path = options.words / f"{name}.safetensors"
    if not path.is_file():
        there = ", ".join(sorted(p.stem for p in options.words.glob("*.safetensors"))) or "none"
        raise UserError(f"no word {name!r} in {options.words} to compose with; there are {there}")
    return path, next(p for p in SECOND_PLACEHOLDERS if p != concept.placeholder)


def training_command(options: DemoOptions, concept: Concept) -> list[str]:
    """Return the arguments of `python` that learn the word, as a user would type them."""
    every = max(1, options.steps // 4)
    command = ["main.py", "--base", _short(options.base), "-t", "--no-test"]
    command += ["--variant", options.variant] if options.variant else []
    command += ["--model", _short(locate_base(options.model))]
    command += ["--seed", str(options.seed), "--max_steps", str(options.steps)]
    command += ["--logdir", _short(options.outdir.absolute() / "logs"), "--name", concept.name]
    command += ["--log_every_n_steps", str(max(1, options.steps // 80))]
    command += concept.learning_options(_short(options.concepts / concept.name))
    return [*command, f"lightning.modelcheckpoint.params.every_n_train_steps={every}"]


def _short(path: Path) -> str:
    """Write a path from the project's folder, if it is inside."""
    absolute = path.absolute()
    return str(absolute.relative_to(ROOT) if absolute.is_relative_to(ROOT) else absolute)


def learn(options: DemoOptions, concept: Concept) -> Path:
    """Learn the word by the command line that users have; return the run's log folder.

    Raises SystemExit with the status of a training that failed, which has written why, and
    UserError for one that was killed or left no word.
    """
    command = training_command(options, concept)
    log.info("$ %s", shlex.join(["python", *command]))
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    run = subprocess.run([sys.executable, *command], cwd=ROOT, env=environment, check=False)
    if run.returncode > 0:
        raise SystemExit(run.returncode)
    if run.returncode:
        raise UserError(f"main.py ended with status {run.returncode}")
    folders = (options.outdir / "logs").glob(f"*_{concept.name}/checkpoints/embeddings.pt")
    newest = max(folders, key=lambda path: path.stat().st_mtime, default=None)
    if newest is None:
        raise UserError(f"main.py left no word in {options.outdir / 'logs'}")
    return newest.parent.parent


@dataclass(frozen=True)
class Session:
    """Generates and scores prompts, with the learned word or with the initializer word.

    All prompts start from the same noise, so that only the text differs.

    Attributes:
        second: file and name of the word to compose with.
        seconds: part → its time so far.
    """

    options: DemoOptions
    concept: Concept
    model: LatentDiffusion
    scores: Scores
    second: tuple[Path, str]
    seconds: dict[str, float]

    def prompt(self, template: str, is_learned: bool = True) -> str:
        """Return a template with the learned word, or with the initializer word, in its place."""
        word = self.concept.placeholder if is_learned else self.concept.initializer_word
        return template.format(word=word, second=self.second[1])

    def images(self, template: str, learned: Path | None, samples: int = 0) -> list[Image]:
        """Return the images of a prompt, a template with {word} and {second}.

        `learned` is the file of the learned word; None takes the initializer word. Without a number
        of samples it is that of the options.
        """
        prompt = self.prompt(template, learned is not None)
        log.info("generating %s", prompt)
        count = samples or self.options.samples
        with timed(self.seconds, "generate"):
            words = [str(learned)] if learned else []
            if "{second}" in template:
                path, name = self.second
                words.append(f"{name}={path}")
            load_words(self.model, words)
            sampling = Sampling(
                # In 20 steps it reaches the scores of 50 DDIM steps (docs/results.md).
                sampler="dpmpp_2m",
                steps=self.options.ddim_steps,
                scale=self.options.scale,
                seed=42,
                batch_size=32,
            )
            found = generate(self.model, [prompt], sampling, samples_per_prompt=count)
        return [item.image for item in found]

    def score(
        self, kind: str, template: str, learned: Path | None, samples: int = 0
    ) -> ScoredPrompt:
        """Generate and score a prompt, always against the prompt that names the learned word."""
        images = self.images(template, learned, samples)
        prompt, asked = self.prompt(template, learned is not None), self.prompt(template)
        with timed(self.seconds, "score"):
            return self.scores.score(kind, prompt, images, asked)


def measure(session: Session, run: Path) -> DemoResult:
    """Generate and score every prompt with the learned word and with the initializer word."""
    options, concept, scores = session.options, session.concept, session.scores
    saved = saved_words(run / "checkpoints")
    last = list(saved.values())[-1]
    plain, asked = concept.prompt("{word}"), PROMPTS[concept.kind]
    prompts = [session.score(kind, text, last) for kind, text in asked]
    over_steps = [(0, session.images(plain, None, COURSE))]
    over_steps += [(step, session.images(plain, path, COURSE)) for step, path in saved.items()]
    return DemoResult(
        concept=concept,
        second=(session.second[1], session.second[0].stem),
        over_steps=over_steps,
        plain=session.score("alone", plain, last, options.scored),
        prompts=prompts,
        initializer_plain=session.score("alone", plain, None, options.scored),
        initializer_prompts=[session.score(kind, text, None) for kind, text in asked],
        training_similarity=scores.training_own(),
        training_text_similarity=scores.training_text([p.prompt for p in prompts]),
        curves=read_curves(run / "logger" / "metrics.csv"),
        steps=options.steps,
        seconds=session.seconds,
        command=_wrapped(training_command(options, concept)),
    )


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
    grids = outdir / "grids" / result.concept.name
    over_steps = [image for _, images in result.over_steps for image in images]
    named = {
        "training": (result.concept.images, len(result.concept.images)),
        "over-steps": (over_steps, COURSE),
        "0-alone": (result.plain.images, 8),
        "0-initializer-word": (result.initializer_plain.images, 8),
    } | {
        f"{i}-{p.kind}-{safe_name(p.prompt)}": (p.images, 8)
        for i, p in enumerate(result.prompts, 1)
    }
    for name, (images, columns) in named.items():
        write_image(pil_grid(images, columns), grids / f"{name}.png")
    write_json(outdir / "metrics.json", result.metrics())
    write_whole(outdir / "index.html", page(result))


def run(options: DemoOptions) -> DemoResult:
    """Run the demo."""
    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    seconds: dict[str, float] = {}
    concept = load_concepts(options.concepts, [options.concept])[0]
    second = find_second(options, concept)
    with timed(seconds, "learn"):
        log_folder = learn(options, concept)
    with timed(seconds, "load"):
        model = load_model(options.config, options.model)
        scorer = find_extractor(options.scorer)
    scores = Scores(scorer, concept.images, (concept.placeholder, second[1]))
    result = measure(Session(options, concept, model, scores, second, seconds), log_folder)
    write(result, options.outdir)
    return result
