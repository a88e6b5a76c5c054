"""`main.py --dry_run`: check all, take one step, say what a run would do, and write nothing."""

from __future__ import annotations

import logging
import math
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from pytorch_lightning import Callback, LightningModule, Trainer

from ldm.data.folder import some_names, sorted_out
from ldm.data.personalized import PersonalizedBase
from ldm.image_io import open_rgb
from ldm.training.callbacks import StepSeed
from ldm.training.class_images import ROOT_ENTRY
from ldm.training.config import RunConfig
from ldm.training.latents import CacheLatents
from ldm.training.memory import peak_bytes
from ldm.training.run import Run, quiet, set_up
from ldm.training.trainer import build_trainer
from ldm.training.validate import class_images_of, wants_class_images
from ldm.training.words import manager_of
from ldm.util import UserError
from ldm.words.manager import EmbeddingManager
from ldm.words.placeholders import occurrences

# EXIF's tag of the camera's orientation; 1 is upright.
ORIENTATION = 0x0112
# Ratio of the longer to the shorter side from which an image is far from square.
FAR_FROM_SQUARE = 1.5
# Bits of 64 in which the hashes of near duplicates may differ.
NEAR = 4
# The most images that are compared with each other.
COMPARED = 1000


class Stopwatch(Callback):
    """Note the loss and the seconds of each micro-batch."""

    def __init__(self) -> None:
        self.losses: list[float] = []
        self.seconds: list[float] = []
        self._start = 0.0

    def on_train_batch_start(self, *_: Any) -> None:
        self._start = time.monotonic()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, *_: Any
    ) -> None:
        """Stop the clock. Reading the loss waits for the device."""
        self.losses.append(float(outputs["loss"]))
        self.seconds.append(time.monotonic() - self._start)


def dry_run(config: RunConfig) -> int:
    """Check a run's configuration, take one step of its first stage, and print a page about it.

    Raises UserError for what would stop the run, and for a loss that is not finite.
    """
    quiet()
    notes: list[str] = []
    for stage in (config, config.second):
        if stage is not None and wants_class_images(stage.sections):
            prompt, count = class_images_of(stage.sections)
            notes.append(f"{count} class images of {prompt!r} would be generated")
    if wants_class_images(config.sections):
        root = config.sections.data.params.train.params.data_root
        config = config.with_entry(ROOT_ENTRY, root)
    this = set_up(config)
    steps = this.trainer.max_steps
    if config.second is not None:
        notes.append(f"a second stage would follow, in {config.second.folder}")
    if this.resume:
        notes.append(f"resumes from {this.resume.path}, at step {this.resume.step} of {steps}")
    left = steps - (this.resume.step if this.resume else 0)
    train, manager = this.data.datasets.get("train"), manager_of(this.model)
    parts: dict[str, Iterable[str]] = {
        "images": image_lines(train) if isinstance(train, PersonalizedBase) else (),
        "words": _words(manager, train) if manager is not None else (),
        "time and memory": _step(this, left),
        "where files go": _places(this, notes),
    }
    page = [line for title, lines in parts.items() for line in _section(title, lines)]
    page.append("nothing was written; leave out --dry_run to start\n")
    sys.stdout.write("\n".join(page))
    return 0


def _section(title: str, lines: Iterable[str]) -> list[str]:
    return [title, *texts] if (texts := [f"  {line}" for line in lines]) else []


def _words(manager: EmbeddingManager, dataset: Any) -> Iterator[str]:
    """Yield sentences about the words: their start, their tokens, collisions."""
    yield from manager.origins()
    encoder = manager.embedder
    for placeholder in manager.placeholders:
        yield f"placeholder {placeholder!r} is token {manager.token_id(placeholder)}"
    texts: Sequence[str] = dataset.texts() if hasattr(dataset, "texts") else ()
    if texts:
        longest = max(texts, key=encoder.count_tokens)
        yield (
            f"{len(texts)} different captions, of at most {encoder.count_tokens(longest)} of "
            f"{encoder.max_length} tokens, such as {texts[0]!r}"
        )
    for word in set(manager.initializer_words.values()):
        if both := [text for text in texts if occurrences(text, word)]:
            yield (
                f"{len(both)} captions name the initializer word {word!r} beside the learned one, "
                f"such as {both[0]!r}: the learned word may lack what {word!r} says"
            )
    for placeholder in manager.placeholders:
        if twice := [text for text in texts if occurrences(text, placeholder) > 1]:
            yield f"{len(twice)} captions name {placeholder!r} twice, such as {twice[0]!r}"


