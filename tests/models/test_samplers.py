"""DDIM and PLMS against closed forms and against `diffusers`."""

from itertools import pairwise

import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    PNDMScheduler,
)
from torch.testing import assert_close

from ldm.models.diffusion.ddim import DDIMSampler
from ldm.models.diffusion.few_steps import (
    DPMSolverSampler,
    EulerAncestralSampler,
    EulerSampler,
    trailing_timesteps,
)
from ldm.models.diffusion.plms import PLMSSampler
from ldm.models.diffusion.sampler import guided_denoiser, join_conditioning, make_timesteps

SHAPE = (2, 4, 4)
SCHEDULE = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "steps_offset": 1,
    "set_alpha_to_one": False,
}


class GaussianModel:
    """The exact denoiser of data N(mean, spread²)."""

    num_timesteps = 1000
    device = torch.device("cpu")

    def __init__(self, mean=0.7, spread=0.0):
        self.mean, self.spread = mean, spread
        self.alphas_cumprod = DDIMScheduler(**SCHEDULE).alphas_cumprod
        self.seen = []

    def apply_model(self, x, t, cond):
        self.seen.append((int(t[0]), x.shape[0], cond))
        alpha = self.alphas_cumprod.double()[t].view(-1, 1, 1, 1)
        x = x.double()
        top = (1 - alpha).sqrt() * (x - alpha.sqrt() * self.mean)
        return top / (alpha * self.spread**2 + 1 - alpha)

    def q_sample(self, x_start, t, noise):
        alpha = self.alphas_cumprod[t].view(-1, 1, 1, 1)
        return alpha.sqrt() * x_start + (1 - alpha).sqrt() * noise


class WavyModel(GaussianModel):
    """A non-linear denoiser that depends on everything, for comparisons step by step."""

    def apply_model(self, x, t, cond):
        self.seen.append((int(t[0]), x.shape[0], cond))
        return torch.sin(3 * x + t.view(-1, 1, 1, 1) / 100) + 0.1 * cond.view(-1, 1, 1, 1)


