"""The noise schedules against diffusers' and their closed forms."""

import math

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from ldm.models.diffusion.schedule import make_beta_schedule, make_schedule


def test_the_published_schedule_equals_diffusers():
    from diffusers import DDIMScheduler

    reference = DDIMScheduler(1000, 0.00085, 0.012, "scaled_linear")
    ours = make_schedule(make_beta_schedule("linear", 1000, 0.00085, 0.012))
    assert_close(ours.betas, reference.betas, rtol=1e-5, atol=0)
    assert_close(ours.alphas_cumprod, reference.alphas_cumprod, rtol=1e-4, atol=0)


def test_every_kind_of_betas():
    def betas(kind):
        return make_beta_schedule(kind, 5, 0.01, 0.04, cosine_s=0.008)

    grid = [0.01, 0.0175, 0.025, 0.0325, 0.04]
    np.testing.assert_allclose(betas("sqrt_linear"), grid)
    np.testing.assert_allclose(betas("sqrt"), np.sqrt(grid))
    np.testing.assert_allclose(betas("linear"), np.square([0.1, 0.125, 0.15, 0.175, 0.2]))

    def signal(t):
        return math.cos((t / 5 + 0.008) / 1.008 * math.pi / 2) ** 2

    expected = [min(0.999, 1 - signal(t + 1) / signal(t)) for t in range(5)]
    np.testing.assert_allclose(betas("cosine"), expected)
    with pytest.raises(ValueError, match=r"beta_schedule .* got 'quadratic'"):
        betas("quadratic")


def test_the_tables():
    """Each against the process simulated step by step, in exact arithmetic where it matters."""
    betas = np.array([0.1, 0.2, 0.05])
    tables = make_schedule(betas)
    signal = [0.9, 0.9 * 0.8, 0.9 * 0.8 * 0.95]
    before = [1.0, *signal[:2]]
    for t in range(3):
        beta, abar, prev = betas[t], signal[t], before[t]
        variance = beta * (1 - prev) / (1 - abar)
        expected = {
            "betas": beta,
            "alphas_cumprod": abar,
            "alphas_cumprod_prev": prev,
            "sqrt_alphas_cumprod": math.sqrt(abar),
            "sqrt_one_minus_alphas_cumprod": math.sqrt(1 - abar),
            "log_one_minus_alphas_cumprod": math.log(1 - abar),
            "sqrt_recip_alphas_cumprod": abar**-0.5,
            "sqrt_recipm1_alphas_cumprod": math.sqrt(1 / abar - 1),
            "posterior_variance": variance,
            "posterior_log_variance_clipped": math.log(max(variance, 1e-20)),
            "posterior_mean_coef1": beta * math.sqrt(prev) / (1 - abar),
            "posterior_mean_coef2": (1 - prev) * math.sqrt(1 - beta) / (1 - abar),
        }
        assert list(tables.tables()) == list(expected)
        for name, value in expected.items():
            assert tables.tables()[name].dtype == torch.float32
            assert float(tables.tables()[name][t]) == pytest.approx(value, rel=1e-5), name


def test_the_posterior_is_bayes():
    """q(x_{t−1} | x_t, x_0) for scalars, from the joint Gaussian of x_{t−1} and x_t."""
    s = make_schedule([0.1, 0.2, 0.3])
    t, x0, xt = 2, 0.7, -0.4
    mean_before, var_before = math.sqrt(0.72) * x0, 1 - 0.72
    alpha, beta = 0.7, 0.3
    var_t = alpha * var_before + beta
    gain = math.sqrt(alpha) * var_before / var_t
    mean = mean_before + gain * (xt - math.sqrt(alpha) * mean_before)
    variance = var_before - gain**2 * var_t
    ours = s.posterior_mean_coef1[t] * x0 + s.posterior_mean_coef2[t] * xt
    assert float(ours) == pytest.approx(mean, rel=1e-5)
    assert float(s.posterior_variance[t]) == pytest.approx(variance, rel=1e-5)


def test_tables_are_real_where_the_model_is_not():
    with torch.device("meta"):
        tables = make_schedule(make_beta_schedule("linear", 4))
    assert tables.betas.device.type == "cpu"
    assert float(tables.betas[0]) == pytest.approx(1e-4)


@pytest.mark.parametrize(
    ("betas", "message"),
    [
        ([], "timesteps must be at least 2"),
        ([0.1], "timesteps must be at least 2"),
        ([-0.1, 0.1], "betas must lie between 0 and 1, got -0.1 to 0.1"),
        ([0.1, 1.0], "betas must lie between 0 and 1, got 0.1 to 1"),
    ],
)
def test_betas_out_of_range_are_refused(betas, message):
    with pytest.raises(ValueError, match=message):
        make_schedule(betas)
