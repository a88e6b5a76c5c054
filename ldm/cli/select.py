"""Score every saved step of a run, and keep the best word.

Writes it as best.safetensors beside the steps, with the curve: selection.csv, .json, .png.

Examples:
  choose among the steps that a run saved; model and images are the run's own:
    python scripts/select_word.py logs/teal-star2026-11-21T12-00-00_finetune
  with fewer images, and another idea of near enough:
    python scripts/select_word.py LOGFOLDER --images 8 --tolerance 0.05

the rule:
  the best text similarity of the steps whose image similarity is within the tolerance of the best;
  of equal ones the earliest. Noises and prompts are others than evaluate_model.py's.
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ldm.cli import common
from ldm.cli.common import option
from ldm.cli.evaluate import Subject, read_subject
from ldm.util import UserError

if TYPE_CHECKING:
    from ldm.evaluation.evaluate import Evaluation
    from ldm.evaluation.similarity import FeatureExtractor

log = logging.getLogger(__name__)
BEST = "best.safetensors"


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = common.Parser(prog="scripts/select_word.py", description=__doc__)
    option(parser, "run RUN", "log folder of a run, or its checkpoints folder")
    group = parser.add_argument_group("by default as the run's configuration says")
    common.add_base(group, None, "the run's")
    option(group, "--config YAML", "of the model")
    option(group, "--data_root DIR", "folder of the training images")
    group = parser.add_argument_group("how to choose")
    option(group, "--tolerance", "largest distance from the best image similarity", 0.02)
    option(group, "--prompts FILE", "a prompt a line (examples/prompts/*-selection.txt)")
    option(group, "--image_prompt TEXT", "prompt of the image similarity", "A photo of *")
    text = "CLIP that chooses; by default the selector beside the weights, or evaluate_model.py's"
    option(group, "--extractor FOLDER|NAME", text)
    common.add_options(group, images=16, steps=50, scale=5.0, seed=1_000_000, batch_size=0)
    common.add_options(group, device="auto", precision="full")
    option(group, "--again", "choose anew, over best.safetensors", False)
    return parser.parse_args(arguments)


def _take_facts(options: argparse.Namespace, configs: Path) -> None:
    """Fill in the base and the images that the run's configuration names.

    Raises UserError where the configuration does not say.
    """
    from omegaconf import OmegaConf

    newest = [sorted(configs.glob(f"*-{kind}.yaml"))[-1:] for kind in ("project", "lightning")]
    said = OmegaConf.merge({}, *(OmegaConf.load(file) for files in newest for file in files))
    for name, key, what, flag in (
        ("model", "run.base_checkpoint", "base weights", "--model PATH"),
        ("data_root", "data.params.train.params.data_root", "images", "--data_root DIR"),
    ):
        value = getattr(options, name) or OmegaConf.select(said, key)
        if not value:
            raise UserError(
                f"the run's configuration does not say where its {what} are: give {flag}"
            )
        setattr(options, name, value)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command."""
    options = parse(arguments)
    from ldm.experiments.demo.scores import saved_words
    from ldm.words.files import read_words

    common.check_least(options, 0, "tolerance")
    given = Path(options.run)
    if not given.is_dir():
        raise UserError(f"run {given}: no such folder; give a run's log folder")
    checkpoints = given / "checkpoints" if (given / "checkpoints").is_dir() else given
    saved = saved_words(checkpoints)
    best = common.check_output_folder(checkpoints) / BEST
    if best.exists() and not options.again:
        raise UserError(f"{best} is there already: give --again to choose anew")
    _take_facts(options, checkpoints.parent / "configs")
    placeholders = list(read_words(next(iter(saved.values()))).words)
    subject = read_subject(options, placeholders, ending="-selection")

    from ldm.evaluation.extractors import default_selector, extractor_facts, find_extractor
    from ldm.evaluation.selection import choose, write_best, write_curve

    scored_by = options.extractor or default_selector(subject.weights)
    extractor = find_extractor(scored_by, subject.device)
    curve = _curve(options, subject, saved, extractor)
    selection = choose(curve, options.tolerance)
    decided = {
        **common.sampling_of(options).metadata(),
        "pictures": options.images,
        "prompts_hash": subject.prompts_hash,
        "extractor": extractor_facts(scored_by, extractor),
    }
    write_curve(best.parent, selection, decided)
    write_best(best, saved[selection.chosen], selection, _strings(decided))
    log.info("step %d: %s", selection.chosen, selection.rule)
    log.info("%s, and selection.csv, .json, .png beside it", best)
    return 0


def _strings(facts: Mapping[str, Any]) -> dict[str, str]:
    """Return facts as a word's file keeps them: flat, all strings."""
    flat: dict[str, str] = {}
    for name, value in facts.items():
        inner = value if isinstance(value, dict) else {"": value}
        for key, text in inner.items():
            flat["_".join(part for part in ("selection", name, key) if part)] = str(text)
    return flat


def _curve(
    options: argparse.Namespace,
    subject: Subject,
    saved: Mapping[int, Path],
    extractor: FeatureExtractor,
) -> dict[int, Evaluation]:
    """Score every saved word, all from the same noises: step → scores."""
    from ldm.evaluation.evaluate import evaluate
    from ldm.evaluation.sources import from_model
    from ldm.image_io import open_rgb
    from ldm.inference import load_model, load_words

    training = [open_rgb(path) for path in subject.training]
    model = load_model(subject.config, subject.weights).to(subject.device)
    source = from_model(model, common.sampling_of(options), progress=sys.stderr.isatty())
    curve: dict[int, Evaluation] = {}
    for step, path in saved.items():
        load_words(model, path, subject.asked)
        curve[step] = found = evaluate(
            *(source, extractor, training, subject.prompts),
            image_prompt=subject.image_prompt,
            placeholders=subject.placeholders,
            images=options.images,
        )
        scores = (found.image.value, found.text.value)
        log.info("step %6d  image %.4f  text %.4f", step, *scores)
    return curve
