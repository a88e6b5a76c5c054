"""The validator of a configuration: names, kinds, ranges and what goes together.

It reads no weights and no images. What depends on the data is in `ldm.training.checks`.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from omegaconf import DictConfig, ListConfig, OmegaConf
from pytorch_lightning.strategies import StrategyRegistry

from ldm.data.personalized_prior import CLASS_IMAGES, class_prompt_of
from ldm.models.autoencoder import Autoencoder
from ldm.modules.diffusionmodules.model import Decoder
from ldm.training.merge import WORDS, accepts, datasets
from ldm.training.variants import check_learned, check_variant
from ldm.util import UserError, get_obj_from_str, parameters, without_dropped
from ldm.words.directional import ALONE, DirectionalEmbeddingManager
from ldm.words.manager import EmbeddingManager

# Keys of the section `lightning`, and what they are.
LIGHTNING_KEYS = {
    "trainer": "options of Lightning's `Trainer`, below",
    "callbacks": "target and params of further callbacks, each under a name of its own",
    "modelcheckpoint": "`params.every_n_train_steps`: optimizer steps between two saves, 500",
    "logger": "target and params of a logger beside TensorBoard's and `metrics.csv`",
    "latent_cache": "how the images' posteriors are kept, below",
    "images_per_step": "images of an optimizer step; gradients of so many batches are accumulated",
    "find_unused_parameters": "whether DDP looks for unused weights; by default with several words",
}
# Parameters of the words that the model takes out before it builds them.
TAKEN_BY_MODEL = {"embedding_manager_ckpt"}
# Parameters that a parent adds.
GIVEN_BY_PARENT = {"embedder"}
# Annotations of parameters whose values are checked, and the types that serve.
KINDS: dict[str, tuple[type, ...]] = {
    "int": (int,),
    "float": (int, float),
    "bool": (bool,),
    "str": (str,),
    "Path": (str,),
    "Sequence": (Sequence,),
    "Mapping": (Mapping,),
}
# Adam moves each number of a word by about the learning rate in a step; the numbers lie below 1.
LARGEST_RATE = 1e3

ACCELERATORS = ("auto", "cpu", "gpu", "cuda", "mps")
PRECISIONS = (
    *("16", "16-mixed", "16-true", "bf16", "bf16-mixed", "bf16-true"),
    *("32", "32-true", "64", "64-true", "transformer-engine", "transformer-engine-float16"),
    *("fp16", "auto"),  # see ldm.training.memory
)
# Options of the trainer that are at least 1; in those of OPEN, -1 means no limit.
COUNTS = ("max_steps", "max_epochs", "accumulate_grad_batches", "num_nodes", "log_every_n_steps")
OPEN = ("max_steps", "max_epochs")
# Names and annotations of `lightning.latent_cache` and of what is read of `modelcheckpoint.params`.
CACHE = {"enabled": "bool", "folder": "str", "batch_size": "int"}
SAVING = {"every_n_train_steps": "int"}


def check_names(where: str, names: Iterable[Any], allowed: Iterable[str]) -> None:
    """Raise UserError for the first name that is not allowed; name the nearest that is."""
    allowed = list(allowed)
    for name in (str(n) for n in names):
        if name not in allowed:
            near, known = difflib.get_close_matches(name, allowed, 1), ", ".join(sorted(allowed))
            hint = f"did you mean {near[0]!r}?" if near else f"known are {known}"
            raise UserError(f"unknown configuration key {where}.{name}: {hint}")


def check_kind(where: str, value: Any, annotation: str) -> None:
    """Raise UserError if a value does not fit a plain annotation. None fits all."""
    names = [name.partition("[")[0] for name in annotation.split(" | ") if name != "None"]
    if value is None or not set(names) <= set(KINDS):
        return
    fits = isinstance(value, tuple(kind for name in names for kind in KINDS[name]))
    if isinstance(value, bool) and "bool" not in names:
        fits = False
    if not fits or (isinstance(value, str) and not {"str", "Path"} & set(names)):
        raise UserError(f"{where}: expected {' or '.join(names)}, got {value!r}")


def kinds_of(target: Any) -> dict[str, str]:
    """Return the annotation of each parameter of a class."""
    return {name: str(found.annotation) for name, found in parameters(target)[0].items()}


def check_values(where: str, values: Mapping[Any, Any], kinds: Mapping[str, str]) -> None:
    """Raise UserError for an unknown name, or a value of another type than its annotation."""
    check_names(where, values, kinds)
    for name, value in values.items():
        check_kind(f"{where}.{name}", value, kinds[str(name)])


def check_targets(config: Any, where: str, extra: tuple[str, ...] = ()) -> None:
    """Check every {target, params} in a tree: the target exists and takes each parameter.

    `where` is the dotted name of the node, for the error; `extra` are keys that it may have beside
    `target` and `params`.
    """
    if not isinstance(config, DictConfig):
        return
    if "target" not in config:
        for name in config:
            check_targets(config[name], f"{where}.{name!s}")
        return
    check_names(where, list(config), ("target", "params", *extra))
    params = config.get("params") or {}
    target = get_obj_from_str(config.target)
    if not callable(target) or not isinstance(params, Mapping):
        raise UserError(f"{where}: expected target, a class, and params, a mapping; got {config}")
    params = without_dropped(where, target, params)
    signature, complete = parameters(target)
    if complete:
        words = isinstance(target, type) and issubclass(target, EmbeddingManager)
        check_names(f"{where}.params", params, {*signature, *(TAKEN_BY_MODEL if words else ())})
    if isinstance(target, type) and issubclass(target, Autoencoder):
        networks = params.get("ddconfig")
        if isinstance(networks, Mapping):
            check_values(f"{where}.params.ddconfig", networks, kinds_of(Decoder))
    for name, parameter in signature.items():
        needed = parameter.default is parameter.empty and name not in GIVEN_BY_PARENT
        if needed and name not in (*params, "data_root"):
            raise UserError(f"the configuration lacks {where}.params.{name}, which has no default")
        if name in params:
            check_kind(f"{where}.params.{name}", params[name], str(parameter.annotation))
    for name in params:
        check_targets(params[name], f"{where}.params.{name!s}")


def check_sections(sections: DictConfig) -> None:
    """Check the merged sections of one stage; UserError names the entry, its value and a remedy."""
    if (facts := sections.get("variant")) is not None:
        check_learned(check_variant(facts, "the configuration"))
    lightning = sections.lightning
    check_targets(sections.model, "model", ("base_learning_rate",))
    check_targets(sections.data, "data")
    check_names("lightning", lightning, LIGHTNING_KEYS)
    check_targets(lightning.callbacks, "lightning.callbacks")
    if "target" in (lightning.get("logger") or ()) and "testtube" not in lightning.logger.target:
        check_targets(lightning.logger, "lightning.logger")
    check_values("lightning.latent_cache", lightning.latent_cache, CACHE)
    saving = OmegaConf.select(lightning, "modelcheckpoint.params") or {}
    every = {name: value for name, value in saving.items() if name in SAVING}
    check_values("lightning.modelcheckpoint.params", every, SAVING)
    _check_rates(sections.model)
    for name in ("model", "data", "lightning"):
        _check_finite(name, sections[name])
    _check_words(sections)
    _check_sizes(sections)
    _check_files(sections)
    if wants_class_images(sections):
        class_images_of(sections)


def _check_finite(where: str, value: Any) -> None:
    """Raise UserError for a number in a tree that is not finite; `where` is the tree's name."""
    if isinstance(value, DictConfig):
        for name in value:
            _check_finite(f"{where}.{name!s}", value[name])
    elif isinstance(value, ListConfig):
        for place, item in enumerate(value):
            _check_finite(f"{where}[{place}]", item)
    elif isinstance(value, float) and not math.isfinite(value):
        raise UserError(f"{where}: expected a finite number, got {value:g}")


