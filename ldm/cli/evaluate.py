r"""Score a learned word by the paper's protocol.

Likeness to its training images and to its prompts, with 95% bootstrap intervals; writes scores.json
and scores.csv.

Examples:
  a word of the miniature, which comes with the project:
    python scripts/evaluate_model.py --embedding_path examples/words/teal-star.safetensors \
        --data_root examples/concepts/teal-star
  the paper's protocol at 1.4B, with CLIP ViT-B/32 and DINO from the hub or its cache:
    python scripts/evaluate_model.py --model models/ldm/text2img-large/model.ckpt \
        --embedding_path embeddings.safetensors --data_root DIR --dino facebook/dino-vits16
  what the paper compares with:
    python scripts/evaluate_model.py --data_root DIR --variant human_captions \
        --captions "a teal star with yellow dots"
    python scripts/evaluate_model.py --data_root DIR --variant image_only
"""

from __future__ import annotations

import argparse
import hashlib
import logging
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ldm.cli import common
from ldm.cli.common import option
from ldm.evaluation.prompts import check_prompts, read_prompts
from ldm.resources import ROOT
from ldm.training.variants import find_variant
from ldm.util import UserError, write_json
from ldm.words.placeholders import DEFAULT_PLACEHOLDER

if TYPE_CHECKING:
    from PIL.Image import Image

    from ldm.evaluation.evaluate import Evaluation
    from ldm.evaluation.sources import ImageSource
    from ldm.inference import GeneratedImage

log = logging.getLogger(__name__)


LABELS = {
    "image": "image similarity",
    "dino": "DINO similarity",
    "text": "text similarity",
    "text_of_average": "  of the images' average",
}


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = common.Parser(prog="scripts/evaluate_model.py", description=__doc__)
    group = parser.add_argument_group("what to score")
    common.add_options(group, embedding_path=[])
    option(group, "--data_root DIR", "folder of the training images", required=True)
    text = "variant of configs/variants; human_captions, image_only and prompt_only need no word"
    option(group, "--variant NAME", text)
    text = "captions for human_captions; by default those beside the images"
    option(group, "--captions TEXT|FILE", text, [])
    option(group, "--prompts FILE", "a prompt a line; # begins a comment")
    option(
        group,
        "--prompt TEXT",
        "one more prompt (repeatable)",
        default=[],
        action="append",
        nargs=None,
    )
    text = "prompt of the image similarity; * becomes the word"
    option(group, "--image_prompt TEXT", text, "A photo of *")
    text = "words that prompts name (those of the files, or *)"
    option(group, "--placeholder WORD", text, default=[], action="append", nargs=None)

    group = parser.add_argument_group("the model and the scorer")
    common.add_model(group, common.MINIATURE)
    common.add_options(group, weight_delta=None, device="auto", precision="full")
    text = "CLIP that scores; by default that beside the weights, or openai/clip-vit-base-patch32"
    option(group, "--extractor FOLDER|NAME", text)
    option(group, "--dino FOLDER|NAME", "score by DINO too, e.g. facebook/dino-vits16")

    group = parser.add_argument_group("generation and scoring")
    common.add_options(group, images=64, steps=50, sampler="ddim", karras=False, scale=5.0, seed=42)
    common.add_options(group, batch_size=0)
    option(group, "--resamples", "resamples of the images, for the intervals", 1000)

    group = parser.add_argument_group("where to put it")
    option(group, "--output DIR", "folder of the results (outputs/evaluation/NAME)")
    option(group, "--name", "name in the results (the word's file, or the variant)")
    option(group, "--save_images --save_pictures", "keep the generated images", False)
    option(group, "--again", "replace existing scores", False)
    return parser.parse_args(arguments)


@dataclass(frozen=True)
class Subject:
    """The model, prompts and training images of a scoring, checked before weights are read.

    Attributes:
        config, weights: of the model; without a configuration that of its family.
        training: the training images' files.
        placeholders: the words that prompts may name.
        image_prompt, prompts: of images to compare with the training images, and with their text.
        device: of generation and scoring.
    """

    config: Path | None
    weights: Path
    training: Sequence[Path]
    placeholders: Sequence[str]
    image_prompt: str
    prompts: Sequence[str]
    device: str

    @property
    def asked(self) -> list[str]:
        return [self.image_prompt, *self.prompts]

    @property
    def prompts_hash(self) -> str:
        return hashlib.sha256("\n".join(self.asked).encode()).hexdigest()[:16]


