"""The forms in which tools store learned words, as a table. The first row that fits reads the file.

docs/embedding-files.md describes the layouts. The error for a file without a readable word says
what the file is: a LoRA, a model's weights, a word for FLUX or Stable Diffusion 3.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ldm.util import UserError

# The header of every file that this project writes has this key.
HEADER_KEY = "word_file"
# Facts about the training that AUTOMATIC1111 stores beside the tensors.
AUTOMATIC_KEYS = ("name", "step", "sd_checkpoint", "sd_checkpoint_name")
# Keys of tensors without the word's name: of kohya and invoke-training, and OneTrainer's spelling.
NAMELESS_KEYS = ("emb_params", "emp_params")
FIRST_KEYS, SECOND_KEYS = ("clip_l", "text_encoders_0"), ("clip_g", "text_encoders_1")
T5_KEYS = ("t5", "t5xxl", "text_encoders_2")
BUNDLE = re.compile(
    r"bundle_emb\.(.+?)\.(clip_l|clip_g|t5|t5xxl|emb_params|emp_params|string_to_param\.\*)(_out)?"
)
LORA = r"\.lora_|lora_unet_|lora_te|\.hada_|\.lokr_|\.alpha$|^lycoris_|lora_[AB]\b"
XTI = re.compile(r"(IN|OUT)\d\d|MID")
MODEL = (
    r"^(model\.diffusion_model|first_stage_model|cond_stage_model|text_model|"
    r"(down|up|mid)_blocks?|conditioner|encoder|decoder)\."
)
OF_T5 = "is a word for FLUX or Stable Diffusion 3 (t5): no model here reads it"
OF_XTI = (
    "is a word of kohya's XTI, with vectors for each layer of the U-Net: no model here reads it"
)

# Families of text encoders that a form can state.
CLIP, SDXL, LDM_BERT = "clip", "sdxl", "ldm-bert"
UNKNOWN = ""  # width 1280, and the file does not state the family
# Values of vocabularies and of words that work are far below this limit.
LARGEST_VALUE = 1e4
# Limit of the numbers in one word. It is above 77 vectors of width 4096.
LARGEST_WORD = 2**20


@dataclass(frozen=True)
class WordFile:
    """The content of an embedding file.

    Attributes:
        words: placeholder → float32 vectors [k, d] on the CPU.
        metadata: what the file states about itself, as strings; may be empty.
        token_ids: placeholder → token id, for the words whose id the file states.
        second: placeholder → float32 vectors [k, 1280] for SDXL's second text encoder; empty for
            every other model. It has the placeholders of `words`.
        form: the name of the form in which the file stores its words.
    """

    words: dict[str, Tensor]
    metadata: dict[str, str] = field(default_factory=dict)
    token_ids: dict[str, int] = field(default_factory=dict)
    second: dict[str, Tensor] = field(default_factory=dict)
    form: str = ""


@dataclass(frozen=True)
class Source:
    """The file of a content, its header, and the name for a word that the file does not name."""

    path: Path
    metadata: dict[str, str]
    name: str

    def fail(self, problem: str) -> UserError:
        return UserError(f"{str(self.path)!r} {problem}")


Fits = Callable[[set[str], dict[str, str]], bool]
Read = Callable[[Mapping[str, Any], Source], WordFile]


def interpret(raw: Any, metadata: Mapping[str, str], path: Path, given: str | None) -> WordFile:
    """Return the words of a file's content. Raises UserError, in one line, if it holds none.

    `raw` and `metadata` are the results of `ldm.words.containers.read_container`. `given` is the
    name for a word that the content does not name. By default this is the name in the header, or
    the file's name without suffix.
    """
    source = Source(path, dict(metadata), given or _stated_name(metadata) or path.stem)
    if isinstance(raw, Tensor):
        raw = {NAMELESS_KEYS[0]: raw}
    if isinstance(raw, list) and raw and all(isinstance(part, Mapping) for part in raw):
        file = _joined([interpret(part, metadata, path, given) for part in raw], source)
        return replace(file, form="list of dictionaries")
    if not isinstance(raw, Mapping):
        raise source.fail(f"is not an embedding file: it holds a {type(raw).__name__}")
    content = {str(key): value for key, value in raw.items()}
    if not content:
        raise source.fail("holds no words")
    name, read = next((n, read) for n, fits, read in FORMS if fits(set(content), source.metadata))
    file = read(content, source)
    if any(v.shape[-1] == 1280 for v in file.words.values()):
        # A copy that this project writes must not be read as a word of LDM-BERT.
        file = replace(file, metadata={"encoder_family": UNKNOWN, **file.metadata})
    return replace(file, form=file.form or name)


def _stated_name(metadata: Mapping[str, str]) -> str | None:
    """Return the name that a header gives its only word: this project's list, or the key `name`."""
    try:
        listed = json.loads(metadata.get("placeholders", "null"))
    except ValueError:
        listed = None
    if isinstance(listed, list) and len(listed) == 1 and isinstance(listed[0], str):
        return listed[0] or None
    return metadata.get("name") or None


