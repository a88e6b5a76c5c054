"""`scripts/evaluate_model.py`: a word's scores by the paper's protocol, as JSON and CSV."""

from __future__ import annotations

import argparse
import hashlib
import json
import logging
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ldm.cli.common import check_output_folder, choose_device, find_model, sampling_of
from ldm.cli.evaluate_options import check, parse
from ldm.evaluation.prompts import check_prompts, read_prompts
from ldm.resources import ROOT
from ldm.training.variants import find_variant
from ldm.util import UserError, write_whole
from ldm.words.placeholders import DEFAULT_PLACEHOLDER

if TYPE_CHECKING:
    from PIL.Image import Image

    from ldm.evaluation.evaluate import Evaluation, ImageSource
    from ldm.inference import GeneratedImage

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Request:
    """What is to be scored, checked as far as that takes no weights.

    Attributes:
        name: in the results.
        source: of the images, one of `ldm.training.variants.SOURCES`.
        config, weights: of the model.
        words: files of learned words, or "WORD=FILE".
        placeholders: what prompts may name.
        image_prompt, prompts: prompts of the images.
        training: the training images' files.
        captions: a human's, where they stand in the word's place.
        folder: of the results.
        device: device of generation and scoring.
        difference: file of what tuning moved the weights by.
    """

    name: str
    source: str
    config: Path | None
    weights: Path
    words: Sequence[str]
    placeholders: Sequence[str]
    image_prompt: str
    prompts: Sequence[str]
    training: Sequence[Path]
    captions: Sequence[str]
    folder: Path
    device: str
    weight_delta: Path | None

    @property
    def asked(self) -> list[str]:
        """Every prompt."""
        return [self.image_prompt, *self.prompts]


def read_request(options: argparse.Namespace) -> Request:
    """Check the options.

    Raises:
        UserError: anything wrong with them that can be known before weights are read.
    """
    from ldm.data.folder import list_images
    from ldm.words.loading import check_words, split_items

    check(options)
    source = find_variant(options.variant).source if options.variant else "learned"
    _check_source(options, source)
    words = options.embedding_path
    placeholders = options.placeholder or check_words(words, ()) or [DEFAULT_PLACEHOLDER]
    config, weights = find_model(options.model, options.config)
    image_prompt = name_word(options.image_prompt, placeholders)
    prompts = _prompts(options, weights, placeholders)
    check_prompts([image_prompt, *prompts], placeholders)
    training = list_images(options.data_root)
    name = options.name or options.variant or Path(split_items(words)[0][0]).stem
    return Request(
        name=name,
        source=source,
        config=config,
        weights=weights,
        words=words,
        placeholders=placeholders,
        image_prompt=image_prompt,
        prompts=prompts,
        training=training,
        captions=_captions(options, training) if source == "captions" else (),
        folder=_output(options, name),
        device=choose_device(options.device),
        weight_delta=Path(options.weight_delta) if options.weight_delta else None,
    )


def _check_source(options: argparse.Namespace, source: str) -> None:
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


def name_word(prompt: str, placeholders: Sequence[str]) -> str:
    """Put the word's own name in the place of the usual one, where that is not used."""
    if DEFAULT_PLACEHOLDER in placeholders:
        return prompt
    return prompt.replace(DEFAULT_PLACEHOLDER, placeholders[0])


def shipped_prompts(weights: Path, ending: str = "") -> Path:
    """Return the file of prompts that goes with a model's weights.

    Args:
        weights: of the model; the miniature's have its scorer beside them.
        ending: of the file's stem, such as "-selection".
    """
    from ldm.evaluation.extractors import scorer_beside

    own = "miniature" if scorer_beside(weights) else "paper"
    return ROOT / "examples" / "prompts" / f"{own}{ending}.txt"


def _prompts(options: argparse.Namespace, weights: Path, placeholders: Sequence[str]) -> list[str]:
    """Return the prompts of the file and of the command line, or those that go with the model."""
    file = options.prompts
    if file is None and not options.prompt:
        file = shipped_prompts(weights)
    listed = read_prompts(file) if file is not None else []
    return [*(name_word(prompt, placeholders) for prompt in listed), *options.prompt]


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


def _output(options: argparse.Namespace, name: str) -> Path:
    folder = check_output_folder(options.output or Path("outputs") / "evaluation" / name)
    if (folder / "scores.json").exists() and not options.again:
        raise UserError(
            f"{folder} holds scores already: give another --output, or --again to replace them"
        )
    return folder


