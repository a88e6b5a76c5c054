"""The configuration of a run: YAML files and flags, merged and checked, once.

Every object gets its own part as plain arguments; nothing deeper reads a configuration.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError  # type: ignore[import-untyped]

from ldm.training.arguments import TRAINER_FLAGS
from ldm.training.variants import check_learned, check_variant, find_variant
from ldm.util import UserError, get_obj_from_str, parameters

SETS = ("train", "validation", "test", "predict")
SECTIONS = ("model", "data", "lightning", "run", "variant", "second_stage")
# What a second stage may change.
STAGE_SECTIONS = ("model", "data", "lightning")
# What `run:` may hold, and the value where nothing says otherwise.
RUN_DEFAULTS: dict[str, Any] = {
    "seed": 23,  # the paper's
    "scale_lr": True,  # rate = accumulation x devices x batch x base_learning_rate
    "base_checkpoint": None,  # the frozen model's weights (--actual_resume)
    "random_base": False,  # allow a word to be taught to a model without weights
    "threads": None,  # CPU threads
    "half_difference": True,  # keep what tuning moved the networks by in half precision
    "tf32": False,  # faster, coarser float32 products on a GPU
    "data_name": "",  # begins the log folder's name
}


@dataclass(frozen=True)
class RunConfig:
    """A run's configuration, each part as its owner takes it.

    Attributes:
        model, data: target and params.
        lightning: `trainer`, `callbacks`, `modelcheckpoint` and so on.
        run: what the flags say; keys of `RUN_DEFAULTS`.
        variant: which variant of the method this is; see `ldm.training.variants`.
        second_stage: what the configuration's `second_stage` changes: sections of its own.
    """

    model: DictConfig
    data: DictConfig
    lightning: DictConfig
    run: DictConfig
    variant: DictConfig | None = None
    second_stage: DictConfig | None = None

    def save(self, folder: Path, date: str) -> None:
        """Write `<date>-project.yaml` and `<date>-lightning.yaml`, from which the run can go on."""
        parts = {"model": self.model, "data": self.data}
        more = {"variant": self.variant, "second_stage": self.second_stage}
        project = OmegaConf.create(parts | {k: v for k, v in more.items() if v is not None})
        rest = OmegaConf.create({"lightning": self.lightning, "run": self.run})
        folder.mkdir(parents=True, exist_ok=True)
        OmegaConf.save(project, folder / f"{date}-project.yaml")
        OmegaConf.save(rest, folder / f"{date}-lightning.yaml")

    def second(self, words: str | None = None) -> RunConfig | None:
        """Return the configuration of the second stage; None where there is but one.

        It is the first stage's with `second_stage` laid over it. Its words begin where the first
        stage's ended, with all their vectors in play.

        Args:
            words: file of the first stage's words, once it is there.

        Raises UserError for what does not fit together.
        """
        if self.second_stage is None:
            return None
        own = {name: getattr(self, name) for name in (*STAGE_SECTIONS, "run")}
        merged = OmegaConf.merge(OmegaConf.create(own), self.second_stage)
        assert isinstance(merged, DictConfig)
        check_shape(merged)
        personal = OmegaConf.select(merged.model, "params.personalization_config.params")
        if personal is not None and words:
            personal.embedding_manager_ckpt = words
            personal.progressive_words = False
        return RunConfig(merged.model, merged.data, merged.lightning, merged.run, self.variant)


def read_yaml(path: Path) -> DictConfig:
    """Read a YAML file holding a mapping; a variant in it gets the file's name.

    Raises UserError where it is missing or not a mapping.
    """
    try:
        config = OmegaConf.load(path)
    except FileNotFoundError as error:
        raise UserError(f"no configuration at {path}: give an existing file to --base") from error
    except (YAMLError, OmegaConfBaseException, OSError, UnicodeDecodeError) as error:
        line = " ".join(str(error).split())
        raise UserError(f"cannot read the configuration {path}: {line}") from error
    if not isinstance(config, DictConfig):
        raise UserError(f"{path} is not a configuration: expected a mapping with 'model', 'data'")
    if isinstance(facts := config.get("variant"), DictConfig):
        facts.setdefault("name", path.stem)
    return config


def log_folder_of(resume: str) -> tuple[Path, Path]:
    """Return (log folder, checkpoint) of --resume, which may name either.

    Raises UserError where there is nothing to go on from.
    """
    path = Path(resume)
    if path.is_file():
        return path.resolve().parent.parent, path
    if not path.is_dir():
        raise UserError(f"--resume {resume}: no such log folder or checkpoint")
    last = path / "checkpoints" / "last.ckpt"
    if not last.is_file():
        raise UserError(f"--resume {resume}: it has no checkpoints/last.ckpt to go on from")
    return path, last


def merge(paths: Sequence[Path], overrides: Sequence[str]) -> DictConfig:
    """Merge YAML files from left to right, then overrides "a.b=c".

    Raises UserError naming a section that is missing.
    """
    parts = [read_yaml(path) for path in paths]
    for text in overrides:
        try:
            parts.append(OmegaConf.from_dotlist([text]))
        except (YAMLError, OmegaConfBaseException) as error:
            raise UserError(f"cannot read the override {text!r}: is a quote missing?") from error
    merged = OmegaConf.merge(*parts)
    assert isinstance(merged, DictConfig)
    for name in ("model", "data"):
        if not isinstance(merged.get(name), DictConfig) or "target" not in merged[name]:
            raise UserError(
                f"the configuration has no {name!r} with a target: give a YAML with one to --base"
            )
        merged[name].params = merged[name].get("params") or {}
    return merged


def check_shape(config: DictConfig) -> None:
    """Raise UserError where a number or text stands in a mapping's or list's place."""
    words = "model.params.personalization_config"
    sets = [f"data.params.{name}" for name in SETS]
    mappings = (
        *("model", "model.params", words, f"{words}.params", "data", "data.params", *sets),
        *(f"{name}.params" for name in sets),
        *("run", "lightning", "lightning.trainer", "lightning.callbacks", "lightning.logger"),
        *("lightning.callbacks.image_logger", "lightning.latent_cache"),
        *("lightning.modelcheckpoint", "lightning.modelcheckpoint.params"),
        *("variant", "second_stage", *(f"second_stage.{name}" for name in STAGE_SECTIONS)),
    )
    lists = (f"{words}.params.placeholder_strings", f"{words}.params.initializer_words")
    kinds = dict.fromkeys(mappings, ("a mapping", DictConfig)) | dict.fromkeys(
        lists, ("a list", ListConfig)
    )
    for name, (what, kind) in kinds.items():
        value = OmegaConf.select(config, name)
        if value is not None and not isinstance(value, kind):
            raise UserError(f"{name}: expected {what}, got {value!r}")


def accepts(config: DictConfig, name: str) -> bool:
    """Tell whether the target of a configuration takes a parameter."""
    return name in parameters(get_obj_from_str(config.target))[0]


def datasets(data: DictConfig) -> Iterator[tuple[str, DictConfig]]:
    """Yield the data section's sets: (name, target and params)."""
    for name in SETS:
        config = data.params.get(name)
        if config:
            config.params = config.get("params") or {}
            yield name, config