def _check_rates(model: DictConfig) -> None:
    """Raise UserError for a learning rate that is missing or out of range."""
    if "base_learning_rate" not in model:
        raise UserError("the configuration has no model.base_learning_rate")
    unfrozen = bool(model.params.get("unfreeze_model"))
    for name, least in (("base_learning_rate", not unfrozen), ("model_lr", 0), ("text_lr", 0)):
        where = f"model.{name}" if name in model else f"model.params.{name}"
        rate = model.get(name) if name in model else model.params.get(name)
        check_kind(where, rate, "float")
        if rate is None:
            continue
        if not (math.isfinite(rate) and 0 <= rate <= LARGEST_RATE):
            raise UserError(f"{where}: expected 0 to {LARGEST_RATE:g}, got {rate:g}")
        if least and rate == 0:
            raise UserError(f"{where} is 0: nothing would be learned")


def _check_words(sections: DictConfig) -> None:
    """Raise UserError if the words fit neither the model nor the data sets."""
    personal = OmegaConf.select(sections, WORDS)
    target = get_obj_from_str(personal.target) if personal else None
    directional = isinstance(target, type) and issubclass(target, DirectionalEmbeddingManager)
    if directional and sections.model.params.get("unfreeze_model"):
        raise UserError(ALONE)
    path = f"{WORDS}.params.per_image_tokens"
    learned = bool(OmegaConf.select(sections, path, default=False))
    for name, dataset in datasets(sections.data):
        if not accepts(dataset, "per_image_tokens"):
            continue
        own = f"data.params.{name}.params.per_image_tokens"
        named = bool(dataset.params.get("per_image_tokens"))
        if named and not learned:
            raise UserError(f"{own} is true: set {path} alike")
        if learned and not named and name == "train":
            raise UserError(f"{path} is true, but no caption would name these words: set {own}")


