"""A latent diffusion model of a few thousand weights, and batches for it."""

import torch

from ldm.models.diffusion.ddpm import LatentDiffusion
from tests.models.autoencoders import DDCONFIG, NO_LOSS
from tests.modules.vocabularies import write_bert
from tests.modules.weights import randomize

UNET = {
    "target": "ldm.modules.diffusionmodules.openaimodel.UNetModel",
    "params": {
        "image_size": 8,
        "in_channels": 3,
        "out_channels": 3,
        "model_channels": 8,
        "num_res_blocks": 1,
        "attention_resolutions": [1],
        "channel_mult": [1],
        "num_heads": 2,
        "num_groups": 4,
    },
}
WITH_TEXT = {"use_spatial_transformer": True, "context_dim": 16}
FIRST_STAGE = {
    "target": "ldm.models.autoencoder.AutoencoderKL",
    "params": {"ddconfig": DDCONFIG, "lossconfig": NO_LOSS, "embed_dim": 3},
}
IDENTITY = {"target": "ldm.models.autoencoder.IdentityFirstStage"}
WORDS = {
    "target": "ldm.words.manager.EmbeddingManager",
    "params": {"placeholder_strings": ["*"], "initializer_words": ["cat"]},
}


def unet(**params):
    return {**UNET, "params": {**UNET["params"], **params}}


def text_model(folder, **options):
    """A model conditioned on text; every weight is random."""
    torch.manual_seed(0)
    bert = {
        "target": "ldm.modules.encoders.modules.BERTEmbedder",
        "params": {
            "n_embed": 16,
            "n_layer": 1,
            "vocab_size": 20,
            "max_seq_len": 8,
            "tokenizer": write_bert(folder),
            "heads": 2,
            "dim_head": 4,
        },
    }
    settings = {
        "conditioning_key": "crossattn",
        "cond_stage_key": "caption",
        "image_size": 8,
        "channels": 3,
        "use_ema": False,
        "scale_factor": 0.5,
        **options,
    }
    network = settings.pop("unet_config", unet(**WITH_TEXT))
    model = LatentDiffusion(network, FIRST_STAGE, bert, **settings)
    for part in (model.model, model.first_stage_model, model.cond_stage_model):
        randomize(part)
    model.log_dict = model.log = lambda *_, **__: None
    return model


def plain_model(**options):
    """A model without first stage or condition; every weight is random."""
    torch.manual_seed(0)
    settings = {"unet_config": UNET, "first_stage_config": IDENTITY, "use_ema": False, **options}
    settings.setdefault("cond_stage_config", "__is_unconditional__")
    model = LatentDiffusion(**settings)
    randomize(model.model)
    model.log_dict = model.log = lambda *_, **__: None
    return model


def complete(model, size=3, first=0):
    """A batch as the loader gives it: with timesteps and noise of the model's seed."""
    data = batch(size, first)
    return data | model.batch_noise()(data)


def batch(size=3, first=0, side=16):
    samples = torch.arange(first, first + size)
    rng = torch.Generator().manual_seed(5)
    images = torch.rand(20, side, side, 3, generator=rng) * 2 - 1
    captions = ["a photo of *", "the cat on the moon", "a polarbear", "*", "of"]
    return {
        "image": images[samples],
        "caption": [captions[i % len(captions)] for i in samples.tolist()],
        "sample": samples,
    }