def run(options: argparse.Namespace) -> int:
    """Score what the options say.

    Raises:
        UserError: anything wrong with them, before weights are read where that can be known.
    """
    request = read_request(options)
    start = time.monotonic()

    from ldm.evaluation.evaluate import evaluate
    from ldm.evaluation.extractors import (
        default_extractor,
        extractor_facts,
        find_dino,
        find_extractor,
    )
    from ldm.image_io import open_rgb
    from ldm.miniature.editability import edit_scores

    training = [open_rgb(path) for path in request.training]
    scored_by = options.extractor or default_extractor(request.weights)
    extractor = find_extractor(scored_by, request.device)
    second = find_dino(options.dino, request.device) if options.dino else None
    found = evaluate(
        _image_source(request, options, training),
        extractor,
        training,
        request.prompts,
        image_prompt=request.image_prompt,
        placeholders=request.placeholders,
        images=len(training) if request.source == "images" else options.images,
        second=second,
        extra=edit_scores(extractor, resamples=options.resamples),
        resamples=options.resamples,
    )
    facts = {
        "extractor": extractor_facts(scored_by, extractor),
        "dino": extractor_facts(options.dino, second) if second is not None else None,
        **_facts(request, options),
        "seconds": round(time.monotonic() - start, 1),
    }
    write(request.folder, request.name, found.with_settings(**facts))
    return 0


def _image_source(
    request: Request, options: argparse.Namespace, training: Sequence[Image]
) -> ImageSource:
    """Return the source of the images; it saves them if an option asks for it."""
    from ldm.evaluation import sources
    from ldm.image_io import safe_name, save_png

    if request.source == "images":
        return sources.from_images(training)

    def keep(images: Sequence[GeneratedImage]) -> None:
        for image in images:
            path = request.folder / "pictures" / f"{safe_name(image.prompt)}_{image.seed}.png"
            save_png(image.image, path, image.settings)

    model, placeholders = _model(request), request.placeholders
    if request.source == "captions":
        each = len(request.captions)
        texts = sources.captioned(request.asked, each, request.captions, placeholders)
        sources.check_lengths(model, texts)
    source = sources.from_model(
        model.to(request.device),
        sampling_of(options),
        keep=keep if options.save_images else None,
        progress=sys.stderr.isatty(),
    )
    if request.source == "captions":
        return sources.from_captions(source, request.captions, placeholders)
    return sources.from_prompts(source, placeholders) if request.source == "prompts" else source


def _model(request: Request) -> Any:
    """Load the model on the CPU, where its weights lie unread until all is checked."""
    from ldm.inference import load_model, load_words

    model = load_model(request.config, request.weights, weight_delta=request.weight_delta)
    load_words(model, request.words, request.asked if request.words else ())
    return model


def _facts(request: Request, options: argparse.Namespace) -> dict[str, Any]:
    """Return what decided the scores: settings, and each file with the hash of what it holds."""
    from importlib.metadata import version
    from platform import python_version

    import torch

    from ldm.checkpoint.loading import checkpoint_hash
    from ldm.words.loading import split_items

    device = request.device
    is_gpu = device.startswith("cuda")
    return {
        "source": request.source,
        "variant": options.variant,
        "captions": list(request.captions),
        "checkpoint": request.weights.name,
        "checkpoint_hash": checkpoint_hash(request.weights),
        "difference": checkpoint_hash(request.weight_delta) if request.weight_delta else None,
        "config": request.config.name if request.config else None,
        "config_hash": checkpoint_hash(request.config) if request.config else None,
        "words": [
            {"file": Path(path).name, "hash": checkpoint_hash(path), "name": name}
            for path, name in split_items(request.words)
        ],
        "training": {path.name: checkpoint_hash(path) for path in request.training},
        "prompts_hash": hashlib.sha256("\n".join(request.asked).encode()).hexdigest()[:16],
        **({} if request.source == "images" else sampling_of(options).metadata()),
        "device": torch.cuda.get_device_name(device) if is_gpu else device,
        "versions": f"python {python_version()}, torch {torch.__version__}, "
        f"transformers {version('transformers')}",
    }


def write(folder: Path, name: str, found: Evaluation) -> None:
    """Write scores.json and scores.csv, and say what is in them."""
    from ldm.evaluation.evaluate import write_csv

    write_csv(folder / "scores.csv", {name: found})
    text = json.dumps({"name": name, **found.to_json()}, indent=2, ensure_ascii=False)
    write_whole(folder / "scores.json", text + "\n")
    rows = [("image similarity", found.image), ("text similarity", found.text)]
    rows.append(("  of the images' average", found.text_of_average))
    if found.dino is not None:
        rows.append(("DINO similarity", found.dino))
    rows += [(name.replace("_", " "), score) for name, score in found.extra.items()]
    for label, score in rows:
        log.info("%-26s %.4f  [%.4f, %.4f]", label, score.value, score.low, score.high)
    if found.training is not None:
        log.info("%-26s %.4f", "training images' own", found.training)
    log.info("%s", folder / "scores.json")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command."""
    return run(parse(arguments))
