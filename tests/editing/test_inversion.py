"""DDIM inversion against closed forms, against `diffusers`, and there and back."""

from itertools import pairwise

import pytest
import torch
from diffusers import DDIMInverseScheduler, DDIMScheduler
from hypothesis import given
from hypothesis import strategies as st
from torch.testing import assert_close

from ldm.editing.inversion import ascend, invert
from ldm.models.diffusion.ddim import DDIMSampler
from ldm.models.diffusion.sampler import Step, make_timesteps

SCHEDULE = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "steps_offset": 1,
    "set_alpha_to_one": False,
}
ALPHAS = DDIMScheduler(**SCHEDULE).alphas_cumprod
SHAPE = (2, 3, 4, 4)


class Gaussian:
    """The exact denoiser of data N(mean, spread²), mean being the condition where there is one."""

    num_timesteps = 1000
    device = torch.device("cpu")
    alphas_cumprod = ALPHAS

    def __init__(self, spread, mean=0.7):
        self.spread, self.mean, self.seen = spread, mean, []

    def apply_model(self, x, t, cond):
        self.seen.append(int(t[0]))
        alpha = ALPHAS.double()[t].view(-1, 1, 1, 1)
        mean = self.mean if cond is None else cond.view(-1, 1, 1, 1)
        top = (1 - alpha).sqrt() * (x.double() - alpha.sqrt() * mean)
        return top / (alpha * self.spread**2 + 1 - alpha)

    def q_sample(self, x_start, t, noise):
        raise NotImplementedError


class Wavy(Gaussian):
    """A denoiser that is not linear."""

    def apply_model(self, x, t, cond):
        return super().apply_model(x, t, cond) + 0.05 * torch.sin(3 * x)


@pytest.fixture
def x_0():
    rng = torch.Generator().manual_seed(1)
    return 0.7 + 0.5 * torch.randn(SHAPE, generator=rng, dtype=torch.float64)


def resample(model, x_T, conditioning=None, *, steps, scale=1.0, unconditional=None):
    latents, _ = DDIMSampler(model).sample(
        S=steps, batch_size=len(x_T), shape=x_T.shape[1:], conditioning=conditioning, x_T=x_T,
        unconditional_guidance_scale=scale, unconditional_conditioning=unconditional,
        verbose=False,
    )  # fmt: skip
    return latents


def rms(a, b):
    return float((a - b).square().mean().sqrt())


@given(
    alpha=st.floats(0.01, 0.999),
    alpha_next=st.floats(0.01, 0.999),
    x=st.floats(-5, 5),
    eps=st.floats(-5, 5),
)
def test_a_transition_up_is_the_samplers_backwards(alpha, alpha_next, x, eps):
    x, eps = torch.tensor(x, dtype=torch.float64), torch.tensor(eps, dtype=torch.float64)
    up = ascend(x, eps, alpha, alpha_next)
    down = Step(0, t=2, t_next=1, alpha=alpha_next, alpha_prev=alpha, sigma=0.0).advance(up, eps)
    assert_close(down, x, rtol=1e-7, atol=1e-7)


def test_a_single_point_of_data_is_inverted_exactly(x_0):
    """All noise of a point mass is ε = (x − √ā·μ)/√(1 − ā), the same along the whole path."""
    timesteps = make_timesteps(10)
    first, last = ALPHAS.double()[timesteps[0]], ALPHAS.double()[timesteps[-1]]
    eps = (x_0 - first.sqrt() * 0.7) / (1 - first).sqrt()
    want = last.sqrt() * 0.7 + (1 - last).sqrt() * eps
    assert_close(invert(Gaussian(spread=0.0), x_0, steps=10), want)


def test_the_error_on_gaussian_data_falls_in_proportion_to_the_steps(x_0):
    """The exact path (probability flow) keeps (x − √ā·μ)/√(ā·s² + 1 − ā)."""
    errors = []
    for steps in (50, 100, 200):
        timesteps = make_timesteps(steps)
        first, last = ALPHAS.double()[timesteps[0]], ALPHAS.double()[timesteps[-1]]
        width = [(a * 0.25 + 1 - a).sqrt() for a in (first, last)]
        want = last.sqrt() * 0.7 + width[1] * (x_0 - first.sqrt() * 0.7) / width[0]
        errors.append(rms(invert(Gaussian(spread=0.5), x_0, steps=steps), want))
    assert errors[-1] < 0.02
    for coarse, fine in pairwise(errors):
        assert coarse / fine == pytest.approx(2, rel=0.15)


@pytest.mark.parametrize("steps", [10, 50])
def test_it_equals_diffusers_transition_by_transition(x_0, steps):
    model = Wavy(spread=0.5)
    scheduler = DDIMInverseScheduler(**SCHEDULE, clip_sample=False)
    scheduler.set_timesteps(steps)
    x = x_0
    for t, t_next in pairwise(make_timesteps(steps)):
        eps = model.apply_model(x, torch.full((2,), t), None)
        x = scheduler.step(eps, t_next, x).prev_sample
    assert_close(invert(model, x_0, steps=steps), x, rtol=1e-5, atol=1e-5)


def test_the_network_sees_all_timesteps_but_the_last_ascending(x_0):
    model = Gaussian(spread=0.5)
    invert(model, x_0, steps=20)
    assert model.seen == make_timesteps(20)[:-1]
    sampled = Gaussian(spread=0.5)
    resample(sampled, x_0, steps=20)
    assert sampled.seen[0] == make_timesteps(20)[-1]  # where the last transition up ends


def test_there_and_back_and_refinements_make_it_exact(x_0):
    model = Wavy(spread=0.5)
    errors = [
        rms(resample(model, invert(model, x_0, steps=25, refinements=n), steps=25), x_0)
        for n in (0, 1, 4, 25)
    ]
    assert errors[0] < 0.2
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 1e-6


def test_all_timesteps_leave_no_transition_before_the_first(x_0):
    model = Gaussian(spread=0.5)
    invert(model, x_0, steps=1000, refinements=1)
    assert len(model.seen) == 2 * 999


def test_guidance_and_conditions_lead_the_noise(x_0):
    """Guidance of a linear denoiser is that of its mean: μ_u + s·(μ_c − μ_u)."""
    here, none = torch.tensor([0.7, 0.2]), torch.zeros(2)
    guided = invert(Gaussian(0.5), x_0, here, steps=20, scale=3.0, unconditional=none)
    assert_close(guided, invert(Gaussian(0.5), x_0, 3 * here, steps=20))
    back = resample(Gaussian(0.5), guided, here, steps=20, scale=3.0, unconditional=none)
    assert_close(back, resample(Gaussian(0.5), guided, 3 * here, steps=20))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"steps": 1}, r"steps must lie in 2\.\.1000, got 1"),
        ({"steps": 1001}, r"S must lie in 1\.\.1000, got 1001"),
        ({"refinements": -1}, "refinements must be at least 0, got -1"),
        ({"conditioning": torch.zeros(3)}, "conditioning is for 3 samples"),
        ({"unconditional": torch.zeros(3)}, "unconditional is for 3 samples"),
    ],
)
def test_bad_arguments_are_named(x_0, arguments, message):
    with pytest.raises(ValueError, match=message):
        invert(Gaussian(0.5), x_0, **arguments)
