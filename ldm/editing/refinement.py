"""A decoder tuned to one image, so that decoding leaves its background as it was.

Avrahami et al., arXiv 2206.02779, section 4.2.
"""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING

import torch
from PIL import Image
from torch import Tensor

from ldm.image_io import from_pil

if TYPE_CHECKING:
    from ldm.models.diffusion.ddpm import LatentDiffusion

STEPS = 75
RATE = 1e-4
PRESERVATION = 100.0  # weight of the background's error


def refined(
    model: LatentDiffusion,
    latent: Tensor,
    original: Image.Image,
    mask: Tensor,
    *,
    steps: int = STEPS,
    rate: float = RATE,
) -> Tensor:
    """Decode a latent by a copy of the decoder, tuned for it by Adam. The model does not change.

    The loss is the mean square error to the plain decoding inside the mask, plus `PRESERVATION`
    times that to the image outside it, both over all pixels.

    Args:
        model: its first stage has a `decoder`.
        latent: scaled, [1, c, h, w].
        original: the image whose background is kept.
        mask: 1 where the decoding is kept instead, [1, 1, f·h, f·w].
        steps: of Adam.
        rate: of Adam.

    Returns:
        The image, [1, 3, f·h, f·w], about [−1, 1].
    """
    first_stage = copy.deepcopy(model.first_stage_model).float()
    decoder = first_stage.decoder.requires_grad_(True)
    z = latent.float() / model.scale_factor
    mask = mask.to(z)
    given = from_pil(original)[None].to(z)
    with torch.no_grad():
        wanted = torch.where(mask > 0, first_stage.decode(z), given)
    weight = torch.where(mask > 0, 1.0, PRESERVATION)
    optimizer = torch.optim.Adam(decoder.parameters(), lr=rate)
    with torch.enable_grad():
        for _ in range(steps):
            loss = (weight * (first_stage.decode(z) - wanted) ** 2).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    with torch.no_grad():
        decoded: Tensor = first_stage.decode(z)
    return decoded