def set_gpus(trainer: DictConfig, gpus: str | int | Sequence[int]) -> None:
    """Translate the original's `gpus`, a list of GPU numbers; -1 is all of them."""
    parts = str(gpus).split(",") if isinstance(gpus, str | int) else gpus
    try:
        numbers = [int(part) for part in parts if str(part).strip()]
    except ValueError as error:
        raise UserError(f"--gpus {gpus}: expected numbers, such as 0 or 0,1") from error
    if not numbers:
        raise UserError(f"--gpus {gpus!r}: expected numbers, such as 0 or 0,1")
    trainer.accelerator = "gpu"
    trainer.devices = -1 if numbers == [-1] else numbers


def _apply_trainer_flags(trainer: DictConfig, options: argparse.Namespace) -> None:
    for name in TRAINER_FLAGS:
        if getattr(options, name) is not None:
            trainer[name] = getattr(options, name)
    gpus = options.gpus if options.gpus is not None else trainer.pop("gpus", None)
    if gpus is not None:
        set_gpus(trainer, gpus)
    trainer.pop("gpus", None)


def _apply_data_flags(data: DictConfig, options: argparse.Namespace) -> None:
    """Hand the data flags to each set that knows them; a flag no set knows is an error."""
    if options.num_workers is not None:
        data.params.num_workers = options.num_workers
    given = {
        "data_root": options.data_root,
        "second_root": options.second_root,
        "templates": options.templates,
        "captions": options.captions,
        "center_crop": options.center_crop,
    }
    for name, value in given.items():
        if not value:
            continue
        takers = [config for _, config in datasets(data) if accepts(config, name)]
        if not takers:
            raise UserError(f"--{name}: no set of this configuration's data takes it")
        for config in takers:
            config.params[name] = value


def _name_words(where: str, dataset: DictConfig, placeholders: list[str], given: bool) -> None:
    """Set the words in a set's captions; UserError where it would name one that is not learned."""
    for place, key in enumerate(("placeholder_token", "second_placeholder")):
        if not accepts(dataset, key):
            continue
        if place >= len(placeholders):
            raise UserError(f"{where} shows two concepts: name two words, not {placeholders}")
        if given or key not in dataset.params:
            dataset.params[key] = placeholders[place]
        token = dataset.params[key]
        if token not in placeholders:
            raise UserError(
                f"{where}: its captions say {token!r}, but the words to learn are "
                f"{placeholders}: set {key} and placeholder_strings alike"
            )