def _joined(files: Iterable[WordFile], source: Source) -> WordFile:
    """Return the words of several files as one. Raises UserError if two have the same name."""
    words: dict[str, Tensor] = {}
    second: dict[str, Tensor] = {}
    ids: dict[str, int] = {}
    facts = dict(source.metadata)
    for file in files:
        twice = set(words) & set(file.words)
        if twice:
            raise source.fail(f"holds two words of one name: {min(twice)!r}")
        words |= file.words
        second |= file.second
        ids |= file.token_ids
        facts |= file.metadata
    if second and set(second) != set(words):
        raise source.fail("holds words for different models: only some have clip_g")
    return WordFile(words, facts, ids, second)


def _read_original(raw: Mapping[str, Any], source: Source) -> WordFile:
    """Read the original's and AUTOMATIC1111's form: `string_to_param`, `string_to_token`."""
    tensors = _parameters(raw["string_to_param"], source)
    facts = raw.get("metadata")
    form = "AUTOMATIC1111" if "name" in raw else "original"
    if not isinstance(facts, Mapping):
        # AUTOMATIC1111 uses the file's name in prompts. Here the word keeps its key, mostly "*".
        facts = {k: raw[k] for k in AUTOMATIC_KEYS if raw.get(k) is not None}
    elif form == "AUTOMATIC1111" and set(tensors) == {"*"}:
        # This project wrote the file for AUTOMATIC1111, which needs the key "*". The facts have
        # the word's own name.
        stated = _stated_name({str(k): str(v) for k, v in facts.items()})
        tensors = {stated or "*": tensors["*"]}
    words = {p: _vectors(value, p, source) for p, value in tensors.items()}
    stored = raw.get("string_to_param_clip_g")
    others = _parameters(stored, source) if isinstance(stored, Mapping) else {}
    second = {p: _vectors(value, p, source) for p, value in others.items() if p in words}
    metadata = {str(k): str(v) for k, v in facts.items()}
    if any(v.shape[-1] == 1280 for v in words.values()):
        # No tool stores words of SDXL's encoders in this form.
        metadata.setdefault("encoder_family", LDM_BERT)
    ids = {p: i for p, i in _token_ids(raw.get("string_to_token")).items() if p in words}
    if not words:
        raise source.fail("holds no words")
    return WordFile(words, metadata, ids, second, form)


def _parameters(params: Any, source: Source) -> dict[str, Any]:
    # ParameterDict's methods need `_keys`, which files of old torch versions lack.
    if isinstance(params, nn.ParameterDict):
        params = params.__dict__.get("_parameters")
    if not isinstance(params, Mapping):
        raise source.fail("holds no tensors in 'string_to_param'")
    return {str(p): value for p, value in params.items()}


def _token_ids(stored: Any) -> dict[str, int]:
    """Return the token ids that a file states. Other values are ignored: an id is only a hint."""
    items = stored.items() if isinstance(stored, Mapping) else ()
    numbers = ((p, i.item() if isinstance(i, Tensor) and i.numel() == 1 else i) for p, i in items)
    return {str(p): i for p, i in numbers if isinstance(i, int)}


def _read_bundle(raw: Mapping[str, Any], source: Source) -> WordFile:
    """Read the words in a LoRA's file, `bundle_emb.NAME.KEY`. The LoRA's weights are ignored."""
    bundles: dict[str, dict[str, Any]] = {}
    for key, value in raw.items():
        found = BUNDLE.fullmatch(key)
        if found and not found[3]:
            own = NAMELESS_KEYS[0] if found[2].startswith("string_to_param") else found[2]
            bundles.setdefault(found[1], {})[own] = value
    if not bundles:
        raise source.fail("holds a word in an unknown form (bundle_emb)")
    facts = {key: v for key, v in source.metadata.items() if key not in ("name", "placeholders")}
    parts = [interpret(bundle, facts, source.path, name) for name, bundle in bundles.items()]
    return _joined(parts, replace(source, metadata=facts))


