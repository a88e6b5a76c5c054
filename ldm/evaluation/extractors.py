"""Find a feature extractor: a CLIP or a DINO from a folder or the Hugging Face Hub."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, TypeVar

import torch.nn.functional as F
from torch import Tensor, nn

from ldm.evaluation.clip import (
    SCORER,
    ClipExtractor,
    ImageEmbedder,
    frozen,
    load_pretrained,
    processor,
)
from ldm.util import UserError

if TYPE_CHECKING:
    from transformers import ViTModel

# A model may come with two small CLIPs, in folders beside the weights. The selector chooses steps
# and images; the scorer reports. They share no training image.
SELECTOR = "selector"
Kind = TypeVar("Kind", bound=ImageEmbedder)
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # ImageNet's


class DinoExtractor(ImageEmbedder):
    """Embeds images by a ViT's class token; build it with `DinoExtractor.load`.

    The cosines depend on the object itself more than on its class. Their mean is the score of Ruiz
    et al. (DreamBooth, arXiv 2208.12242, section 4.2) with DINO's ViT-S/16 (Caron et al., arXiv
    2104.14294). Images are prepared as in DINO's own evaluation: the shorter side is resized to 256
    pixels and the middle 224 are cut out.
    """

    model_type = "vit"
    published = "facebook/dino-vits16"
    described = "a ViT such as DINO"
    otherwise = "leave --dino out"

    def __init__(self, model: ViTModel) -> None:
        self.model = frozen(model)
        side: Any = model.config.image_size
        self.prepare = processor(
            side * 256 // 224, side, image_mean=list(MEAN), image_std=list(STD)
        )

    @classmethod
    def load(cls, name: str | Path, device: str = "cpu", local: bool = False) -> Self:
        from transformers import ViTModel

        # The pooler is no part of DINO, and its files do not hold one.
        options = {"add_pooling_layer": False, "local_files_only": local}
        return cls(load_pretrained(ViTModel, name, device, **options))

    def embed(self, pixels: Tensor) -> Tensor:
        states = self.model(pixel_values=pixels.to(self.device)).last_hidden_state  # b n d
        return F.normalize(states[:, 0], dim=-1).cpu()  # the class token is first


def scorer_beside(weights: Path, name: str = SCORER) -> Path | None:
    """Return the folder of a CLIP that comes with a model's weights, or None."""
    folder = weights.parent / name
    return folder if (folder / "config.json").is_file() else None


def default_extractor(weights: Path) -> str:
    """Return the extractor for a model: the CLIP beside its weights, or else the paper's."""
    return str(scorer_beside(weights) or ClipExtractor.published)


def default_selector(weights: Path) -> str:
    """Return the extractor that chooses among steps and images: the selector beside the weights.

    Without one it is the default extractor.
    """
    return str(scorer_beside(weights, SELECTOR) or default_extractor(weights))


def find_extractor(name: str | Path, device: str = "cpu") -> ClipExtractor:
    """Load what embeds images and texts: a CLIP of `transformers` in a folder, or on the hub.

    Raises UserError where it is not there and cannot be fetched (says how to get it), is damaged,
    or is no CLIP.
    """
    return _load(ClipExtractor, name, device)


def find_dino(name: str | Path, device: str = "cpu") -> DinoExtractor:
    """Load a DINO; arguments and errors as `find_extractor`'s."""
    return _load(DinoExtractor, name, device)


def extractor_facts(name: str | Path, extractor: Any) -> dict[str, str]:
    """Return the facts that decide an extractor's scores: name, class and hash of the weights."""
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


def _load(kind: type[Kind], name: str | Path, device: str) -> Kind:
    """Check that a model is of a kind, load it, and say in one line what is wrong with it."""
    from transformers import AutoConfig
    from transformers.utils import logging

    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    local = Path(name).is_dir() or not _hub_answers()
    try:
        found = AutoConfig.from_pretrained(str(name), local_files_only=local).model_type
        if found != kind.model_type:
            raise UserError(f"extractor {name} is a {found!r} model: give {kind.described}")
        return kind.load(name, device, local)
    except UserError:
        raise
    except (OSError, ValueError, TypeError) as error:
        raise _missing(kind, name) from error


def _hub_answers() -> bool:
    """Tell whether the hub can be reached. Its own client would try for half a minute."""
    from huggingface_hub import constants, get_session

    if constants.HF_HUB_OFFLINE:
        return False
    try:
        get_session().head(constants.ENDPOINT, timeout=5)
    except Exception:  # its type depends on the client's HTTP library
        return False
    return True


def _missing(kind: type[ImageEmbedder], name: str | Path) -> UserError:
    if Path(name).is_dir():
        return UserError(
            f"extractor {name}: its config.json, weights or tokenizer are missing or damaged; get "
            f"{kind.described} by `hf download {kind.published} --local-dir FOLDER`"
        )
    return UserError(
        f"extractor {name} is not on this machine and cannot be fetched: run `hf download "
        f"{kind.published}` where there is a network, or give its folder; or {kind.otherwise}"
    )
