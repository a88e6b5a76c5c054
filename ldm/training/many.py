"""Independent words in one run: `main.py --data_root A B C --init_word cat dog cup`.

There is one frozen model, and one batch with the rows of all words. In a text each word has a token
of its own that no caption uses, so a row's gradient reaches only its own word. The loss is the sum
over the words, and AdamW moves each number by its own gradient. So each word is equal to that of a
run of its own, up to the order of floating-point sums. The log folder of the run has a folder for
each word.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from omegaconf import DictConfig, OmegaConf

from ldm.training.checks import check_captions_early, check_keys, only_errors
from ldm.training.config import RunConfig, stage_of
from ldm.training.merge import WORDS
from ldm.training.run import build_data, run, user_errors
from ldm.training.words import SETS
from ldm.util import UserError, instantiate_from_config
from ldm.words.tokens import TextEmbedder, placeholder_id

log = logging.getLogger(__name__)

TARGET = "ldm.data.many.ManyConcepts"
# Options that would make the words depend on each other, or on single images.
REFUSED = {
    "unfreeze_model": "model.params.unfreeze_model",
    "per_image_tokens": f"{WORDS}.params.per_image_tokens",
    "progressive_words": f"{WORDS}.params.progressive_words",
    "gradient clipping": "lightning.trainer.gradient_clip_val",
    "early stopping": "lightning.callbacks.early_stopping",
    "a second stage": "second_stage",
}


def learn_many(folders: Sequence[tuple[str, Callable[[], RunConfig]]]) -> int:
    """Learn a word for each folder; return the exit status.

    Each folder comes with a function that loads the configuration of its own run. A folder that
    cannot be used is reported and left out; the status is then 1. Raises UserError for what
    concerns all words, or where no folder can be used.
    """
    alone: dict[str, RunConfig] = {}
    captions: list[str] = []
    for root, load in folders:
        try:
            config = load()
            texts = _checked(config)
        except UserError as error:
            log.error(f"{root}: left out: {error}")
            continue
        wanted = Path(root).resolve().name
        names = (wanted, *(f"{wanted}-{number}" for number in range(2, len(alone) + 3)))
        name = next(name for name in names if name not in alone)
        alone[name] = config
        captions += texts
    if not alone:
        raise UserError("none of the folders of --data_root can be used")
    sections = joint_sections(alone, captions)
    first = next(iter(alone.values()))
    folder = first.folder.with_name(
        first.folder.name.replace(first.run.data_name, sections.run.data_name, 1)
    )
    config = stage_of(sections, folder, None, train=first.train, test=first.test)
    log.info(f"{len(alone)} words at once: {', '.join(alone)}")
    status, _ = run(config)
    return status or int(len(alone) < len(folders))


def ties(sections: DictConfig) -> list[str]:
    """Return what would make the words of a run depend on each other; empty if nothing does.

    `sections` is the configuration of one word's run.
    """
    return [name for name, key in REFUSED.items() if OmegaConf.select(sections, key)]


def _checked(config: RunConfig) -> list[str]:
    """Check the configuration of one word's own run; return captions without the placeholder."""
    for name in ties(config.sections):
        raise UserError(f"several words at once go without {name}: {REFUSED[name]}")
    placeholders = OmegaConf.select(config.sections, f"{WORDS}.params.placeholder_strings") or "*"
    if len(placeholders) != 1 or config.batch.devices != 1:
        raise UserError("several words at once need one placeholder and one device")
    data = build_data(config)
    with user_errors("model"):
        check_keys(config, data.datasets)
        check_captions_early(config, data.datasets)
    texts = [text for dataset in data.datasets.values() for text in dataset.texts()]
    return [text.replace(placeholders[0], " ") for text in texts]


def stand_ins(embedder: TextEmbedder, first: str, captions: Sequence[str], count: int) -> list[str]:
    """Return `count` words of one token each that no caption holds; UserError for too few of them.

    `first`, the words' own placeholder, is the first of them; the captions have no placeholders.
    """
    used = {token for text in set(captions) for token in embedder.word_ids(text)}
    vocabulary = sorted(embedder.tokenizer.get_vocab(), key=len)
    found: dict[str, int] = {}
    with only_errors("ldm.words"):
        for word in (first, *(token.removesuffix("</w>") for token in vocabulary)):
            if len(found) == count:
                break
            try:
                token = placeholder_id(embedder, word, found)
            except UserError:
                continue
            if token not in used and token < embedder.vocab_size:
                found[word] = token
    if len(found) < count:
        raise UserError(f"the vocabulary has tokens for {len(found)} words at once, not {count}")
    return list(found)


def joint_sections(alone: dict[str, RunConfig], captions: Sequence[str]) -> DictConfig:
    """Return the sections of the run that learns the words of several runs.

    `alone` has their configurations by the name of the word's folder, alike but for images and
    word; `captions` are those of all of them, without placeholders.
    """
    first, count = next(iter(alone.values())), len(alone)
    sections = first.editable()
    words = OmegaConf.select(sections, WORDS).params
    own = (words.get("placeholder_strings") or ["*"])[0]
    with torch.device("meta"):
        embedder = instantiate_from_config(sections.model.params.cond_stage_config)
    tokens = stand_ins(embedder, own, captions, count)
    inits = [
        OmegaConf.select(c.sections, WORDS).params.initializer_words[0] for c in alone.values()
    ]
    words.placeholder_strings, words.initializer_words = tokens, inits
    params, size = sections.data.params, first.batch.size
    for name in ("test", "predict"):
        params.pop(name, None)
    for split in SETS:
        if not params.get(split):
            continue
        concepts = {}
        for (name, config), token in zip(alone.items(), tokens, strict=True):
            concepts[name] = config.editable().data.params[split]
            concepts[name].params.placeholder_token = token
        params[split] = {"target": TARGET, "params": {"concepts": concepts, "block": size}}
    params.batch_size = size * count
    if params.get("validation_samples"):
        params.validation_samples *= count
    if sections.lightning.get("images_per_step"):
        sections.lightning.images_per_step *= count
    sections.model.params.independent_words = count
    if first.run.scale_lr:  # the rate is scaled by all images of a step
        sections.model.base_learning_rate /= count
    sections.run.data_name = f"{count}-words"
    sections.run.placeholder = own
    return sections