def read_subject(
    options: argparse.Namespace,
    placeholders: Sequence[str],
    prompts: Sequence[str] = (),
    ending: str = "",
) -> Subject:
    """Check the options, of evaluate_model.py or select_word.py, that say what is scored.

    `prompts` are added to those of the options; without both, the shipped ones are taken, from the
    file whose stem has that ending. Raises UserError for a value out of range, a file that is not
    there, or a prompt without a word.
    """
    from ldm.data.folder import list_images
    from ldm.evaluation.extractors import scorer_beside

    common.check_least(options, 1, "images")
    common.check_least(options, 0, "batch_size")
    common.sampling_of(options)
    config, weights = common.find_model(options.model, options.config)
    file = options.prompts
    if file is None and not prompts:  # the miniature's weights have their scorer beside them
        own = "miniature" if scorer_beside(weights) else "paper"
        file = ROOT / "examples" / "prompts" / f"{own}{ending}.txt"
    listed = read_prompts(file) if file is not None else []
    # The usual placeholder stands for the first of the words, if none has that name.
    own = DEFAULT_PLACEHOLDER if DEFAULT_PLACEHOLDER in placeholders else placeholders[0]
    given = (options.image_prompt, *listed)
    image_prompt, *rest = (prompt.replace(DEFAULT_PLACEHOLDER, own) for prompt in given)
    asked = [*rest, *prompts]
    check_prompts([image_prompt, *asked], placeholders)
    training, device = list_images(options.data_root), common.choose_device(options.device)
    return Subject(config, weights, training, placeholders, image_prompt, asked, device)


def _source_of(options: argparse.Namespace) -> str:
    """Return where the images come from, one of `ldm.training.variants.SOURCES`."""
    source = find_variant(options.variant).source if options.variant else "learned"
    if source == "learned" and not options.embedding_path:
        raise UserError(
            "nothing to score: give a learned word as --embedding_path FILE, or --variant "
            "human_captions, image_only or prompt_only"
        )
    if source != "learned" and options.embedding_path:
        raise UserError(
            f"variant {options.variant} has no learned word: leave --embedding_path out"
        )
    if source != "captions" and options.captions:
        raise UserError("--captions go with --variant human_captions only")
    return source


