"""The configuration of a run: one typed, complete, checked and frozen object.

`load` makes it of the command line, in one pass. After it nobody sees flags or files: each object
gets its own part as plain arguments.
"""

from __future__ import annotations

import argparse
import copy
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from ldm.training.arguments import parse
from ldm.training.merge import STAGE_SECTIONS, WORDS, merge
from ldm.training.processes import FOLDER_VARIABLE
from ldm.training.variants import read_yaml
from ldm.util import UserError, quote, write_whole

log = logging.getLogger(__name__)

DATE = "%Y-%m-%dT%H-%M-%S"
SECOND_STAGE = "second_stage"
# Bytes of a log folder's name; file systems allow 255, and a number may be added.
LONGEST_NAME = 240


@dataclass(frozen=True)
class RunOptions:
    """The section `run`.

    Attributes:
        seed: seed of all random numbers, in [0, 2^32). The default is the paper's.
        scale_lr: learning rate = accumulation x devices x batch size x base_learning_rate.
        base_checkpoint: weights of the frozen model (`--model`).
        random_base: learn a word on a model without weights, for tests.
        threads: CPU threads of torch, at least 1; None leaves torch's own number.
        half_difference: store the weight delta in half precision.
        tf32: faster, less exact float32 products on a GPU.
        compile: compile the U-Net (`ldm.training.compiling`).
        data_name: start of the log folder's name.
        placeholder: placeholder of each word in its own file, if several words are learned at once.
    """

    seed: int = 23
    scale_lr: bool = True
    base_checkpoint: str | None = None
    random_base: bool = False
    threads: int | None = None
    half_difference: bool = True
    tf32: bool = False
    compile: bool = False
    data_name: str = ""
    placeholder: str = "*"

    def __post_init__(self) -> None:
        if not 0 <= self.seed < 2**32:
            raise UserError(f"--seed {self.seed}: expected a number from 0 to {2**32 - 1}")
        if self.threads is not None and self.threads < 1:
            raise UserError(f"--threads {self.threads}: expected a number of at least 1")


@dataclass(frozen=True)
class Batch:
    """How many images an optimizer step sees.

    `micro` micro-batches of `size` images are accumulated on each of `devices`, over all nodes.
    """

    size: int
    micro: int
    devices: int

    @property
    def images(self) -> int:
        """Images in a step, over all devices."""
        return self.size * self.micro * self.devices

    def __str__(self) -> str:
        return f"{self.micro} accumulated x {self.devices} devices x {self.size} in a batch"


@dataclass(frozen=True)
class RunConfig:
    """A run's configuration.

    Attributes:
        sections: the merged mapping, read-only; it is stored in the log folder.
        run: the section `run`.
        trainer: options of `pl.Trainer`.
        batch: how many images a step sees.
        folder: the log folder. That of a new run may get a number when it is made.
        resume: checkpoint to resume from.
        train, test: whether to train, and to test at the end.
        second: the second stage's configuration.
    """

    sections: DictConfig
    run: RunOptions
    trainer: Mapping[str, Any]
    batch: Batch
    folder: Path
    resume: Path | None
    train: bool
    test: bool
    second: RunConfig | None = None

    @property
    def model(self) -> DictConfig:
        """Target, params and base_learning_rate of the model."""
        return self.sections.model

    @property
    def data(self) -> DictConfig:
        """Target and params of the data module."""
        return self.sections.data

    @property
    def lightning(self) -> DictConfig:
        """`callbacks`, `modelcheckpoint`, `latent_cache`, `logger` and so on."""
        return self.sections.lightning

    def editable(self) -> DictConfig:
        """Return a copy of the sections that can be changed."""
        sections = self.sections.copy()
        OmegaConf.set_readonly(sections, False)
        return sections

    def with_entry(self, name: str, value: Any) -> RunConfig:
        """Return the configuration with another value of an entry, such as "data.params.x"."""
        sections = self.editable()
        OmegaConf.update(sections, name, value)
        OmegaConf.set_readonly(sections, True)
        return replace(self, sections=sections)

    def second_after(self, folder: Path) -> RunConfig:
        """Return the second stage's configuration, given the first one's log folder."""
        assert self.second is not None
        second, words = self.second, folder / "checkpoints" / "embeddings.safetensors"
        if OmegaConf.select(second.sections, WORDS) is not None:
            second = second.with_entry(f"{WORDS}.params.embedding_manager_ckpt", str(words))
        own = folder / SECOND_STAGE
        return replace(second, folder=own, resume=_last_checkpoint(own))

    def save(self, folder: Path, date: str) -> None:
        """Write `<date>-project.yaml` and `<date>-lightning.yaml`; a resumed run reads them."""
        names = ("model", "data", "variant", SECOND_STAGE)
        project = {name: self.sections[name] for name in names if self.sections.get(name)}
        rest = {"lightning": self.lightning, "run": asdict(self.run)}
        for kind, parts in (("project", project), ("lightning", rest)):
            write_whole(folder / f"{date}-{kind}.yaml", OmegaConf.to_yaml(OmegaConf.create(parts)))


def log_folder_of(resume: str) -> tuple[Path, Path]:
    """Return (log folder, checkpoint) of --resume, which may name either.

    Raises UserError if there is nothing to resume from.
    """
    path = Path(resume).expanduser().absolute()
    if path.is_file():
        return path.resolve().parent.parent, path
    if not path.is_dir():
        raise UserError(f"--resume {resume}: no such log folder or checkpoint")
    last = _last_checkpoint(path)
    if last is None:
        raise UserError(f"--resume {resume}: it has no checkpoints/last.ckpt to resume from")
    return path, last


