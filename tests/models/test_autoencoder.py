"""First stages: equal to diffusers', trained, averaged, with a codebook or none."""

import sys
import types

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from ldm.models.autoencoder import (
    AutoencoderKL,
    IdentityFirstStage,
    VQModel,
    VQModelInterface,
)
from ldm.randomness import Purpose, normal
from ldm.util import UserError
from tests.models.autoencoders import (
    DDCONFIG,
    LATENT,
    NO_LOSS,
    PLAIN,
    SIDE,
    batches,
    build,
    fit,
    images,
)
from tests.modules.diffusers_names import autoencoder_state
from tests.modules.weights import randomize


def test_autoencoder_equals_diffusers():
    from diffusers import AutoencoderKL as Reference

    ours = randomize(build()).eval()
    reference = Reference(
        block_out_channels=(8, 16),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        layers_per_block=1,
        latent_channels=3,
        norm_num_groups=4,
    ).eval()
    reference.load_state_dict(autoencoder_state(ours, levels=2), strict=True)
    x = images()
    with torch.no_grad():
        posterior, expected = ours.encode(x), reference.encode(x).latent_dist
        assert posterior.mean.shape == (4, 3, 8, 8)
        assert_close(posterior.mean, expected.mean, rtol=1e-4, atol=1e-5)
        assert_close(posterior.std, expected.std, rtol=1e-4, atol=1e-5)
        z = posterior.sample()
        assert_close(ours.decode(z), reference.decode(z).sample, rtol=1e-4, atol=1e-4)
    assert ours.downsampling == 2


def test_norms_have_the_published_epsilon():
    eps = {m.eps for m in build().modules() if isinstance(m, nn.GroupNorm)}
    assert eps == {1e-6}


def test_attention_where_the_configuration_wants_it():
    options = {**DDCONFIG, "attn_resolutions": [8]}
    model = randomize(AutoencoderKL(options, NO_LOSS, LATENT))
    names = {n.rpartition(".attn.")[0] for n, _ in model.named_parameters() if ".attn." in n}
    assert names == {"encoder.down.1", "decoder.up.1"}
    assert model(images())[0].shape == (4, 3, SIDE, SIDE)
    without = AutoencoderKL({**options, "attn_type": "none"}, NO_LOSS, LATENT)
    assert not [n for n, _ in without.named_parameters() if "attn" in n]
    with pytest.raises(ValueError, match="attn_type"):
        AutoencoderKL({**options, "attn_type": "linear"}, NO_LOSS, LATENT)


def test_the_loss_of_a_batch_is_a_function_of_its_samples():
    model = randomize(build(PLAIN))
    model.log = model.log_dict = lambda *_, **__: None
    (batch,) = batches(1, 4)
    whole = model.training_step(batch, 0)
    parts = [model.training_step({k: v[i : i + 1] for k, v in batch.items()}, 0) for i in range(4)]
    assert_close(whole, torch.stack(parts).mean())
    x = model.images(batch)
    posterior = model.encode(x)
    noise = normal(model.seed, range(4), (3, 8, 8), Purpose.POSTERIOR)
    decoded = model.decode(posterior.mean + posterior.std * noise)
    kl = posterior.kl().mean() / (3 * 8 * 8)
    error = decoded - x
    assert_close(whole, error.abs().mean() + error.square().mean() + 1e-6 * kl)


def test_training_moves_every_weight_and_the_averaged_copy_follows():
    model = build(PLAIN, ema_decay=0.5, scheduler_config=None, monitor="val/loss")
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    trainer = fit(model, batches(3))
    assert trainer.global_step == 3
    moved = {n: (p.detach() - before[n]).abs().max() for n, p in model.named_parameters()}
    assert min(moved.values()) > 0
    assert {"val/loss", "val/l1_loss", "val/psnr"} <= set(trainer.callback_metrics)
    weight = dict(model.named_parameters())["decoder.conv_out.weight"]
    own = weight.detach().clone()
    with model.ema_scope():
        assert_close(weight.data, model.model_ema.decoderconv_outweight)
        assert (weight - own).abs().max() > 0
    assert_close(weight.data, own)


def test_a_frozen_encoder_keeps_the_latents():
    model = build(PLAIN, ema_decay=0.5, freeze_encoder=True)
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    fit(model, batches(2))
    for name, weight in model.named_parameters():
        kept = name.startswith(("encoder.", "quant_conv."))
        assert torch.equal(weight.detach(), before[name]) == kept, name


def test_the_averaged_copy_follows_optimizer_steps_not_micro_batches():
    model = build(PLAIN, ema_decay=0.5)
    trainer = fit(model, batches(6), accumulate_grad_batches=3)
    assert trainer.global_step == 2
    assert int(model.model_ema.num_updates) == 2


