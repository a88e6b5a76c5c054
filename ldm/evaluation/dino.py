"""DINO's similarity between images: it looks at the thing itself more than at its kind.

The score of Ruiz et al. (DreamBooth, arXiv 2208.12242, section 4.2): mean cosine between the
class tokens of DINO's ViT-S/16 (Caron et al., arXiv 2104.14294), images prepared as DINO's own
evaluation does: shorter side to 256, the middle 224 cut out.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from ldm.evaluation.clip import batches, frozen, load_pretrained
from ldm.evaluation.preprocess import Preprocess

if TYPE_CHECKING:
    from transformers import ViTModel

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # ImageNet's


class DinoExtractor:
    """Embeds images by a ViT's class token; build it with `DinoExtractor.load`."""

    def __init__(self, model: ViTModel) -> None:
        self.model: ViTModel = frozen(model)
        side: Any = model.config.image_size
        self.preprocess = Preprocess(side * 256 // 224, side, MEAN, STD)

    @classmethod
    def load(cls, name: str | Path, device: str = "cpu", local: bool = False) -> DinoExtractor:
        """Load a ViT from a folder or by its name on the hub.

        Arguments and errors as `load_pretrained`'s; `local` keeps to what is on this machine.
        """
        from transformers import ViTModel

        # The pooler is no part of DINO, and its files do not hold one.
        options = {"add_pooling_layer": False, "local_files_only": local}
        return cls(load_pretrained(ViTModel, name, device, **options))

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return next(self.model.parameters()).device

    @torch.no_grad()
    def image_features(self, images: Sequence[Image.Image]) -> Tensor:
        """Embed images of any size: unit vectors [n, d] on the CPU."""
        found = []
        for batch in batches(images, self.device):
            pixels = self.preprocess.pictures(batch, self.device)
            states = self.model(pixel_values=pixels).last_hidden_state  # b n d, class token first
            found.append(F.normalize(states[:, 0], dim=-1).cpu())
        return torch.cat(found)