def _read_encoders(raw: Mapping[str, Any], source: Source) -> WordFile:
    """Read one tensor for each text encoder of Stable Diffusion 1 (clip_l) or SDXL."""
    first = next((raw[key] for key in FIRST_KEYS if key in raw), None)
    other = next((raw[key] for key in SECOND_KEYS if key in raw), None)
    if first is None:
        raise source.fail(
            "holds only vectors for SDXL's second text encoder (clip_g): clip_l is missing"
        )
    name = source.name
    words = {name: _vectors(first, name, source)}
    if other is None:
        return WordFile(words, {"encoder_family": CLIP, **source.metadata})
    second = {name: _vectors(other, name, source)}
    if second[name].shape[-1] > 1280:
        raise source.fail(OF_T5)
    if len(second[name]) != len(words[name]):
        raise source.fail(
            f"has {len(words[name])} vectors for SDXL's first text encoder and "
            f"{len(second[name])} for its second"
        )
    return WordFile(words, {**source.metadata, "encoder_family": SDXL}, second=second)


def _read_nameless(raw: Mapping[str, Any], source: Source) -> WordFile:
    """Read a tensor without a name. OneTrainer's output embedding (`_out`) is ignored."""
    value = next(raw[key] for key in NAMELESS_KEYS if key in raw)
    return WordFile({source.name: _vectors(value, source.name, source)}, source.metadata)


def _read_pivotal(raw: Mapping[str, Any], source: Source) -> WordFile:
    """Read the words of lora's pivotal tuning. The metadata marks their keys with "<embed>"."""
    named = [key for key in raw if source.metadata.get(key) == "<embed>"]
    return _read_named({key: raw[key] for key in named}, source)


def _read_named(raw: Mapping[str, Any], source: Source) -> WordFile:
    """Read `{placeholder: tensor}`, the form of diffusers and of this project."""
    words = {p: _vectors(value, p, source) for p, value in raw.items()}
    facts = dict(source.metadata)
    # This project never writes only the second encoder's vectors of a word of SDXL.
    if HEADER_KEY in facts and any(v.shape[-1] == 1280 for v in words.values()):
        facts.setdefault("encoder_family", LDM_BERT)
    return WordFile(words, facts)


def _refuse(problem: str) -> Read:
    def read(raw: Mapping[str, Any], source: Source) -> WordFile:
        raise source.fail(f"{problem} (its first entry is {next(iter(raw))!r})")

    return read


def _any(pattern: str) -> Fits:
    return lambda keys, _: any(re.search(pattern, key) for key in keys)


def _has(*names: str) -> Fits:
    return lambda keys, _: not keys.isdisjoint(names)


# The name of a form; what tells by the keys of the content and the metadata whether they have this
# form; what reads the words, or raises UserError if the content holds none.
FORMS: tuple[tuple[str, Fits, Read], ...] = (
    ("original", _has("string_to_param"), _read_original),
    ("bundled in a LoRA", _any(r"^bundle_emb\."), _read_bundle),
    (
        "FLUX",
        lambda keys, facts: not keys.isdisjoint(T5_KEYS) and HEADER_KEY not in facts,
        _refuse(OF_T5),
    ),
    ("a tensor for each text encoder", _has(*FIRST_KEYS, *SECOND_KEYS), _read_encoders),
    ("nameless", _has(*NAMELESS_KEYS), _read_nameless),
    # This row stands before those that look at parts of names: a word here may have any name.
    ("ours", lambda _, facts: HEADER_KEY in facts, _read_named),
    (
        "lora pivotal tuning",
        lambda keys, facts: any(facts.get(key) == "<embed>" for key in keys),
        _read_pivotal,
    ),
    ("LoRA", _any(LORA), _refuse("is a LoRA, which changes a model's weights: it holds no word")),
    ("kohya XTI", lambda keys, _: all(XTI.fullmatch(key) for key in keys), _refuse(OF_XTI)),
    (
        "model",
        _any(MODEL),
        _refuse("holds a model's weights and no word; give a model as --ckpt_path"),
    ),
    ("diffusers", lambda *_: True, _read_named),
)


def _vectors(value: Any, placeholder: str, source: Source) -> Tensor:
    """Return a stored tensor [d] or [k, d] as float32 [k, d]."""
    if not isinstance(value, Tensor) or not value.is_floating_point():
        raise source.fail(f"is not an embedding file: {placeholder!r} is not a float tensor")
    if value.ndim not in (1, 2) or not 0 < value.numel() <= LARGEST_WORD:
        raise source.fail(
            f"is not an embedding file: {placeholder!r} has shape {tuple(value.shape)}, expected "
            "[vectors, width]"
        )
    vectors = value.detach().to(torch.float32).reshape(-1, value.shape[-1])
    if not vectors.isfinite().all():
        raise source.fail(f"is unusable: word {placeholder!r} holds infinite or undefined numbers")
    largest = vectors.abs().max().item()
    if largest > LARGEST_VALUE:
        raise source.fail(
            f"is unusable: word {placeholder!r} has values up to {largest:.3g}, above the limit of "
            f"{LARGEST_VALUE:g}; its training failed or the file is damaged"
        )
    return vectors.clone()