def _step(this: Run, left: int) -> Iterator[str]:
    """Take one step, and yield what it says about the whole run of `left` steps."""
    config, settings = this.config, dict(this.config.trainer)
    watch = Stopwatch()
    with tempfile.TemporaryDirectory() as folder:
        cache = CacheLatents(**{"folder": Path(folder), **config.lightning.latent_cache})
        options = {"val_check_interval": 1, **settings, "max_steps": 1, "limit_val_batches": 0}
        one = {"devices": 1, "num_nodes": 1, "strategy": "auto", "log_every_n_steps": 1}
        trainer = build_trainer(
            options | one, [StepSeed(config.run.seed), cache, watch], [], False, 1
        )
        logging.getLogger("ldm.training.callbacks").setLevel(logging.WARNING)
        start = time.monotonic()
        trainer.fit(this.model, this.data)
        begun = time.monotonic() - start - sum(watch.seconds)
    if not all(map(math.isfinite, watch.losses)):
        raise UserError(
            f"the loss of the first step is not finite, in precision {trainer.precision}: try "
            "--precision 32, or check the weights"
        )
    step = sum(watch.seconds)
    loss = sum(watch.losses) / len(watch.losses)
    yield f"one step taken: loss {loss:.4f}, {step:.2f} s (the first step is the slowest)"
    yield (
        f"precision {trainer.precision}, learning rate {this.model.learning_rate:.4g}, "
        f"{config.batch.images} images a step"
    )
    yield f"{left} steps: at most {timedelta(seconds=round(begun + left * step))}"
    device = this.model.device
    if device.type == "cuda":
        most = torch.cuda.max_memory_allocated(device) / 2**30
        whole = torch.cuda.get_device_properties(device).total_memory / 2**30
        yield f"memory on {device}: {most:.1f} of {whole:.1f} GiB"
    yield f"main memory: {peak_bytes('cpu') / 2**30:.1f} GiB at most"
    if config.batch.devices > 1:
        yield f"the run uses {config.batch.devices} processes; this step used one"


def _places(this: Run, notes: Sequence[str]) -> Iterator[str]:
    config, every = this.config, this.checkpoints.every
    yield f"log folder {config.folder}" + ("" if this.resume else " (with the date of its start)")
    yield f"checkpoints/last.ckpt and previous.ckpt, every {every} steps and at the end"
    if manager_of(this.model) is not None:
        yield "checkpoints/embeddings.pt and .safetensors, and embeddings_gs-STEP at each save"
    yield "logger/metrics.csv, TensorBoard's events beside it, configs/, images/"
    yield from notes


def image_lines(dataset: PersonalizedBase) -> Iterator[str]:
    """Yield sentences about the images: used, skipped, and what is done to them."""
    paths, size = dataset.files(), dataset.size
    yield f"{len(paths)} used: {some_names([path.name for path in paths])}"
    for root in dict.fromkeys(path.parent for path in paths):
        if skipped := sorted_out(root)[1]:
            yield f"skipped {skipped}"
    if dataset.skipped:
        yield f"skipped as broken: {some_names([name for name, _ in dataset.skipped])}"
    rotated, enlarged, oblong = [], [], []
    for path in paths:
        with Image.open(path) as image:
            (width, height), turned = image.size, image.getexif().get(ORIENTATION, 1) != 1
        if turned:
            rotated.append(path.name)
        if size is not None and min(width, height) < size:
            enlarged.append(f"{path.name} {width}x{height}")
        if max(width, height) > FAR_FROM_SQUARE * min(width, height):
            oblong.append(f"{path.name} {width}x{height}")
    cropped = "cut to the middle square" if dataset.center_crop else "squashed (see --center_crop)"
    for names, what in (
        (rotated, "rotated as the camera says"),
        (enlarged, f"enlarged to {size}x{size}"),
        (oblong, f"far from square and {cropped}"),
    ):
        if names:
            yield f"{len(names)} {what}: {some_names(names)}"
    if pairs := near_duplicates(paths[:COMPARED]):
        named = [f"{one.name} = {other.name}" for one, other in pairs]
        yield f"{len(pairs)} pairs of near duplicates: {some_names(named)}"


def near_duplicates(paths: Sequence[Path]) -> list[tuple[Path, Path]]:
    """Return the pairs of images that look alike.

    Each image becomes 64 bits: whether a pixel of a 9 x 8 thumbnail is brighter than the next one
    (the difference hash). Pairs whose bits differ in at most `NEAR` places are near duplicates.
    """
    bits = np.stack([_hash(path) for path in paths])
    different = (bits[:, None] != bits[None]).sum(-1)
    first, second = np.nonzero(np.triu(different <= NEAR, 1))
    pairs = zip(first.tolist(), second.tolist(), strict=True)
    return [(paths[i], paths[j]) for i, j in pairs]


def _hash(path: Path) -> npt.NDArray[np.bool_]:
    small = np.asarray(open_rgb(path).convert("L").resize((9, 8), Image.Resampling.BOX), np.int16)
    return (small[:, 1:] > small[:, :-1]).flatten()
