"""`scripts/select_word.py`: score every saved step of a run and keep the best word."""

from __future__ import annotations

import argparse
import hashlib
import logging
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ldm.cli.common import (
    Parser,
    check_output_folder,
    choose_device,
    find_model,
    sampling_of,
)
from ldm.cli.evaluate import name_word, shipped_prompts
from ldm.cli.evaluate_options import check_generation
from ldm.evaluation.prompts import check_prompts, read_prompts
from ldm.util import UserError

if TYPE_CHECKING:
    from ldm.evaluation.evaluate import Evaluation, ImageSource

log = logging.getLogger(__name__)
BEST = "best.safetensors"
EXAMPLES = """examples:
  choose among the steps that a run saved; model and images are the run's own:
    python scripts/select_word.py logs/teal-star2026-11-21T12-00-00_finetune
  with fewer images, and another idea of near enough:
    python scripts/select_word.py LOGFOLDER --images 8 --tolerance 0.05

the rule:
  the best text similarity of the steps whose image similarity is within the tolerance of the best;
  of equal ones the earliest. Noises and prompts are others than evaluate_model.py's.
"""


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line.

    Raises:
        UserError: unknown or malformed options.
    """
    parser = Parser(
        prog="scripts/select_word.py",
        description="Score every saved step of a run and write the best word as best.safetensors "
        "beside them, with the curve: selection.csv, .json, .png.",
        epilog=EXAMPLES,
    )
    parser.add_argument("run", metavar="RUN", help="log folder of a run, or its checkpoints folder")
    group = parser.add_argument_group("what the run itself says unless given")
    group.add_argument("--model", "--ckpt", "--ckpt_path", metavar="PATH", help="base weights")
    group.add_argument("--config", metavar="YAML", help="of the model")
    group.add_argument("--data_root", metavar="DIR", help="folder of the training images")
    group = parser.add_argument_group("how to choose")
    group.add_argument(
        "--tolerance", type=float, default=0.02, help="below the best image similarity (0.02)"
    )
    group.add_argument(
        "--prompts", metavar="FILE", help="a prompt a line (examples/prompts/*-selection.txt)"
    )
    group.add_argument("--image_prompt", metavar="TEXT", default="A photo of *")
    group.add_argument(
        "--extractor",
        metavar="FOLDER|NAME",
        help="CLIP that chooses; by default the selector beside the weights, or else "
        "evaluate_model.py's",
    )
    group.add_argument(
        "--images", "--pictures", type=int, default=16, help="of each prompt and step (16)"
    )
    group.add_argument("--steps", type=int, default=50, help="DDIM steps (50)")
    group.add_argument("--scale", type=float, default=5.0, help="guidance (5)")
    group.add_argument("--seed", type=int, default=1_000_000, help="of the noises (1000000)")
    group.add_argument("--batch_size", type=int, default=0, help="images at a time; 0 fits them")
    group.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, mps")
    group.add_argument("--precision", choices=("full", "autocast"), default="full")
    group.add_argument("--again", action="store_true", help="choose anew, over best.safetensors")
    return parser.parse_args(arguments)


@dataclass(frozen=True)
class RunFacts:
    """What a run's own files say.

    Attributes:
        checkpoints: the folder of the saved words.
        base: the base weights; None where the files do not say.
        data_root: the folder of the training images; likewise.
    """

    checkpoints: Path
    base: str | None
    data_root: str | None


def read_run(folder: str) -> RunFacts:
    """Find a run's saved words, and its base and images in the configuration it kept.

    Raises:
        UserError: no such folder.
    """
    from omegaconf import OmegaConf

    given = Path(folder)
    if not given.is_dir():
        raise UserError(f"run {folder}: no such folder; give a run's log folder")
    checkpoints = given / "checkpoints" if (given / "checkpoints").is_dir() else given
    said: dict[str, Any] = {"project": None, "lightning": None}
    for kind in said:
        files = sorted((checkpoints.parent / "configs").glob(f"*-{kind}.yaml"))
        said[kind] = OmegaConf.load(files[-1]) if files else OmegaConf.create()
    return RunFacts(
        checkpoints,
        OmegaConf.select(said["lightning"], "run.base_checkpoint"),
        OmegaConf.select(said["project"], "data.params.train.params.data_root"),
    )


@dataclass(frozen=True)
class Task:
    """What is to be chosen from, checked as far as that takes no weights.

    Attributes:
        best: file for the chosen word.
        saved: step → the word as it was then.
        config, weights: of the base model.
        training: the training images' files.
        placeholders, image_prompt, prompts: names of the words, and prompts of the images.
        device: device of generation and scoring.
    """

    best: Path
    saved: Mapping[int, Path]
    config: Path | None
    weights: Path
    training: Sequence[Path]
    placeholders: Sequence[str]
    image_prompt: str
    prompts: Sequence[str]
    device: str

    @property
    def asked(self) -> list[str]:
        """Every prompt."""
        return [self.image_prompt, *self.prompts]


def read_task(options: argparse.Namespace) -> Task:
    """Check the options.

    Raises:
        UserError: anything wrong with them that can be known before weights are read.
    """
    check_generation(options)
    if not options.tolerance >= 0:
        raise UserError(f"--tolerance must be at least 0, got {options.tolerance}")

    from ldm.data.folder import list_images
    from ldm.experiments.demo.scores import saved_words
    from ldm.words.files import read_words

    facts = read_run(options.run)
    saved = saved_words(facts.checkpoints)
    best = check_output_folder(facts.checkpoints) / BEST
    if best.exists() and not options.again:
        raise UserError(f"{best} is there already: give --again to choose anew")
    model = _needed(options.model or facts.base, "base weights", "--model PATH")
    config, weights = find_model(model, options.config)
    images = _needed(options.data_root or facts.data_root, "images", "--data_root DIR")
    placeholders = list(read_words(next(iter(saved.values()))).words)
    image_prompt = name_word(options.image_prompt, placeholders)
    listed = read_prompts(options.prompts or shipped_prompts(weights, "-selection"))
    prompts = [name_word(prompt, placeholders) for prompt in listed]
    check_prompts([image_prompt, *prompts], placeholders)
    return Task(
        best=best,
        saved=saved,
        config=config,
        weights=weights,
        training=list_images(images),
        placeholders=placeholders,
        image_prompt=image_prompt,
        prompts=prompts,
        device=choose_device(options.device),
    )


def run(options: argparse.Namespace) -> int:
    """Score a run's saved steps, choose, and write what was chosen.

    Raises:
        UserError: anything wrong with the options, before weights are read where that can be known.
    """
    task = read_task(options)

    from ldm.evaluation.extractors import default_selector, extractor_facts, find_extractor
    from ldm.evaluation.selection import choose, score_steps, write_best, write_curve
    from ldm.image_io import open_rgb

    training = [open_rgb(path) for path in task.training]
    scored_by = options.extractor or default_selector(task.weights)
    extractor = find_extractor(scored_by, task.device)
    curve = score_steps(
        _WordSource(task, options).source_with,
        task.saved,
        extractor,
        training,
        task.prompts,
        report=_report,
        image_prompt=task.image_prompt,
        placeholders=task.placeholders,
        images=options.images,
    )
    selection = choose(curve, options.tolerance)
    decided = {
        **sampling_of(options).metadata(),
        "pictures": options.images,
        "prompts_hash": hashlib.sha256("\n".join(task.asked).encode()).hexdigest()[:16],
        "extractor": extractor_facts(scored_by, extractor),
    }
    write_curve(task.best.parent, selection, decided)
    write_best(task.best, task.saved[selection.chosen], selection, _strings(decided))
    log.info("step %d: %s", selection.chosen, selection.rule)
    log.info("%s, and selection.csv, .json, .png beside it", task.best)
    return 0


def _needed(value: str | None, what: str, flag: str) -> str:
    if not value:
        raise UserError(f"the run's configuration does not say where its {what} are: give {flag}")
    return value


def _report(step: int, found: Evaluation) -> None:
    log.info("step %6d  image %.4f  text %.4f", step, found.image.value, found.text.value)


def _strings(facts: Mapping[str, Any]) -> dict[str, str]:
    """Return facts as a word's file keeps them: flat, all strings."""
    flat: dict[str, str] = {}
    for name, value in facts.items():
        inner = value if isinstance(value, dict) else {"": value}
        for key, text in inner.items():
            flat["_".join(part for part in ("selection", name, key) if part)] = str(text)
    return flat


class _WordSource:
    """A model that generates with one saved word after the other."""

    def __init__(self, task: Task, options: argparse.Namespace) -> None:
        from ldm.evaluation.sources import from_model
        from ldm.inference import load_model

        self.prompts = task.asked
        self.model = load_model(task.config, task.weights).to(task.device)
        self.source = from_model(self.model, sampling_of(options), progress=sys.stderr.isatty())

    def source_with(self, word: Path) -> ImageSource:
        """Load a word in place of the last one."""
        from ldm.inference import load_words

        load_words(self.model, word, self.prompts)
        return self.source


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command."""
    return run(parse(arguments))