@pytest.fixture
def noise():
    return torch.randn(2, *SHAPE, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("divisor", [d for d in range(1, 1000) if 1000 % d == 0])
def test_timesteps_are_the_originals_where_it_worked(divisor):
    assert make_timesteps(divisor) == [t + 1 for t in range(0, 1000, 1000 // divisor)]


def test_every_step_count_gives_that_many_distinct_timesteps():
    for steps in range(1, 1001):
        timesteps = make_timesteps(steps)
        assert len(timesteps) == steps
        assert timesteps == sorted(set(timesteps))
        assert timesteps[0] >= 0
        assert timesteps[-1] <= 999


@pytest.mark.parametrize("steps", [0, -1, 1001])
def test_step_counts_out_of_range_are_refused(steps):
    with pytest.raises(ValueError, match=rf"1\.\.1000, got {steps}"):
        make_timesteps(steps)


@pytest.mark.parametrize(
    ("sampler", "steps"),
    # PLMS in one step corrects at its own timestep, as the original's does: not exact.
    [(DDIMSampler, 1)]
    + [(s, n) for s in (DDIMSampler, PLMSSampler) for n in (2, 7, 50, 333, 501, 999, 1000)],
)
def test_one_point_of_data_is_reached_exactly(sampler, steps, noise):
    # ε is constant along the trajectory, so every solver is exact: x_0 = √ā_0·mean + √(1-ā_0)·ε.
    model = GaussianModel(spread=0.0)
    noise = noise.double()
    x, _ = sampler(model).sample(S=steps, batch_size=2, shape=SHAPE, x_T=noise, verbose=False)
    first, last = (model.alphas_cumprod.double()[t] for t in (0, make_timesteps(steps)[-1]))
    eps = (noise - last.sqrt() * model.mean) / (1 - last).sqrt()
    want = first.sqrt() * model.mean + (1 - first).sqrt() * eps
    assert_close(x, want, rtol=1e-5, atol=1e-6)
    evaluations = steps + (sampler is PLMSSampler)
    assert len(model.seen) == evaluations


def gaussian_flow_error(sampler, steps, noise):
    """Distance from the exact flow, on which (x - √ā·mean) / √(ā·spread² + 1 - ā) is constant."""
    model = GaussianModel(mean=0.3, spread=0.5)
    alphas = model.alphas_cumprod.double()
    x, _ = sampler(model).sample(
        S=steps, batch_size=2, shape=SHAPE, x_T=noise.double(), verbose=False
    )
    start, end = alphas[make_timesteps(steps)[-1]], alphas[0]
    z = (noise - start.sqrt() * 0.3) / (start * 0.25 + 1 - start).sqrt()
    want = end.sqrt() * 0.3 + (end * 0.25 + 1 - end).sqrt() * z
    return (x - want).abs().max().item()


def test_ddim_converges_to_the_flow_with_first_order(noise):
    errors = [gaussian_flow_error(DDIMSampler, s, noise) for s in (50, 100, 200)]
    for coarse, fine in pairwise(errors):
        assert 1.6 < coarse / fine < 2.6


def test_plms_is_much_closer_to_the_flow_than_ddim(noise):
    assert gaussian_flow_error(PLMSSampler, 50, noise) < 0.1 * gaussian_flow_error(
        DDIMSampler, 50, noise
    )


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("steps", [10, 50])
def test_ddim_equals_diffusers(eta, steps, noise):
    model, cond = WavyModel(), torch.tensor([1.0, -1.0])
    scheduler = DDIMScheduler(clip_sample=False, **SCHEDULE)
    scheduler.set_timesteps(steps)
    added = torch.randn(steps, *noise.shape, generator=torch.Generator().manual_seed(2))
    x = noise
    for i, t in enumerate(scheduler.timesteps):
        eps = model.apply_model(x, t.repeat(2), cond)
        x = scheduler.step(eps, t, x, eta=eta, variance_noise=added[i]).prev_sample
    got, _ = DDIMSampler(model).sample(
        S=steps, batch_size=2, shape=SHAPE, conditioning=cond, eta=eta, x_T=noise, verbose=False,
        noise_source=lambda number, shape: added[(number - 1) // 2],
    )  # fmt: skip
    assert make_timesteps(steps)[::-1] == scheduler.timesteps.tolist()
    assert_close(got, x, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("steps", [4, 10, 50])
def test_plms_equals_diffusers(steps, noise):
    model, cond = WavyModel(), torch.tensor([1.0, -1.0])
    scheduler = PNDMScheduler(skip_prk_steps=True, **SCHEDULE)
    scheduler.set_timesteps(steps)
    x = noise
    for t in scheduler.timesteps:
        x = scheduler.step(model.apply_model(x, t.repeat(2), cond), t, x).prev_sample
    got, _ = PLMSSampler(model).sample(
        S=steps, batch_size=2, shape=SHAPE, conditioning=cond, x_T=noise, verbose=False
    )
    assert_close(got, x, rtol=1e-4, atol=1e-4)


TRAILING = {name: SCHEDULE[name] for name in ("beta_start", "beta_end", "beta_schedule")}
TRAILING |= {"timestep_spacing": "trailing"}


def observed(sampler, steps, noise, added=None, **model):
    """Return x after every step."""
    seen = WavyModel(**model)
    _, kept = sampler.__class__(seen, sampler.karras).sample(
        S=steps, batch_size=2, shape=SHAPE, conditioning=torch.tensor([1.0, -1.0]), x_T=noise,
        verbose=False, log_every_t=1,
        noise_source=lambda number, shape: added[(number - 1) // 2],
    )  # fmt: skip
    return kept["x_inter"][1:], [t for t, *_ in seen.seen]


def assert_near(got, want):
    assert ((got - want).norm() / want.norm()).item() < 1e-5


@pytest.mark.parametrize(
    ("steps", "karras"),
    # diffusers needs two levels for Karras spacing.
    [(1, False), *((n, karras) for n in (4, 10, 14, 20, 37) for karras in (False, True))],
)
def test_dpm_solver_equals_diffusers_at_every_step(steps, karras, noise):
    model, cond, x = WavyModel(), torch.tensor([1.0, -1.0]), noise.double()
    scheduler = DPMSolverMultistepScheduler(use_karras_sigmas=karras, **TRAILING)
    scheduler.set_timesteps(steps)
    want = []
    for t in scheduler.timesteps:
        x = scheduler.step(model.apply_model(x, t.repeat(2), cond), t, x).prev_sample
        want.append(x)
    got, timesteps = observed(DPMSolverSampler(model, karras), steps, noise.double())
    assert timesteps == scheduler.timesteps.tolist()
    for one, other in zip(got, want, strict=True):
        assert_near(one, other)


@pytest.mark.parametrize("steps", [4, 10, 20, 37])
@pytest.mark.parametrize(
    # diffusers has no ancestral sampler with Karras spacing.
    ("ancestral", "karras"),
    [(False, False), (False, True), (True, False)],
)
def test_euler_equals_diffusers_at_every_step(ancestral, steps, karras, noise, monkeypatch):
    model, cond = WavyModel(), torch.tensor([1.0, -1.0])
    added = torch.randn(steps, *noise.shape, generator=torch.Generator().manual_seed(2)).double()
    if ancestral:
        scheduler = EulerAncestralDiscreteScheduler(**TRAILING)
        place = "diffusers.schedulers.scheduling_euler_ancestral_discrete.randn_tensor"
        noises = iter(added.float())
        monkeypatch.setattr(place, lambda *a, **k: next(noises))
    else:
        scheduler = EulerDiscreteScheduler(use_karras_sigmas=karras, **TRAILING)
    scheduler.set_timesteps(steps)
    # diffusers' variable is x/√ā.
    x = noise.double() * (scheduler.sigmas[0].double() ** 2 + 1).sqrt()
    want = []
    for t, sigma in zip(scheduler.timesteps, scheduler.sigmas[1:].double(), strict=True):
        scaled = scheduler.scale_model_input(x, t)
        eps = model.apply_model(scaled, t.round().long().repeat(2), cond)
        x = scheduler.step(eps, t, x).prev_sample
        want.append(x / (sigma**2 + 1).sqrt())
    kind = EulerAncestralSampler if ancestral else EulerSampler
    got, timesteps = observed(kind(model, karras), steps, noise.double(), added)
    assert timesteps == scheduler.timesteps.round().tolist()
    for one, other in zip(got, want, strict=True):
        assert_near(one, other)


def few_steps_error(sampler, steps, noise):
    """Distance from the exact flow at ā = 1; see `gaussian_flow_error`."""
    x, _ = sampler.sample(S=steps, batch_size=2, shape=SHAPE, x_T=noise.double(), verbose=False)
    model, start = sampler.model, sampler.model.alphas_cumprod.double()[-1]
    z = (noise - start.sqrt() * model.mean) / (start * model.spread**2 + 1 - start).sqrt()
    return (x - (model.mean + model.spread * z)).abs().max().item()


def test_20_karras_steps_of_dpm_solver_are_closer_to_the_flow_than_50_of_euler(noise):
    model = GaussianModel(mean=0.3, spread=0.5)
    fast = few_steps_error(DPMSolverSampler(model, karras=True), 20, noise)
    assert fast < 0.3 * few_steps_error(EulerSampler(model), 50, noise)


@pytest.mark.parametrize("steps", [1, 3, 20, 999, 1000])
def test_trailing_timesteps_begin_at_the_last(steps):
    timesteps = trailing_timesteps(steps)
    assert (timesteps[0], len(set(timesteps))) == (999, steps)
    with pytest.raises(ValueError, match=r"1\.\.1000, got 1001"):
        trailing_timesteps(1001)


def test_euler_refuses_eta():
    with pytest.raises(ValueError, match=r"eta must be 0 with DPM-Solver\+\+ 2M, got 0\.5"):
        DPMSolverSampler(GaussianModel()).plan(5, 0.5)


def test_guidance_extrapolates_from_the_unconditional_half_in_one_batch(noise):
    model = WavyModel()
    cond, uncond = torch.tensor([1.0, -1.0]), torch.zeros(2)
    t = torch.tensor([500, 500])
    got = guided_denoiser(model, cond, uncond, 5.0)(noise, t)
    assert model.seen[-1][1] == 4
    assert_close(model.seen[-1][2], torch.tensor([0.0, 0.0, 1.0, -1.0]))
    plain = [model.apply_model(noise, t, c) for c in (uncond, cond)]
    assert_close(got, plain[0] + 5.0 * (plain[1] - plain[0]))


def test_scale_one_evaluates_only_the_conditional_half(noise):
    model = WavyModel()
    guided_denoiser(model, torch.ones(2), torch.zeros(2), 1.0)(noise, torch.tensor([5, 5]))
    assert model.seen[-1][1] == 2


def test_conditioning_may_be_nested():
    a, b = torch.zeros(1, 2), torch.ones(1, 2)
    joined = join_conditioning({"c_crossattn": [a]}, {"c_crossattn": [b]})
    assert_close(joined["c_crossattn"][0], torch.tensor([[0.0, 0.0], [1.0, 1.0]]))


def test_the_mask_keeps_the_given_latent_at_each_steps_noise_level(noise):
    model = GaussianModel(mean=0.0)
    inputs = []
    predict = model.apply_model
    model.apply_model = lambda x, t, cond: inputs.append((x, t)) or predict(x, t, cond)
    x0 = torch.full((2, *SHAPE), 2.0)
    mask = torch.zeros(1, 1, 4, 4)
    mask[..., :2] = 1
    x, _ = DDIMSampler(model).sample(
        S=100, batch_size=2, shape=SHAPE, x_T=noise, mask=mask, x0=x0, verbose=False,
        noise_source=lambda number, shape: torch.full(tuple(shape), number / 1000),
    )  # fmt: skip
    for step, (seen, t) in enumerate(inputs):
        want = model.q_sample(x0, t, torch.full_like(x0, (2 + 2 * step) / 1000))
        assert_close(seen[..., :2], want[..., :2])
        assert (seen[..., 2:] - want[..., 2:]).abs().mean() > 0.1
    assert x[..., 2:].abs().max() < 0.2


def test_intermediates_and_callbacks(noise):
    steps = []
    x, intermediates = DDIMSampler(GaussianModel()).sample(
        S=20, batch_size=2, shape=SHAPE, x_T=noise, verbose=False, log_every_t=5,
        callback=steps.append,
    )  # fmt: skip
    assert steps == list(range(20))
    assert len(intermediates["x_inter"]) == len(intermediates["pred_x0"]) == 1 + 5
    assert_close(intermediates["x_inter"][0], noise)
    assert_close(intermediates["x_inter"][-1], x)
    assert_close(intermediates["pred_x0"][-1], torch.full_like(x, 0.7))


def test_random_numbers_are_numbered_and_never_shared():
    numbers = []

    def source(number, shape):
        numbers.append(number)
        return torch.zeros(*shape)

    DDIMSampler(GaussianModel()).sample(
        S=3, batch_size=2, shape=SHAPE, eta=1.0, verbose=False, noise_source=source,
        mask=torch.ones(1), x0=torch.zeros(2, *SHAPE),
    )  # fmt: skip
    assert len(numbers) == len(set(numbers)) == 1 + 3 + 3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"mask": torch.ones(1)}, "mask and x0 go together"),
        ({"x_T": torch.zeros(1, *SHAPE)}, r"x_T must have shape .*, got \(1, 2, 4, 4\)"),
        ({"conditioning": torch.zeros(3, 5)}, "conditioning is for 3 samples, but batch_size is 2"),
        ({"conditioning": {"c_concat": [torch.zeros(3, 5)]}}, "conditioning is for 3 samples"),
    ],
)
def test_bad_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        DDIMSampler(GaussianModel()).sample(
            S=2, batch_size=2, shape=SHAPE, verbose=False, **arguments
        )


def test_plms_refuses_eta_and_samplers_refuse_unknown_arguments():
    with pytest.raises(ValueError, match=r"eta must be 0 with PLMS, got 0\.5"):
        PLMSSampler(GaussianModel()).sample(S=2, batch_size=2, shape=SHAPE, eta=0.5)
    with pytest.raises(TypeError, match="temprature"):
        DDIMSampler(GaussianModel()).sample(S=2, batch_size=2, shape=SHAPE, temprature=1.0)


def test_the_originals_img2img_is_a_client(noise):
    """The calls of CompVis' scripts/img2img.py, against diffusers' scheduler from the same step."""
    model, steps = WavyModel(), 10
    sampler = DDIMSampler(model)
    sampler.make_schedule(ddim_num_steps=steps, ddim_eta=0.0, verbose=False)
    scheduler = DDIMScheduler(**SCHEDULE, clip_sample=False)
    scheduler.set_timesteps(steps)
    ascending = scheduler.timesteps.flip(0)
    assert sampler.ddim_timesteps.tolist() == ascending.tolist()
    assert_close(sampler.ddim_alphas, scheduler.alphas_cumprod[ascending])
    assert_close(sampler.ddim_alphas_prev[1:], sampler.ddim_alphas[:-1])
    assert_close(sampler.ddim_sqrt_one_minus_alphas, (1 - sampler.ddim_alphas).sqrt())
    assert not sampler.ddim_sigmas.any()
    clean, t_enc = torch.full_like(noise, 0.3), int(0.75 * steps)
    encoded = sampler.stochastic_encode(clean, torch.tensor([t_enc] * 2), noise=noise)
    assert_close(encoded, scheduler.add_noise(clean, noise, ascending[[t_enc] * 2]))
    cond, none = torch.tensor([1.0, 2.0]), torch.zeros(2)
    settings = {"unconditional_guidance_scale": 3.0, "unconditional_conditioning": none}
    found = sampler.decode(encoded, cond, t_enc, **settings)
    x = encoded
    for t in scheduler.timesteps[steps - t_enc :]:
        without, with_ = (model.apply_model(x, t.repeat(2), c) for c in (none, cond))
        x = scheduler.step(without + 3 * (with_ - without), t, x).prev_sample
    assert_close(found, x, rtol=1e-4, atol=1e-4)


def test_the_originals_steps_are_those_of_training(noise):
    model = WavyModel()
    sampler = DDIMSampler(model)
    t = torch.tensor([500, 999])
    encoded = sampler.stochastic_encode(noise, t, use_original_steps=True, noise=noise)
    assert_close(encoded, model.q_sample(noise, t, noise))
    model.seen.clear()
    sampler.decode(noise, torch.zeros(2), 5, use_original_steps=True)
    assert [t for t, *_ in model.seen] == [4, 3, 2, 1, 0]


def test_what_the_original_left_to_an_index_error_is_named(noise):
    sampler = DDIMSampler(WavyModel())
    with pytest.raises(ValueError, match="call make_schedule first"):
        sampler.stochastic_encode(noise, torch.tensor([1, 1]))
    with pytest.raises(ValueError, match="ddim_discretize must be one of uniform, got 'quad'"):
        sampler.make_schedule(10, ddim_discretize="quad")
    sampler.make_schedule(10)
    with pytest.raises(ValueError, match=r"t must lie in 0\.\.9, got 10"):
        sampler.stochastic_encode(noise, torch.tensor([3, 10]))
    with pytest.raises(ValueError, match=r"t_start must lie in 1\.\.10, got 11"):
        sampler.decode(noise, torch.zeros(2), 11)
