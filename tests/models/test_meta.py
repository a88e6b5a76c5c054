"""No step reads a number back from the device.

A tensor on torch's `meta` device has no values. `.item()`, `.tolist()` and `.cpu()` raise there,
and so does any operation with a tensor of another device.
"""

from __future__ import annotations

import pytest
import torch

from ldm.models.diffusion.ddim import DDIMSampler
from ldm.models.diffusion.plms import PLMSSampler
from tests.models.autoencoders import PLAIN, batches, build
from tests.models.latent_models import WORDS, complete, text_model

META = torch.device("meta")


def to_meta(batch):
    return {
        k: to_meta(v) if isinstance(v, dict) else v.to(META) if isinstance(v, torch.Tensor) else v
        for k, v in batch.items()
    }


@pytest.fixture
def model(tmp_path):
    regularised = {"embedding_reg_weight": 0.5, "use_ema": True}
    return text_model(tmp_path, personalization_config=WORDS, **regularised).train()


@pytest.mark.parametrize("cached", [True, False])
def test_a_training_step_copies_nothing_to_the_host(model, cached):
    batch = complete(model) | {"prior": complete(model, first=7)}
    if cached:
        for part in (batch, batch["prior"]):
            part["moments"] = model.encode_first_stage(model.images(part)).parameters
            del part["image"]
    model.to(META)
    loss = model.training_step(to_meta(batch), 0)
    loss.backward()
    (word,) = model.embedding_manager.embedding_parameters()
    assert word.grad.device == META
    assert [n for n, p in model.named_parameters() if p.grad is not None] == [
        n for n, p in model.named_parameters() if p.requires_grad
    ]


def test_validation_copies_nothing_to_the_host(model):
    batch = to_meta(complete(model))
    model.to(META).eval().validation_step(batch, 0)


def test_an_autoencoder_step_copies_nothing_to_the_host():
    model = build(PLAIN)
    model.log = model.log_dict = lambda *_, **__: None
    (batch,) = batches(1)
    model.to(META).training_step(to_meta(batch), 0).backward()
    assert all(p.grad is not None for p in model.parameters())


@pytest.mark.parametrize("mask", [False, True])
@pytest.mark.parametrize(
    ("sampler", "eta"), [(DDIMSampler, 0.0), (DDIMSampler, 1.0), (PLMSSampler, 0.0)]
)
def test_sampling_copies_nothing_to_the_host(model, sampler, eta, mask):
    model.to(META).eval()
    kept = torch.zeros(2, 3, 8, 8, device=META)
    samples, _ = sampler(model).sample(
        S=6,
        batch_size=2,
        shape=(3, 8, 8),
        conditioning=model.get_learned_conditioning(["a photo of *"] * 2),
        unconditional_conditioning=model.get_learned_conditioning([""] * 2),
        unconditional_guidance_scale=5.0,
        eta=eta,
        verbose=False,
        **({"mask": kept[:, :1], "x0": kept} if mask else {}),
    )
    assert samples.device == META
    assert model.decode_first_stage(samples).shape == (2, 3, 16, 16)