def _check_sizes(sections: DictConfig) -> None:
    """Raise UserError for images that the networks cannot take, and for bad preview settings."""
    select = OmegaConf.select
    levels = select(sections, "model.params.first_stage_config.params.ddconfig.ch_mult")
    deeper = select(sections, "model.params.unet_config.params.channel_mult")
    halvings = len(levels or [1]) - 1 + (len(deeper or [1]) - 1)
    for name, dataset in datasets(sections.data):
        size = dataset.params.get("size")
        if levels and isinstance(size, int) and (size < 1 or size % 2**halvings):
            raise UserError(
                f"data.params.{name}.params.size: expected a multiple of {2**halvings}, by which "
                f"the networks divide it, got {size}"
            )
    most = min(1000, sections.model.params.get("timesteps", 1000))
    for key in ("ddim_steps", "log_images_kwargs.ddim_steps"):
        where = f"lightning.callbacks.image_logger.params.{key}"
        steps = select(sections, where)
        check_kind(where, steps, "int")
        if steps is not None and not 1 <= steps <= most:
            raise UserError(f"{where}: expected 1 to {most}, got {steps}")


def _check_files(sections: DictConfig) -> None:
    """Raise UserError where no base or no image folder is named."""
    run, params = sections.run, sections.model.params
    for name, dataset in datasets(sections.data):
        if accepts(dataset, "data_root") and not dataset.params.get("data_root"):
            raise UserError(f"no images for data.params.{name}: give their folder, --data_root DIR")
    base = run.get("base_checkpoint") or params.get("ckpt_path") or run.get("random_base")
    if params.get("personalization_config") and not base:
        raise UserError(
            "a word is taught to a trained model: name it with --model MODEL "
            "(run.random_base=true goes without)"
        )


def wants_class_images(sections: DictConfig) -> bool:
    """Tell whether the training set needs class images that no folder holds."""
    train = sections.data.params.get("train")
    if not train or not accepts(train, "class_pictures"):
        return False
    return not (train.get("params") or {}).get("class_root")


def class_images_of(sections: DictConfig) -> tuple[str, int]:
    """Return the prompt and the number of the class images; UserError if there can be none."""
    if not sections.run.get("base_checkpoint"):
        raise UserError(
            "class images are generated by the base model: name it with --model, "
            "or give images as class_root"
        )
    params = sections.data.params.train.params
    prompt = params.get("class_prompt") or class_prompt_of(params.get("first_word"))
    count = params.get("class_pictures", CLASS_IMAGES)
    if count < 1:
        raise UserError(f"class_pictures must be at least 1, got {count}")
    return prompt, count


def check_trainer(settings: Mapping[str, Any]) -> None:
    """Check options of the trainer, as `trainer_settings` returns them.

    Raises UserError naming the option, its value and what serves.
    """
    strategies = ("auto", *StrategyRegistry.available_strategies())
    choices = {"accelerator": ACCELERATORS, "precision": PRECISIONS, "strategy": strategies}
    for name, known in choices.items():
        value = settings.get(name)
        if value is not None and str(value) not in known:
            raise UserError(f"--{name} {value}: expected one of {', '.join(known)}")
    for name in COUNTS:
        value = settings.get(name)
        if value is None or (value == -1 and name in OPEN):
            continue
        if not isinstance(value, int) or value < 1:
            least = "a number of at least 1" + (", or -1 for no limit" if name in OPEN else "")
            raise UserError(f"--{name} {value}: expected {least}")
    clip = settings.get("gradient_clip_val")
    check_kind("lightning.trainer.gradient_clip_val", clip, "float")
    if clip is not None and not clip >= 0:
        raise UserError(f"lightning.trainer.gradient_clip_val: expected at least 0, got {clip:g}")
