"""The posterior against torch.distributions."""

import torch
from torch.distributions import Normal, kl_divergence
from torch.testing import assert_close

from ldm.modules.distributions.distributions import DiagonalGaussianDistribution

torch.manual_seed(0)
PARAMETERS = torch.randn(2, 6, 4, 5)


def test_against_torch():
    ours = DiagonalGaussianDistribution(PARAMETERS)
    mean, logvar = PARAMETERS[:, :3], PARAMETERS[:, 3:]
    reference = Normal(mean, (0.5 * logvar).exp())
    assert_close(ours.mean, mean)
    assert_close(ours.std, reference.stddev)
    assert_close(ours.kl(), kl_divergence(reference, Normal(0.0, 1.0)).sum((1, 2, 3)))
    x = torch.randn(2, 3, 4, 5)
    assert_close(ours.nll(x), -reference.log_prob(x).sum((1, 2, 3)))
    assert ours.mode() is ours.mean


def test_samples():
    ours = DiagonalGaussianDistribution(PARAMETERS)
    noise = torch.randn(2, 3, 4, 5)
    assert_close(ours.sample(noise), ours.mean + ours.std * noise)
    many = torch.stack([ours.sample() for _ in range(4000)])
    assert_close(many.mean(0), ours.mean, rtol=0, atol=0.25)
    assert_close(many.std(0), ours.std, rtol=0.1, atol=0)


def test_the_log_variance_is_clamped():
    extreme = DiagonalGaussianDistribution(torch.tensor([[0.0, -99.0], [0.0, 99.0]])[:, :, None])
    assert extreme.logvar.flatten().tolist() == [-30.0, 20.0]
    assert extreme.kl().isfinite().all()
