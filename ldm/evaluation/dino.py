"""Similarity between images by DINO, which depends on the object itself more than on its class.

The score is that of Ruiz et al. (DreamBooth, arXiv 2208.12242, section 4.2): the mean cosine
between the class tokens of DINO's ViT-S/16 (Caron et al., arXiv 2104.14294). Images are prepared as
in DINO's own evaluation: the shorter side is resized to 256 pixels and the middle 224 are cut out.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import torch.nn.functional as F
from torch import Tensor

from ldm.evaluation.clip import ImageEmbedder, frozen, load_pretrained, processor

if TYPE_CHECKING:
    from transformers import ViTModel

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # ImageNet's


class DinoExtractor(ImageEmbedder):
    """Embeds images by a ViT's class token; build it with `DinoExtractor.load`."""

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
