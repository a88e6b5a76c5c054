"""YAML files and flags become one mapping. `ldm.training.config.load` makes the typed object of it.

Imports nothing heavy until a target is looked up, so that a mistake in a file shows at once.
"""

from __future__ import annotations

import argparse
import logging
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError  # type: ignore[import-untyped]

from ldm.checkpoint.hub import locate_base
from ldm.resources import locate, weights_in
from ldm.training.arguments import TRAINER_FLAGS
from ldm.training.variants import find_variant, read_yaml
from ldm.util import UserError, get_obj_from_str, one_line, parameters

log = logging.getLogger(__name__)

SETS = ("train", "validation", "test", "predict")
SECTIONS = ("model", "data", "lightning", "run", "variant", "second_stage")
# Sections that a second stage may change.
STAGE_SECTIONS = ("model", "data", "lightning")
# Entries that name files or folders.
PATHS = (
    *("tokenizer", "ckpt_path", "embedding_manager_ckpt"),
    *("data_root", "second_root", "class_root", "templates"),
)
# Flags that set one entry each.
FLAGS = {
    **{name: f"run.{name}" for name in ("seed", "scale_lr", "threads", "compile")},
    **{name: f"lightning.trainer.{name}" for name in (*TRAINER_FLAGS, "gpus")},
    "num_workers": "data.params.num_workers",
}
WORDS = "model.params.personalization_config"
MAPPINGS = (
    *("model", "model.params", WORDS, f"{WORDS}.params", "data", "data.params"),
    *(f"data.params.{name}{part}" for name in SETS for part in ("", ".params")),
    *("run", "lightning", "lightning.trainer", "lightning.callbacks", "lightning.logger"),
    *("lightning.callbacks.image_logger", "lightning.callbacks.image_logger.params"),
    "lightning.latent_cache",
    *("lightning.modelcheckpoint", "lightning.modelcheckpoint.params"),
    *("variant", "second_stage", *(f"second_stage.{name}" for name in STAGE_SECTIONS)),
)
LISTS = (f"{WORDS}.params.placeholder_strings", f"{WORDS}.params.initializer_words")
MINIATURE, MINIATURE_CONFIG = "models/miniature", "configs/miniature/finetune.yaml"
# The entries of `model.params` that a base decides; the others say how to learn.
OF_THE_BASE = (
    *("unet_config", "first_stage_config", "cond_stage_config", "conditioning_key"),
    *("image_size", "channels", "scale_factor", "parameterization"),
    *("timesteps", "beta_schedule", "linear_start", "linear_end"),
)


def check_shape(config: DictConfig) -> None:
    """Raise UserError where a number or a text stands in place of a mapping or a list."""
    kinds: dict[str, tuple[str, type]] = dict.fromkeys(MAPPINGS, ("a mapping", DictConfig))
    kinds |= dict.fromkeys(LISTS, ("a list", ListConfig))
    for name, (what, kind) in kinds.items():
        value = OmegaConf.select(config, name)
        if value is not None and not isinstance(value, kind):
            raise UserError(f"{name}: expected {what}, got {value!r}")


@contextmanager
def _fitting() -> Iterator[None]:
    """Turn errors of OmegaConf, such as an interpolation of a missing key, into a UserError."""
    try:
        yield
    except OmegaConfBaseException as error:
        line = one_line(error)
        raise UserError(f"the configuration does not fit together: {line}") from error


@_fitting()
def merge_files(
    paths: Sequence[Path], overrides: Sequence[str], first: Sequence[DictConfig] = ()
) -> DictConfig:
    """Merge `first` and YAML files from left to right, then the overrides "a.b=c".

    Raises UserError for a section that is missing or unknown.
    """
    parts = [*first, *(read_yaml(path) for path in paths)]
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
    later = merged.get("second_stage")
    given: dict[str, Sequence[str]] = {str(name): SECTIONS for name in merged}
    if isinstance(later, DictConfig):
        given |= {f"second_stage.{name!s}": STAGE_SECTIONS for name in later}
    for key, allowed in given.items():
        if key.removeprefix("second_stage.") not in allowed:
            raise UserError(f"unknown configuration key {key!r}: expected {', '.join(allowed)}")
    check_shape(merged)
    return merged


