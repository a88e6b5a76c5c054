"""CLIP as the paper scores with it: ViT-B/32 through `transformers`, prepared on the device.

Scores equal those of `transformers`' own processor and model: the pixels are the same bit for bit
(`ldm.evaluation.preprocess`), the weights and the arithmetic are its own.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from ldm.evaluation.preprocess import Preprocess
from ldm.util import UserError

if TYPE_CHECKING:
    from transformers import CLIPModel, CLIPTokenizer

MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
# Images embedded at a time; 256 of 256 pixels take 0.4 GB in the resize's double precision.
BATCH = {"cpu": 16, "cuda": 256, "mps": 64}

T = TypeVar("T")


def image_size(model: CLIPModel) -> int:
    """Return the side of the images that a model reads."""
    size: int = getattr(model.config.vision_config, "image_size")  # noqa: B009 - mypy sees a dict
    return size


def batches(items: Sequence[T], device: torch.device) -> Iterator[Sequence[T]]:
    """Cut a sequence into pieces of as many as a device embeds at a time."""
    size = BATCH.get(device.type, BATCH["cpu"])
    return (items[start : start + size] for start in range(0, len(items), size))


def load_pretrained(kind: Any, name: str | Path, device: str, **options: Any) -> Any:
    """Load a `transformers` model in float32, frozen, in evaluation mode.

    Args:
        kind: the model's class.
        name: a folder, or a model's name on the Hugging Face hub.
        device: where to put it.
        options: further arguments of the class.

    Raises:
        OSError: as `transformers` does, where the files are missing and cannot be fetched.
        UserError: the weights are damaged, or lack some that the model needs.
    """
    from safetensors import SafetensorError

    try:
        model, found = kind.from_pretrained(
            str(name), dtype=torch.float32, output_loading_info=True, **options
        )
    except (SafetensorError, RuntimeError) as error:
        line = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(f"the weights of {name} cannot be read: {line}") from error
    missing = sorted(found["missing_keys"])
    if missing:  # transformers would score with random numbers in their place
        raise UserError(f"the weights of {name} lack {len(missing)} entries, {missing[0]} first")
    return frozen(model.to(device))


def frozen(model: nn.Module) -> Any:
    """Return a model in evaluation mode, without gradients."""
    return model.eval().requires_grad_(False)


class ClipExtractor:
    """Embeds images and texts by a CLIP of `transformers`; build it with `ClipExtractor.load`.

    Args:
        model: any CLIP that normalises images as OpenAI's do (LAION's too).
        tokenizer: of the same folder.

    Raises:
        UserError: the tokenizer is not the model's: `transformers` makes an empty one where its
            files are missing.
    """

    def __init__(self, model: CLIPModel, tokenizer: CLIPTokenizer) -> None:
        wanted = getattr(model.config.text_config, "vocab_size")  # noqa: B009 - mypy sees a dict
        if len(tokenizer) != wanted:
            raise UserError(
                f"the tokenizer {tokenizer.name_or_path!r} knows {len(tokenizer)} tokens and the "
                f"model {wanted}: put the model's own tokenizer files beside its weights"
            )
        self.model: CLIPModel = frozen(model)
        self.tokenizer = tokenizer
        side = image_size(model)
        self.preprocess = Preprocess(side, side, MEAN, STD)

    @classmethod
    def load(cls, name: str | Path, device: str = "cpu", local: bool = False) -> ClipExtractor:
        """Load a CLIP from a folder or by its name on the hub.

        Arguments and errors as `load_pretrained`'s; `local` keeps to what is on this machine.
        """
        from transformers import CLIPModel, CLIPTokenizer

        model = load_pretrained(CLIPModel, name, device, local_files_only=local)
        return cls(model, CLIPTokenizer.from_pretrained(str(name), local_files_only=local))

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        weight: Tensor = self.model.text_projection.weight
        return weight.device

    @torch.no_grad()
    def image_features(self, images: Sequence[Image.Image]) -> Tensor:
        """Embed images of any size: unit vectors [n, d] on the CPU."""
        found = []
        for batch in batches(images, self.device):
            pixels = self.preprocess.pictures(batch, self.device)
            pooled = self.model.vision_model(pixel_values=pixels).pooler_output
            found.append(F.normalize(self.model.visual_projection(pooled), dim=-1).cpu())
        return torch.cat(found)

    @torch.no_grad()
    def text_features(self, texts: Sequence[str]) -> Tensor:
        """Embed texts, cut at the model's length (77 tokens): unit vectors [n, d] on the CPU."""
        found = []
        longest = getattr(self.model.config.text_config, "max_position_embeddings")  # noqa: B009
        for batch in batches(texts, self.device):
            tokens = self.tokenizer(
                list(batch), padding=True, truncation=True, max_length=longest, return_tensors="pt"
            ).to(self.device)
            pooled = self.model.text_model(
                input_ids=tokens["input_ids"], attention_mask=tokens["attention_mask"]
            ).pooler_output
            found.append(F.normalize(self.model.text_projection(pooled), dim=-1).cpu())
        return torch.cat(found)
