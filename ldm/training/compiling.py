"""`--compile`: the U-Net as one compiled program, for long runs on a GPU.

The compiler is `torch.compile`; on a GPU its program is replayed as a CUDA graph. It computes the
same function with other rounding. Compiling takes minutes, and on a CPU the result was not faster
(docs/performance.md), so no configuration of the project switches it on.
"""

from __future__ import annotations

import logging
import os
from pathlib import Path

import pytorch_lightning as pl
import torch

from ldm.models.diffusion.ddpm import LatentDiffusion
from ldm.util import UserError, check_output_folder, first_line

log = logging.getLogger(__name__)

# Torch's own variable. Its default is a folder below /tmp, which is emptied at each start.
CACHE_VARIABLE = "TORCHINDUCTOR_CACHE_DIR"


def compile_unet(model: pl.LightningModule, device: str) -> None:
    """Have the U-Net compiled at its first use; names of its weights stay as they are.

    The compiled program is kept in the folder that `CACHE_VARIABLE` names, by default
    ~/.cache/ldm/compiled, so that later runs start sooner.

    Raises UserError for a model without U-Net, for a folder that cannot be written, or where
    nothing can be compiled for the device: it needs a C++ compiler on a CPU, and Triton on a GPU.
    """
    if not isinstance(model, LatentDiffusion):
        raise UserError(f"--compile: {type(model).__name__} has no U-Net")
    folder = Path(os.environ.setdefault(CACHE_VARIABLE, str(Path.home() / ".cache/ldm/compiled")))
    try:
        check_output_folder(folder, "compile cache")
    except UserError as error:
        raise UserError(f"--compile: {error}; {CACHE_VARIABLE} names another folder") from None
    try:
        torch.compile(torch.sin)(torch.zeros(2, device=device))
    except Exception as error:  # the compiler's own kinds differ between versions of torch
        raise UserError(f"--compile: torch cannot compile here: {first_line(error)}") from error
    graphs = device.startswith("cuda")
    model.model.diffusion_model.compile(mode="reduce-overhead" if graphs else None, dynamic=False)
    log.info(f"the U-Net is compiled at the first step, which takes minutes; kept in {folder}")