def _captions(options: argparse.Namespace, training: Sequence[Path]) -> list[str]:
    """Return the captions given, lines of files among them, or those beside the images."""
    from ldm.data.folder import captions_of

    found: list[str] = []
    for item in options.captions:
        found += read_prompts(item) if Path(item).is_file() else [item]
    if found:
        return found
    try:
        return [caption for own in captions_of(training) for caption in own]
    except UserError as error:
        advice = f"variant {options.variant} needs --captions TEXT or FILE"
        raise UserError(f"{advice}; {error}") from error


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; find mistakes before weights are read if possible."""
    options = parse(arguments)
    from ldm.words.loading import check_words, split_items

    common.check_least(options, 1, "resamples")
    source, words = _source_of(options), options.embedding_path
    placeholders = options.placeholder or check_words(words, ()) or [DEFAULT_PLACEHOLDER]
    subject = read_subject(options, placeholders, options.prompt)
    name = options.name or options.variant or Path(split_items(words)[0][0]).stem
    captions = _captions(options, subject.training) if source == "captions" else []
    folder = common.check_output_folder(options.output or Path("outputs") / "evaluation" / name)
    if (folder / "scores.json").exists() and not options.again:
        raise UserError(
            f"{folder} holds scores already: give another --output, or --again to replace them"
        )
    start = time.monotonic()

    from ldm.evaluation import extractors
    from ldm.evaluation.evaluate import evaluate
    from ldm.image_io import open_rgb
    from ldm.miniature.editability import edit_scores

    training = [open_rgb(path) for path in subject.training]
    scored_by = options.extractor or extractors.default_extractor(subject.weights)
    extractor = extractors.find_extractor(scored_by, subject.device)
    second = extractors.find_dino(options.dino, subject.device) if options.dino else None
    found = evaluate(
        _image_source(subject, source, captions, options, training, folder),
        extractor,
        training,
        subject.prompts,
        image_prompt=subject.image_prompt,
        placeholders=placeholders,
        images=len(training) if source == "images" else options.images,
        second=second,
        extra=edit_scores(extractor, resamples=options.resamples),
        resamples=options.resamples,
    )
    dino = extractors.extractor_facts(options.dino, second) if second is not None else None
    facts = {
        "extractor": extractors.extractor_facts(scored_by, extractor),
        "dino": dino,
        "source": source,
        "captions": captions,
        **_facts(subject, options),
        **({} if source == "images" else common.sampling_of(options).metadata()),
        "seconds": round(time.monotonic() - start, 1),
    }
    write(folder, name, found.with_settings(**facts))
    return 0


def _image_source(
    subject: Subject,
    source: str,
    captions: Sequence[str],
    options: argparse.Namespace,
    training: Sequence[Image],
    folder: Path,
) -> ImageSource:
    """Return the source of the images; it saves them if an option asks for it."""
    from ldm.evaluation import sources
    from ldm.image_io import safe_name, save_png

    if source == "images":
        return sources.from_images(training)

    def keep(images: Sequence[GeneratedImage]) -> None:
        for image in images:
            path = folder / "pictures" / f"{safe_name(image.prompt)}_{image.seed}.png"
            save_png(image.image, path, image.settings)

    model = common.load(options, subject.asked if options.embedding_path else ())
    placeholders = subject.placeholders
    if source == "captions":
        texts = sources.captioned(subject.asked, len(captions), captions, placeholders)
        sources.check_lengths(model, texts)
    generated = sources.from_model(
        model.to(subject.device),
        common.sampling_of(options),
        keep=keep if options.save_images else None,
        progress=sys.stderr.isatty(),
    )
    if source == "captions":
        return sources.from_captions(generated, captions, placeholders)
    return sources.from_prompts(generated, placeholders) if source == "prompts" else generated


def _facts(subject: Subject, options: argparse.Namespace) -> dict[str, Any]:
    """Return the files that decided the scores, each with the hash of what it holds."""
    from importlib.metadata import version
    from platform import python_version

    import torch

    from ldm.checkpoint.loading import checkpoint_hash
    from ldm.words.loading import split_items

    config, delta, device = subject.config, options.weight_delta, subject.device
    return {
        "variant": options.variant,
        "checkpoint": subject.weights.name,
        "checkpoint_hash": checkpoint_hash(subject.weights),
        "difference": checkpoint_hash(delta) if delta else None,
        "config": config.name if config else None,
        "config_hash": checkpoint_hash(config) if config else None,
        "words": [
            {"file": Path(path).name, "hash": checkpoint_hash(path), "name": name}
            for path, name in split_items(options.embedding_path)
        ],
        "training": {path.name: checkpoint_hash(path) for path in subject.training},
        "prompts_hash": subject.prompts_hash,
        "device": torch.cuda.get_device_name(device) if device.startswith("cuda") else device,
        "versions": f"python {python_version()}, torch {torch.__version__}, "
        f"transformers {version('transformers')}",
    }


def write(folder: Path, name: str, found: Evaluation) -> None:
    """Write scores.json and scores.csv, and log the scores."""
    from ldm.evaluation.evaluate import write_csv

    write_csv(folder / "scores.csv", {name: found})
    write_json(folder / "scores.json", {"name": name, **found.to_json()})
    for score, estimate in found.scores.items():
        label = LABELS.get(score, score.replace("_", " "))
        log.info("%-26s %.4f  [%.4f, %.4f]", label, estimate.value, estimate.low, estimate.high)
    if found.training is not None:
        log.info("%-26s %.4f", "training images' own", found.training)
    log.info("%s", folder / "scores.json")
