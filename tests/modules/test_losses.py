"""The autoencoders' losses: their formulas, and which weights each term moves."""

import sys
import types

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from ldm.modules.distributions.distributions import DiagonalGaussianDistribution
from ldm.modules.losses import KLReconstruction, LPIPSWithDiscriminator
from ldm.modules.losses.adversarial import (
    PatchDiscriminator,
    adaptive_weight,
    hinge_loss,
    vanilla_loss,
)
from ldm.util import UserError, instantiate_from_config
from tests.models.autoencoders import batches, build, fit

ADVERSARIAL = {
    "target": "ldm.modules.losses.LPIPSWithDiscriminator",
    "params": {
        "disc_start": 1,
        "kl_weight": 0.000001,
        "disc_weight": 0.5,
        "perceptual_weight": 0.0,
        "disc_num_layers": 1,
    },
}


def a_image_and_its_copy():
    torch.manual_seed(0)
    x = torch.rand(2, 3, 16, 16) * 2 - 1
    decoded = (x + 0.1 * torch.randn_like(x)).requires_grad_()
    posterior = DiagonalGaussianDistribution(torch.randn(2, 4, 2, 2))
    return x, decoded, posterior


def test_plain_reconstruction():
    x, decoded, posterior = a_image_and_its_copy()
    loss, parts = KLReconstruction(2.0, 3.0, 0.5)(x, decoded, posterior)
    error = decoded - x
    kl = posterior.kl().mean() / 8
    assert_close(loss, 2 * error.abs().mean() + 3 * error.square().mean() + 0.5 * kl)
    assert_close(parts["rec_loss"] + 0.5 * kl, loss.detach())
    mse = error.square().mean((1, 2, 3))
    assert_close(parts["psnr"], (20 * torch.log10(2 / mse.sqrt())).mean().detach())


def test_before_its_start_the_discriminator_only_waits():
    x, decoded, posterior = a_image_and_its_copy()
    loss_of = LPIPSWithDiscriminator(10, kl_weight=0.1, perceptual_weight=0, logvar_init=0.3)
    loss, parts = loss_of(x, decoded, posterior, step=9)
    error = (x - decoded).abs()
    nll = (error / torch.tensor(0.3).exp() + 0.3).sum() / 2
    assert_close(loss, nll + 0.1 * posterior.kl().mean())
    assert_close(parts["rec_loss"], error.mean().detach())
    assert parts["disc_factor"] == 0
    loss.backward()
    assert all(p.grad.abs().max() == 0 for p in loss_of.discriminator.parameters())


@pytest.mark.parametrize("kind", ["hinge", "vanilla"])
def test_each_term_moves_its_own_network(kind):
    """The one sum's gradients are those of two losses kept apart."""
    x, _, posterior = a_image_and_its_copy()
    loss_of = LPIPSWithDiscriminator(
        5, 0.0, 0.0, 1.0, 1, 3, 2.0, 0.7, perceptual_weight=0, disc_loss=kind
    ).train()
    decoder = nn.Conv2d(3, 3, 3, padding=1)
    decoded = decoder(x)
    loss, parts = loss_of(x, decoded, posterior, step=5, last_layer=decoder.weight)
    loss.backward()
    own = {n: p.grad.clone() for n, p in loss_of.discriminator.named_parameters()}
    decoders = decoder.weight.grad.clone()

    real, fake = loss_of.discriminator(x), loss_of.discriminator(decoded.detach())
    if kind == "hinge":
        error = 0.5 * ((1 - real).clamp(min=0).mean() + (1 + fake).clamp(min=0).mean())
    else:
        logistic = nn.functional.binary_cross_entropy_with_logits
        error = 0.5 * (logistic(real, torch.ones_like(real)) + logistic(fake, 0 * fake))
    assert_close(parts["disc_loss"], 2.0 * error.detach())
    expected = torch.autograd.grad(2.0 * error, list(loss_of.discriminator.parameters()))
    assert_close(list(own.values()), list(expected))

    decoded = decoder(x)
    nll = (x - decoded).abs().sum() / 2
    fooled = -loss_of.discriminator(decoded).mean()
    weight = 0.7 * adaptive_weight(nll, fooled, decoder.weight)
    assert_close(parts["d_weight"], weight)
    expected = torch.autograd.grad(nll + 2.0 * weight * fooled, decoder.weight)[0]
    assert_close(decoders, expected)