def _last_checkpoint(folder: Path) -> Path | None:
    """Return the path of a log folder's last checkpoint; None if it has no checkpoint."""
    files = [folder / "checkpoints" / name for name in ("last.ckpt", "previous.ckpt")]
    return files[0] if any(file.is_file() for file in files) else None


def _stored(folder: Path, options: argparse.Namespace) -> list[Path]:
    """Return the files in which a run stored its configuration last."""
    found: list[Path] = []
    for kind in ("project", "lightning"):
        latest = sorted((folder / "configs").glob(f"*-{kind}.yaml"))[-1:]
        if not latest and not options.base:
            raise UserError(
                f"--resume: {folder / 'configs'} has no *-{kind}.yaml, which the run stored: give "
                "its configuration again, --base YAML, and the flags of its start"
            )
        found += latest
    before = OmegaConf.select(read_yaml(found[-1]), "run.seed") if found else None
    if options.seed is not None and before is not None and options.seed != before:
        log.warning(
            f"--seed {options.seed}: the run began with seed {before}. The resumed run will differ "
            "from an uninterrupted one"
        )
    return found


def _new_folder(options: argparse.Namespace, sections: DictConfig, data_name: str) -> Path:
    """Return LOGDIR/[PROJECT/]<data><date>_<name><postfix>.

    Without --name, the name is that of the first configuration and of the variant.
    """
    data = data_name if options.datadir_in_name else ""
    name = options.name or (Path(options.base[0]).stem if options.base else "")
    if sections.get("variant") is not None and not options.name:
        name += f"-{sections.variant.get('name', 'variant')}"
    stem = f"{data}{datetime.now():{DATE}}" + (f"_{name}" if name else "") + options.postfix
    for flag, value in (("--name", name), ("--postfix", options.postfix)):
        if "/" in value:
            raise UserError(f"{flag} {quote(value)}: no / may be in it; --logdir names a folder")
    if len(stem.encode()) > LONGEST_NAME:
        raise UserError(
            f"the log folder's name {quote(stem)} is too long: give a shorter --name, or "
            "--datadir_in_name false"
        )
    return Path(options.logdir) / options.project / stem


def stage_of(
    sections: DictConfig, folder: Path, checkpoint: Path | None, *, train: bool, test: bool
) -> RunConfig:
    """Return the checked configuration of one stage."""
    # These imports take time. Mistakes in the files are found before them.
    from ldm.training.trainer import accumulation, device_count, trainer_settings
    from ldm.training.validate import check_sections, check_trainer, check_values, kinds_of

    check_values("run", sections.run, kinds_of(RunOptions))
    run = RunOptions(**sections.run)
    check_sections(sections)
    trainer = trainer_settings(sections.lightning.trainer)
    check_trainer(trainer)
    size, devices = sections.data.params.batch_size, device_count(trainer)
    micro = accumulation(sections.lightning, trainer, size, devices)
    trainer["accumulate_grad_batches"] = micro
    OmegaConf.set_readonly(sections, True)
    batch = Batch(size, micro, devices)
    return RunConfig(sections, run, trainer, batch, folder, checkpoint, train, test)


def _second_sections(sections: DictConfig) -> DictConfig:
    """Return the first stage's sections with `second_stage` laid over them.

    Its words begin where the first stage's ended, with all their vectors in use.
    """
    own = {name: sections[name] for name in (*STAGE_SECTIONS, "run", "variant") if name in sections}
    merged = OmegaConf.merge(OmegaConf.create(own), sections.second_stage)
    assert isinstance(merged, DictConfig)
    if (personal := OmegaConf.select(merged, WORDS)) is not None:
        personal.params.progressive_words = False
    return merged


def load(argv: Sequence[str] | argparse.Namespace | None = None) -> RunConfig:
    """Return the configuration of a run: files and flags, merged and checked, of both stages.

    `argv` is the command line, or its parsed form; by default that of this process. Raises
    UserError for what cannot be read, does not exist or does not fit together.
    """
    options = argv if isinstance(argv, argparse.Namespace) else parse(argv)
    folder, checkpoint, stored = None, None, []
    if options.resume:
        folder, checkpoint = log_folder_of(options.resume)
        stored = _stored(folder, options)
    sections = merge(options, stored)
    if folder is None and FOLDER_VARIABLE in os.environ:
        folder = Path(os.environ[FOLDER_VARIABLE])
    folder = folder or _new_folder(options, sections, sections.run.get("data_name", ""))
    later = _second_sections(sections) if sections.get("second_stage") is not None else None
    tasks = {"train": options.train, "test": not options.no_test}
    config = stage_of(sections, folder, checkpoint, **tasks)
    if later is None:
        return config
    try:
        return replace(config, second=stage_of(later, folder / SECOND_STAGE, None, **tasks))
    except UserError as error:
        raise UserError(f"second stage: {error}") from error


def load_each(options: argparse.Namespace) -> list[tuple[str, Callable[[], RunConfig]]]:
    """Return each folder of --data_root, and a function that loads its own run's configuration.

    The function raises the errors of `load`. Raises UserError for words that are not one for each
    folder.
    """
    roots, inits = options.data_roots, options.init_word
    if len(inits) != len(roots):
        raise UserError(
            f"{len(roots)} folders of --data_root and {len(inits)} --init_word: give one for each"
        )
    if len(options.placeholder_string) > 1:
        raise UserError("--placeholder_string: one name serves all words, each in its own file")
    found: list[tuple[str, Callable[[], RunConfig]]] = []
    for root, init in zip(roots, inits, strict=True):
        own = copy.copy(options)
        own.data_root, own.init_word = root, [init]
        found.append((root, partial(load, own)))
    return found