def accepts(config: DictConfig, name: str) -> bool:
    """Tell whether the target of a configuration takes a parameter."""
    return name in parameters(get_obj_from_str(config.target))[0]


def datasets(data: DictConfig) -> Iterator[tuple[str, DictConfig]]:
    """Yield (name, target and params) of each set in the data section."""
    for name in SETS:
        if config := data.params.get(name):
            yield name, config


def _set_gpus(trainer: DictConfig, gpus: str | int | Sequence[int]) -> None:
    """Translate the original's `gpus`, a list of GPU numbers. -1 is all of them."""
    parts = str(gpus).split(",") if isinstance(gpus, str | int) else gpus
    try:
        numbers = [int(part) for part in parts if str(part).strip()]
    except ValueError:
        numbers = []
    if not numbers:
        raise UserError(f"--gpus {gpus}: expected numbers, such as 0 or 0,1")
    trainer.accelerator = "gpu"
    trainer.devices = -1 if numbers == [-1] else numbers


def _apply_data_flags(data: DictConfig, options: argparse.Namespace) -> None:
    """Give the data flags to each set that takes them; a flag that no set takes is an error."""
    for name in ("data_root", "second_root", "templates", "captions", "center_crop", "skip_bad"):
        if not (value := getattr(options, name)):
            continue
        takers = [config for _, config in datasets(data) if accepts(config, name)]
        if not takers:
            raise UserError(f"--{name}: no set of this configuration's data takes it")
        for config in takers:
            config.params[name] = value


def _name_words(where: str, dataset: DictConfig, placeholders: list[str], given: bool) -> None:
    """Set the words in a set's captions; raise UserError for a word that is not learned."""
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


def _set_words(words: DictConfig, options: argparse.Namespace) -> list[str]:
    """Set the manager's words from the flags; return the placeholders."""
    for flag, key in (
        ("placeholder_string", "placeholder_strings"),
        ("init_word", "initializer_words"),
    ):
        given = getattr(options, flag)
        if strays := [text for text in given if re.fullmatch(r"[\w-]+=.*", text)]:
            raise UserError(
                f"--{flag}: {strays[0]!r} is no word; an override names an entry in full, as "
                "model.base_learning_rate=0.005"
            )
        if any(given):
            words[key] = given
        elif given:
            log.warning(f"--{flag} is empty: the configuration's {list(words.get(key) or [])} stay")
    placeholders = list(words.get("placeholder_strings") or ["*"])
    given = " ".join(options.init_word)
    if any(options.init_word) and len(options.init_word) < len(placeholders):
        raise UserError(f"--init_word {given}: give one for each word of {placeholders}")
    if len(options.init_word) > len(placeholders):
        raise UserError(
            f"--init_word {given}: {len(options.init_word)} words for {placeholders}: put a word "
            f'of several parts in quotes, as --init_word "{given}", or give as many placeholders'
        )
    if options.embedding_manager_ckpt:
        words.embedding_manager_ckpt = options.embedding_manager_ckpt
    return placeholders