def test_the_adaptive_weight_makes_gradients_alike():
    layer = torch.tensor([1.0, 2.0], requires_grad=True)
    weight = adaptive_weight((3 * layer).sum(), (6 * layer).sum(), layer)
    assert_close(weight, torch.tensor(0.5), rtol=1e-4, atol=0)
    assert adaptive_weight((3 * layer).sum(), (0 * layer).sum(), layer) == 1e4


def test_validation_has_no_adaptive_weight():
    x, decoded, posterior = a_image_and_its_copy()
    loss_of = LPIPSWithDiscriminator(0, disc_num_layers=1, perceptual_weight=0).eval()
    with torch.no_grad():
        _, parts = loss_of(x, decoded, posterior, step=1, last_layer=decoded)
    assert parts["d_weight"] == 0
    assert set(parts) >= {"rec_loss", "total_loss", "g_loss", "disc_loss", "logits_fake"}


def test_discriminator_losses():
    real, fake = torch.tensor([2.0, 0.5]), torch.tensor([-3.0, 0.0])
    assert hinge_loss(real, fake) == 0.5 * (0.25 + 0.5)
    confident = torch.tensor([50.0])
    assert vanilla_loss(confident, -confident) < 1e-6
    assert_close(vanilla_loss(torch.zeros(1), torch.zeros(1)), torch.tensor(2.0).log())


def test_the_discriminator_has_the_published_names_and_patches():
    discriminator = PatchDiscriminator()
    shapes = {n: tuple(p.shape) for n, p in discriminator.named_parameters() if p.ndim == 4}
    assert shapes == {
        "main.0.weight": (64, 3, 4, 4),
        "main.2.weight": (128, 64, 4, 4),
        "main.5.weight": (256, 128, 4, 4),
        "main.8.weight": (512, 256, 4, 4),
        "main.11.weight": (1, 512, 4, 4),
    }
    small = PatchDiscriminator(num_layers=1, width=4).eval()
    assert small(torch.randn(2, 3, 16, 16)).shape == (2, 1, 6, 6)


@pytest.mark.parametrize("accumulate", [1, 2])
def test_training_moves_both_networks(accumulate):
    model = build(ADVERSARIAL, monitor="val/rec_loss")
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    trainer = fit(model, batches(2 * accumulate), accumulate_grad_batches=accumulate)
    assert trainer.global_step == 2
    moved = {n: (p.detach() - before[n]).abs().max() for n, p in model.named_parameters()}
    assert any(name.startswith("loss.discriminator.main") for name in moved)
    # A convolution's bias before a batch norm would not move; there is none.
    assert min(moved.values()) > 0
    assert "val/rec_loss" in trainer.callback_metrics
    assert "loss.logvar" in model.state_dict()


class FakeLPIPS(nn.Module):
    """As taming's: a distance an image, [b, 1, 1, 1]."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(2.0))

    def forward(self, a, b):
        assert not self.training
        return self.scale * (a - b).square().mean((1, 2, 3), keepdim=True)


def test_perception_comes_from_taming_transformers(monkeypatch):
    taming = types.SimpleNamespace(LPIPS=FakeLPIPS)
    for name in ("taming", "taming.modules", "taming.modules.losses"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    monkeypatch.setitem(sys.modules, "taming.modules.losses.lpips", taming)
    x, decoded, posterior = a_image_and_its_copy()
    loss_of = LPIPSWithDiscriminator(10, kl_weight=0, perceptual_weight=0.5).train()
    _, parts = loss_of(x, decoded, posterior)
    error = (x - decoded).abs() + (x - decoded).square().mean((1, 2, 3), keepdim=True)
    assert_close(parts["nll_loss"], (error.sum() / 2).detach())
    assert not loss_of.perceptual_loss.scale.requires_grad


def test_perception_missing_is_said_in_a_line(monkeypatch):
    monkeypatch.setitem(sys.modules, "taming.modules.losses.lpips", None)
    config = {"target": ADVERSARIAL["target"], "params": {"disc_start": 50001}}
    with pytest.raises(UserError, match="set perceptual_weight: 0") as caught:
        instantiate_from_config(config)
    assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match="disc_loss must be"):
        LPIPSWithDiscriminator(0, disc_loss="wasserstein", perceptual_weight=0)
    with pytest.raises(TypeError, match="disc_begin"):
        LPIPSWithDiscriminator(0, disc_begin=3)