def test_validation_uses_the_averaged_weights():
    model = build(PLAIN, ema_decay=0.9)
    averaged = {n: p.detach().clone() for n, p in model.named_parameters()}
    (batch,) = batches(1)
    model.log_dict = model.log = lambda *_, **__: None
    expected = model.validation_step(batch, 0)
    randomize(model)
    assert_close(model.validation_step(batch, 0), expected)
    assert any((p - averaged[n]).abs().max() > 0 for n, p in model.named_parameters())


def test_to_train_an_autoencoder_takes_a_loss():
    with pytest.raises(UserError, match=r"torch\.nn\.Identity .*KLReconstruction"):
        fit(build(), batches(1))


def test_unknown_options_are_named():
    with pytest.raises(TypeError, match="embed_dims"):
        build(embed_dims=3)
    with pytest.raises(TypeError, match="depth"):
        AutoencoderKL({**DDCONFIG, "depth": 3}, NO_LOSS, LATENT)
    with pytest.raises(ValueError, match="double_z"):
        AutoencoderKL({**DDCONFIG, "double_z": False}, NO_LOSS, LATENT)


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"ch_mult": []}, r"ch_mult must hold whole numbers of at least 1, got \[\]"),
        ({"ch_mult": [1, -2]}, "ch_mult must hold whole numbers"),
        ({"ch": 0}, "ch must be a whole number of at least 1, got 0"),
        ({"num_res_blocks": 0}, "num_res_blocks must be a whole number of at least 1, got 0"),
        ({"num_groups": 0}, "num_groups must be a whole number of at least 1, got 0"),
        ({"z_channels": 0}, "z_channels must be a whole number of at least 1, got 0"),
    ],
)
def test_sizes_are_checked(sizes, message):
    with pytest.raises(ValueError, match=message):
        AutoencoderKL({**DDCONFIG, **sizes}, NO_LOSS, LATENT)


def test_a_file_of_weights_is_read_except_what_is_to_be_ignored(tmp_path):
    source = randomize(build())
    torch.save({"state_dict": source.state_dict()}, tmp_path / "first.ckpt")
    model = build(ckpt_path=str(tmp_path / "first.ckpt"), ignore_keys=["decoder"])
    fresh = build()
    for name, value in model.state_dict().items():
        other = fresh if name.startswith("decoder") else source
        assert_close(value, other.state_dict()[name])


class Nearest(nn.Module):
    """A quantiser with the interface of taming-transformers'."""

    def __init__(self, n_e, e_dim, beta, remap=None, sane_index_shape=False):
        super().__init__()
        self.embedding = nn.Embedding(n_e, e_dim)

    def forward(self, z):
        flat = z.permute(0, 2, 3, 1).flatten(0, 2)
        ids = torch.cdist(flat, self.embedding.weight).argmin(1)
        chosen = self.embedding(ids).reshape(z.shape[0], *z.shape[2:], -1).permute(0, 3, 1, 2)
        return chosen, (chosen - z).square().mean(), ids


VQ = ({**DDCONFIG, "double_z": False}, NO_LOSS)


def test_a_codebook_needs_taming_transformers(monkeypatch):
    monkeypatch.setitem(sys.modules, "taming.modules.vqvae.quantize", None)
    with pytest.raises(UserError, match="needs the package taming-transformers") as caught:
        VQModel(*VQ, n_embed=8, embed_dim=2)
    assert "\n" not in str(caught.value)


def test_a_codebook_comes_from_taming_transformers(monkeypatch):
    taming = types.SimpleNamespace(VectorQuantizer2=Nearest)
    for name in ("taming", "taming.modules", "taming.modules.vqvae"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    monkeypatch.setitem(sys.modules, "taming.modules.vqvae.quantize", taming)
    model = VQModel(*VQ, n_embed=8, embed_dim=2, monitor="val/rec_loss")
    latent, loss, ids = model.encode(images())
    assert latent.shape == (4, 2, 8, 8)
    assert loss > 0
    assert ids.max() < 8
    assert model.decode(latent).shape == (4, 3, SIDE, SIDE)

    first_stage = VQModelInterface(*VQ, n_embed=8, embed_dim=2)
    z = first_stage.encode(images())
    assert_close(first_stage.decode(first_stage.quantize(z)[0]), first_stage.decode(z))
    kept = first_stage.decode(z, force_not_quantize=True)
    assert (kept - first_stage.decode(z)).abs().max() > 1e-4


def test_no_first_stage():
    stage, x = IdentityFirstStage(), images()
    assert stage.decode(stage.encode(x)) is x
    assert stage.downsampling == 1