def _apply_words(config: DictConfig, options: argparse.Namespace) -> None:
    """Set the words in the manager and in the captions; the original set only the manager's."""
    personal = OmegaConf.select(config, WORDS)
    if personal is None:
        for flag in ("placeholder_string", "init_word", "embedding_manager_ckpt"):
            if getattr(options, flag):
                raise UserError(f"--{flag}: this model learns no word (no personalization_config)")
        return
    if options.resume and options.embedding_manager_ckpt:
        raise UserError(
            "--embedding_manager_ckpt: a resumed run takes its words from the checkpoint; start a "
            "new run to begin with other words"
        )
    personal.params = personal.get("params") or {}
    words = personal.params
    placeholders = _set_words(words, options)
    if accepts(personal, "seed"):  # for initial values that no word gives
        words.setdefault("seed", config.run.seed)
    for name, dataset in datasets(config.data):
        if not accepts(dataset, "placeholder_token"):
            continue
        _name_words(f"data.params.{name}", dataset, placeholders, any(options.placeholder_string))
        # The run's seed decides templates and flips too; captions may name the initializer word.
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
    for _, dataset in datasets(config.data):
        dataset.params = dataset.get("params") or {}
    for name, place in FLAGS.items():
        if getattr(options, name) is not None:
            OmegaConf.update(config, place, getattr(options, name))
    run, images = config.run, config.lightning.callbacks.get("image_logger") or {}
    run.setdefault("seed", 23)  # the paper's
    if options.actual_resume:
        run.base_checkpoint = options.actual_resume
    images = OmegaConf.create({"target": "main.ImageLogger", "params": {}, **images})
    if accepts(images, "seed"):
        images.params.setdefault("seed", run.seed)
    config.lightning.callbacks.image_logger = images
    if (gpus := config.lightning.trainer.pop("gpus", None)) is not None:
        _set_gpus(config.lightning.trainer, gpus)
    _apply_data_flags(config.data, options)
    if root := OmegaConf.select(config.data, "params.train.params.data_root"):
        run.data_name = Path(root).resolve().name
    _apply_words(config, options)


def resolve_paths(node: DictConfig) -> None:
    """Make paths absolute, in place, so that a run resumes from any working directory.

    A path is looked up from the working directory, then among the files of the project. What does
    not exist stays: it may be a name, as the base's on the Hub.
    """
    for name in list(node):
        value = node[name]
        if isinstance(value, DictConfig):
            resolve_paths(value)
        elif name == "base_checkpoint" and value:
            node[name] = str(locate_base(value).absolute())
        elif name in PATHS and isinstance(value, str) and (place := locate(value)).exists():
            if name == "ckpt_path" and place.is_dir():
                place = weights_in(place) or place
            node[name] = str(place.absolute())


def base_parts(model: str) -> list[DictConfig]:
    """Return the configuration for learning a word on a base, in parts to merge.

    The first part is that of the base's family, the second has the base's own sizes. `model` is a
    file, a folder of diffusers or a Hub name; UserError for one that is not there or not supported.
    """
    from ldm.checkpoint.loading import find_base  # imports torch
    from ldm.checkpoint.tables import FAMILIES

    base = find_base(model)
    if base.path.parent.resolve() == locate(MINIATURE).resolve():
        finetune = MINIATURE_CONFIG
    elif not base.family:
        raise UserError(f"{base.path}: {base.what}, which names no text encoder: give --base YAML")
    else:
        finetune = FAMILIES[base.family].finetune
    log.info("%s: %s; configuration %s", base.path, base.what, finetune)
    whole = read_yaml(locate(finetune))
    params = base.config.model.params
    levels = len(params.first_stage_config.params.ddconfig.ch_mult)
    size = params.image_size * 2 ** (levels - 1)
    sets = {
        name: {"params": {"size": size}}
        for name, part in whole.data.params.items()
        if isinstance(part, DictConfig) and OmegaConf.select(part, "params.size") is not None
    }
    own: dict[str, Any] = {name: params[name] for name in OF_THE_BASE if name in params}
    return [whole, OmegaConf.create({"model": {"params": own}, "data": {"params": sets}})]


@_fitting()
def merge(options: argparse.Namespace, stored: Sequence[Path] = ()) -> DictConfig:
    """Return the merged and resolved mapping of a run; UserError for what does not fit together.

    `stored` is the configuration that a resumed run stored.
    """
    paths = [*stored, *(locate(path) for path in options.base)]
    first = base_parts(options.actual_resume) if options.actual_resume and not paths else []
    paths += [find_variant(name).path for name in options.variant]
    if not paths and not first:
        raise UserError("no configuration: give --model MODEL, --base YAML or --resume LOGFOLDER")
    merged = merge_files(paths, options.overrides, first)
    apply_flags(merged, options)
    OmegaConf.resolve(merged)
    if missing := sorted(OmegaConf.missing_keys(merged)):
        raise UserError(f"the configuration leaves {missing[0]} open (???): give {missing[0]}=")
    resolve_paths(merged)
    return merged
