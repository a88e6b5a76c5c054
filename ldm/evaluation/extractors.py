"""Which extractor scores: CLIP or DINO from a folder or the hub, or the miniature's judge."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from torch import nn

from ldm.evaluation.evaluate import ImageExtractor
from ldm.evaluation.similarity import FeatureExtractor
from ldm.util import UserError

T = TypeVar("T")


@dataclass(frozen=True)
class Kind:
    """A kind of model that scores.

    Attributes:
        model_type: what `config.json` calls it.
        published: the one to use, on the Hugging Face hub.
        described: what to ask for, in words.
        otherwise: what else there is to do without it.
    """

    model_type: str
    published: str
    described: str
    otherwise: str


CLIP = Kind(
    "clip",
    "openai/clip-vit-base-patch32",  # the paper's
    "a CLIP",
    "in the miniature score with --extractor models/miniature/judge",
)
DINO = Kind("vit", "facebook/dino-vits16", "a ViT such as DINO", "leave --dino out")


def default_extractor(weights: Path) -> str:
    """Return the extractor for a model: the judge beside its weights, or else the paper's CLIP."""
    judge = weights.parent / "judge"
    return str(judge) if (judge / "config.json").is_file() else CLIP.published


def find_extractor(name: str | Path, device: str = "cpu") -> FeatureExtractor:
    """Load what embeds images and texts.

    Args:
        name: a folder with a CLIP of `transformers` or the miniature's judge, or a CLIP's name on
            the hub.
        device: where to run it.

    Raises:
        UserError: it is not there and cannot be fetched (says how to get it), is damaged, or is no
            CLIP.
    """

    def load(local: bool) -> FeatureExtractor:
        if _reads_wordpieces(Path(name)):
            from ldm.miniature.clip import Judge

            return Judge.load(name, device)
        from ldm.evaluation.clip import ClipExtractor

        return ClipExtractor.load(name, device, local)

    return _load(CLIP, name, load)


def find_dino(name: str | Path, device: str = "cpu") -> ImageExtractor:
    """Load a DINO; arguments and errors as `find_extractor`'s."""

    def load(local: bool) -> ImageExtractor:
        from ldm.evaluation.dino import DinoExtractor

        return DinoExtractor.load(name, device, local)

    return _load(DINO, name, load)


def extractor_facts(name: str | Path, extractor: Any) -> dict[str, str]:
    """Return what decides an extractor's scores: its name, class and the hash of its weights."""
    folder = Path(name)
    return {
        "name": folder.name if folder.is_dir() else str(name),
        "kind": type(extractor).__name__,
        "hash": weights_hash(extractor.model),
    }


def weights_hash(model: nn.Module) -> str:
    """Return 16 hexadecimal digits of every weight's name, shape and value."""
    digest = hashlib.sha256()
    for name, weight in sorted(model.state_dict().items()):
        digest.update(f"{name} {tuple(weight.shape)} {weight.dtype}".encode())
        digest.update(weight.cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


def _load(kind: Kind, name: str | Path, load: Callable[[bool], T]) -> T:
    """Check that a model is of a kind, load it, and say in one line what is wrong with it."""
    from transformers import AutoConfig
    from transformers.utils import logging

    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    local = Path(name).is_dir() or not _hub_answers()
    try:
        found = AutoConfig.from_pretrained(str(name), local_files_only=local).model_type
        if found != kind.model_type:
            raise UserError(f"extractor {name} is a {found!r} model: give {kind.described}")
        return load(local)
    except UserError:
        raise
    except (OSError, ValueError, TypeError) as error:
        raise _missing(kind, name) from error


def _hub_answers() -> bool:
    """Tell whether the hub can be reached: its client would try for half a minute, and say so."""
    from huggingface_hub import constants, get_session

    if constants.HF_HUB_OFFLINE:
        return False
    try:
        get_session().head(constants.ENDPOINT, timeout=5)
    except Exception:  # of whatever library the client is made with, which has changed twice
        return False
    return True


def _missing(kind: Kind, name: str | Path) -> UserError:
    if Path(name).is_dir():
        return UserError(
            f"extractor {name}: its config.json, weights or tokenizer are missing or damaged; get "
            f"{kind.described} by `hf download {kind.published} --local-dir FOLDER`"
        )
    return UserError(
        f"extractor {name} is not on this machine and cannot be fetched: run `hf download "
        f"{kind.published}` where there is a network, or give its folder; or {kind.otherwise}"
    )


def _reads_wordpieces(folder: Path) -> bool:
    """Tell the judge, which reads the miniature's word pieces, from CLIPs with byte pairs."""
    config = folder / "tokenizer_config.json"
    if not config.is_file():
        return False
    kind = json.loads(config.read_text(encoding="utf-8")).get("tokenizer_class", "")
    return str(kind).startswith("BertTokenizer")