def _apply_words(config: DictConfig, options: argparse.Namespace) -> None:
    """Set the words in the manager *and* in the captions: the original forgot the captions."""
    flags = ("placeholder_string", "init_word", "embedding_manager_ckpt")
    personal = OmegaConf.select(config.model, "params.personalization_config")
    if personal is None:
        for flag in flags:
            if getattr(options, flag):
                raise UserError(f"--{flag}: this model learns no word (no personalization_config)")
        return
    personal.params = personal.get("params") or {}
    words = personal.params
    named, first = any(options.placeholder_string), options.init_word
    if named:
        words.placeholder_strings = options.placeholder_string
    placeholders = list(words.get("placeholder_strings") or ["*"])
    if any(first) and len(first) < len(placeholders):
        raise UserError(f"--init_word {' '.join(first)}: give one for each word of {placeholders}")
    if any(first):
        words.initializer_words = first
    if options.embedding_manager_ckpt:
        words.embedding_manager_ckpt = options.embedding_manager_ckpt
    if accepts(personal, "seed"):  # of first values where no word gives them
        words.setdefault("seed", config.run.seed)
    for name, dataset in datasets(config.data):
        if not accepts(dataset, "placeholder_token"):
            continue
        _name_words(f"data.params.{name}", dataset, placeholders, named)
        # The run's seed decides templates and flips too; captions may name the first word.
        facts = {
            "seed": config.run.seed,
            "first_word": (words.get("initializer_words") or [None])[0],
            "per_image_placeholders": words.get("per_image_placeholders"),
        }
        for key, value in facts.items():
            if accepts(dataset, key) and key not in dataset.params:
                dataset.params[key] = value


def apply_flags(config: DictConfig, options: argparse.Namespace) -> None:
    """Write the command line's flags into the configuration, in place."""
    for section in ("run", "lightning"):
        config[section] = config.get(section) or {}
    for section in ("trainer", "callbacks", "latent_cache"):
        config.lightning[section] = config.lightning.get(section) or {}
    images = config.lightning.callbacks.setdefault("image_logger", None) or {}
    config.lightning.callbacks.image_logger = {"target": "main.ImageLogger", "params": {}, **images}
    run = config.run
    for name in ("seed", "scale_lr", "threads"):
        if getattr(options, name) is not None:
            run[name] = getattr(options, name)
    if options.actual_resume:
        run.base_checkpoint = options.actual_resume
    for name, default in RUN_DEFAULTS.items():
        run.setdefault(name, default)
    _apply_trainer_flags(config.lightning.trainer, options)
    _apply_data_flags(config.data, options)
    root = OmegaConf.select(config.data, "params.train.params.data_root")
    if root:
        run.data_name = Path(root).resolve().name
    _apply_words(config, options)


def _check_variant(config: DictConfig) -> None:
    """Raise UserError where a variant has nothing to train, or a second stage changes the rest."""
    if (facts := config.get("variant")) is not None:
        check_variant(facts, "the configuration")
        check_learned(facts)
    for name in config.get("second_stage") or ():
        if name not in STAGE_SECTIONS:
            known = ", ".join(STAGE_SECTIONS)
            raise UserError(f"unknown configuration key second_stage.{name}: expected {known}")


def load_config(options: argparse.Namespace) -> RunConfig:
    """Return the merged configuration of a run.

    Raises UserError for what cannot be read or does not fit together.
    """
    paths = [Path(path) for path in options.base]
    paths += [find_variant(name).path for name in options.variant]
    if options.resume:
        folder, _ = log_folder_of(options.resume)
        for kind in ("lightning", "project"):
            paths = sorted((folder / "configs").glob(f"*-{kind}.yaml"))[-1:] + paths
    if not paths:
        raise UserError("no configuration: give --base YAML, or --resume LOGFOLDER")
    try:
        merged = merge(paths, options.overrides)
        unknown = [str(name) for name in merged if name not in SECTIONS]
        if unknown:
            raise UserError(
                f"unknown configuration key {unknown[0]!r}: expected {', '.join(SECTIONS)}"
            )
        check_shape(merged)
        _check_variant(merged)
        apply_flags(merged, options)
        OmegaConf.resolve(merged)
        if missing := sorted(OmegaConf.missing_keys(merged)):
            raise UserError(f"the configuration leaves {missing[0]} open (???): give {missing[0]}=")
    except OmegaConfBaseException as error:
        line = " ".join(str(error).split())
        raise UserError(f"the configuration does not fit together: {line}") from error
    return RunConfig(*(merged.get(name) for name in SECTIONS))
