"""A small autoencoder, images for it, and a run of Lightning's trainer."""

import pytorch_lightning as pl
import torch

from ldm.models.autoencoder import AutoencoderKL

SIDE, LATENT = 16, 3
DDCONFIG = {
    "double_z": True,
    "z_channels": 3,
    "resolution": SIDE,
    "in_channels": 3,
    "out_ch": 3,
    "ch": 8,
    "ch_mult": [1, 2],
    "num_res_blocks": 1,
    "attn_resolutions": [],
    "dropout": 0.0,
    "num_groups": 4,
}
NO_LOSS = {"target": "torch.nn.Identity"}
PLAIN = {"target": "ldm.modules.losses.KLReconstruction"}


def build(loss=NO_LOSS, **options):
    torch.manual_seed(0)
    return AutoencoderKL(DDCONFIG, loss, LATENT, **options)


def images(count=4):
    rng = torch.Generator().manual_seed(7)
    return torch.rand(count, 3, SIDE, SIDE, generator=rng) * 2 - 1


def batches(count=2, size=2):
    """Complete batches, as the loader gives them."""
    x = images(count * size).permute(0, 2, 3, 1)
    noise = build().batch_noise()
    parts = [
        {"image": x[i * size :][:size], "sample": torch.arange(i * size, (i + 1) * size)}
        for i in range(count)
    ]
    return [part | noise(part) for part in parts]


def fit(model, data, **options):
    model.learning_rate = 1e-3
    trainer = pl.Trainer(
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        max_epochs=1,
        **options,
    )
    loader = torch.utils.data.DataLoader(data, batch_size=None)
    trainer.fit(model, loader, loader)
    return trainer
