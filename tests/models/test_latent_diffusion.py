"""The loss, its random numbers, what is frozen, what is kept: `LatentDiffusion` at tiny sizes."""

from contextlib import nullcontext

import pytest
import torch
from torch.testing import assert_close

from ldm.models.diffusion.batch_noise import BatchNoise, timesteps_of
from ldm.models.diffusion.ddim import DDIMSampler
from ldm.models.diffusion.ddpm import LatentDiffusion
from ldm.models.diffusion.plms import PLMSSampler
from ldm.randomness import Purpose, integers, normal
from tests.models.latent_models import (
    FIRST_STAGE,
    IDENTITY,
    UNET,
    WORDS,
    batch,
    complete,
    plain_model,
    text_model,
    unet,
)
from tests.modules.weights import randomize


@pytest.fixture
def model(tmp_path):
    return text_model(tmp_path, personalization_config=WORDS)


def latents(size=3):
    rng = torch.Generator().manual_seed(9)
    x, noise = torch.randn(2, size, 3, 8, 8, generator=rng)
    return x, noise, torch.tensor([0, 400, 999])[:size]


def test_noising_and_its_inverse():
    model = plain_model()
    x, noise, t = latents()
    abar = model.alphas_cumprod[t].reshape(3, 1, 1, 1)
    noisy = model.q_sample(x, t, noise)
    assert_close(noisy, abar.sqrt() * x + (1 - abar).sqrt() * noise)
    assert_close(model.predict_start_from_noise(noisy, t, noise), x, rtol=1e-3, atol=1e-3)
    v = abar.sqrt() * noise - (1 - abar).sqrt() * x
    assert_close(model.predict_noise_from_v(noisy, t, v), noise)
    assert model.q_sample(x, t).std() > 0.5


@pytest.mark.parametrize("loss_type", ["l1", "l2"])
def test_the_plain_loss_is_the_error_of_the_noise(loss_type):
    model = plain_model(loss_type=loss_type)
    x, noise, t = latents()
    result = model.p_losses(x, None, t, noise)
    error = model.apply_model(model.q_sample(x, t, noise), t, None) - noise
    expected = error.abs().mean() if loss_type == "l1" else error.square().mean()
    assert_close(result.loss, expected)
    assert_close(result.terms["loss_simple"], expected.detach())
    assert not any(term.requires_grad for term in result.terms.values())


def test_x0_models_are_trained_on_the_latent():
    model = plain_model(parameterization="x0")
    x, noise, t = latents()
    noisy = model.q_sample(x, t, noise)
    latent = model.model(noisy, t)
    assert_close(model.p_losses(x, None, t, noise).loss, (latent - x).square().mean())
    # Whoever samples sees the noise that this latent implies.
    eps = model.apply_model(noisy, t, None)
    assert_close(model.predict_start_from_noise(noisy, t, eps), latent, rtol=1e-3, atol=1e-3)


def test_a_text_encoder_of_another_width_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"width 16.*context_dim is 24"):
        text_model(tmp_path, unet_config=unet(use_spatial_transformer=True, context_dim=24))


def test_v_models_look_like_models_of_the_noise():
    """Weighted by 1/ā, the noise's error is that of v = √ā·ε − √(1−ā)·x_0."""
    model = plain_model(parameterization="v", loss_weighting="v")
    x, noise, t = latents()
    abar = model.alphas_cumprod[t].reshape(3, 1, 1, 1)
    noisy = model.q_sample(x, t, noise)
    output = model.model(noisy, t)
    v = abar.sqrt() * noise - (1 - abar).sqrt() * x
    expected = (output - v).square().mean()
    assert_close(model.p_losses(x, None, t, noise).loss, expected, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("parameterization", ["v", "x0"])
def test_a_timestep_between_two_is_interpolated(parameterization):
    """The `CompVisDenoiser` of k-diffusion asks for such timesteps by default."""
    model = plain_model(parameterization=parameterization)
    x, _, _ = latents()
    last = model.num_timesteps - 1.0
    whole = torch.tensor([0.0, 7.0, last])
    assert_close(model.apply_model(x, whole, None), model.apply_model(x, whole.long(), None))
    between = model.apply_model(x, torch.tensor([0.5, 7.5, last - 0.5]), None)
    assert between.isfinite().all()
    tables = model.sqrt_alphas_cumprod
    assert_close(
        model._at(tables, torch.tensor([7.25])),
        (0.75 * tables[7] + 0.25 * tables[8]).view(1, 1, 1, 1),
    )


def test_the_loss_of_a_batch_is_that_of_its_samples(model):
    """Noise, timestep and posterior are functions of (seed, sample): batching changes nothing."""
    torch.manual_seed(1)
    whole = model.training_step(complete(model, 3), 0)
    parts = [model.training_step(complete(model, 1, first=i), 0) for i in range(3)]
    assert_close(whole, torch.stack(parts).mean())
    assert_close(whole, model.training_step(complete(model, 3), 0))
    assert (whole - model.training_step(complete(model, 3, first=3), 0)).abs() > 1e-4
    model.seed = 24
    assert (whole - model.training_step(complete(model, 3), 0)).abs() > 1e-4


@pytest.mark.parametrize("weight", [1.0, 0.25])
def test_class_images_add_their_own_loss(tmp_path, weight):
    """By hand: the two mean square errors from their own latents, texts, timesteps and noise."""
    regularised = {"embedding_reg_weight": 0.5, "prior_weight": weight}
    model = text_model(tmp_path, personalization_config=WORDS, **regularised)
    with torch.no_grad():
        model.embedding_manager.word("*")[:] += 0.3
    own, other = complete(model, size=2), complete(model, size=2, first=7)
    terms = []
    for part in (own, other):
        samples = part["sample"].tolist()
        z = model.latents(part)
        t = integers(23, samples, 1000, Purpose.TIMESTEP)
        noise = normal(23, samples, z.shape[1:], Purpose.NOISE)
        cond = model.get_learned_conditioning(part["caption"])
        error = model.apply_model(model.q_sample(z, t, noise), t, cond) - noise
        terms.append(error.square().mean())
    distance = model.embedding_manager.distance_to_initializers()  # once, not with each of the two

    result = model.shared_step(own | {"prior": other})
    assert_close(result.loss, terms[0] + weight * terms[1] + 0.5 * distance)
    assert_close(result.terms["loss"], result.loss.detach())
    assert_close(result.terms["loss_prior"], terms[1].detach())
    assert_close(result.terms["loss_simple"], terms[0].detach())
    result.loss.backward()
    assert model.embedding_manager.string_to_param_dict["*"].grad.abs().sum() > 0


def test_latents_are_scaled_samples_of_the_posterior(model):
    data = complete(model, 2)
    posterior = model.encode_first_stage(model.images(data))
    noise = normal(model.seed, [0, 1], (3, 8, 8), Purpose.POSTERIOR)
    assert_close(model.latents(data), 0.5 * (posterior.mean + posterior.std * noise))
    assert_close(model.decode_first_stage(0.5 * noise), model.first_stage_model.decode(noise))
    # A batch with the posterior's parameters needs no images.
    known = {"sample": data["sample"], "moments": torch.randn(2, 2, 2, 2)}
    known |= model.batch_noise()(known)
    mean, logvar = known["moments"].chunk(2, 1)
    noise = normal(model.seed, [0, 1], (1, 2, 2), Purpose.POSTERIOR)
    assert_close(model.latents(known), 0.5 * (mean + (logvar / 2).exp() * noise))


def test_the_originals_scripts_get_latents_and_conditions(model):
    """The calls of its `log_images` and `training_step`."""
    data = batch()
    z, c = model.get_input(data, "image")
    assert z.shape == (3, 3, 8, 8)
    assert_close(c, model.get_learned_conditioning(data["caption"]))
    z, c, x, again, texts = model.get_input(
        data,
        "image",
        return_first_stage_outputs=True,
        force_c_encode=True,
        cond_key="caption",
        return_original_cond=True,
        bs=2,
    )
    assert (len(z), len(c), texts) == (2, 2, data["caption"][:2])
    assert_close(x, data["image"][:2].permute(0, 3, 1, 2))
    assert_close(again, model.decode_first_stage(z))
    model.cond_stage_trainable = True
    assert model.get_input(data, "image")[1] == data["caption"]


@pytest.mark.parametrize("power", [1.0, 2.0, 3.0])
@pytest.mark.parametrize("numbered", [True, False])
def test_the_density_of_the_timesteps(power, numbered):
    """P(t < x·T) = x^power, by sample number or from torch."""
    if numbered:
        noise = BatchNoise(23, 1, 1, "image", 1000, power)
        t = noise({"sample": torch.arange(4000), "image": torch.zeros(4000, 1, 1, 1)})["timestep"]
    else:
        u = torch.rand(4000, generator=torch.Generator().manual_seed(0))
        t = timesteps_of(u, 1000, power)
    assert t.dtype == torch.int64
    assert t.min() >= 0
    assert t.max() < 1000
    for share in (0.25, 0.5, 0.75):
        assert abs((t < 1000 * share).float().mean() - share**power) < 0.03
    assert len(t.unique()) > 500


def test_batches_without_sample_numbers_use_the_generator_of_torch(model):
    data = {k: v for k, v in batch(2).items() if k != "sample"}
    torch.manual_seed(3)
    first = model.training_step(data, 0)
    assert (first - model.training_step(data, 0)).abs() > 0
    torch.manual_seed(3)
    assert_close(model.training_step(data, 0), first)


def test_only_the_words_are_trained(model):
    model.train()
    trained = [n for n, p in model.named_parameters() if p.requires_grad]
    assert len(trained) == 1
    assert trained[0].startswith("embedding_manager.")
    for part in (model.model, model.first_stage_model, model.cond_stage_model):
        assert not any(module.training for module in part.modules())
    assert model.training
    model.training_step(complete(model, 3), 0).backward()
    assert [n for n, p in model.named_parameters() if p.grad is not None] == trained
    (group,) = model.configure_optimizers().param_groups
    assert group["weight_decay"] == 0.01
    assert len(group["params"]) == 1


def test_an_unfrozen_model_has_its_own_rate(tmp_path):
    model = text_model(
        tmp_path,
        personalization_config=WORDS,
        unfreeze_model=True,
        model_lr=1e-7,
        cond_stage_trainable=True,
    ).train()
    model.learning_rate = 0.1
    words, others = model.configure_optimizers().param_groups
    assert (words["lr"], others["lr"]) == (0.1, 1e-7)
    names = {n for n, p in model.named_parameters() if any(p is q for q in others["params"])}
    assert {n.split(".")[0] for n in names} == {"model", "cond_stage_model"}
    assert model.model.training
    assert not model.first_stage_model.training


def test_the_text_encoder_may_have_a_rate_of_its_own(tmp_path):
    unfrozen = {"unfreeze_model": True, "cond_stage_trainable": True, "model_lr": 1e-6}
    model = text_model(tmp_path, personalization_config=WORDS, text_lr=1e-7, **unfrozen)
    model.learning_rate = 5e-5
    words, network, texts = model.configure_optimizers().param_groups
    assert [group["lr"] for group in (words, network, texts)] == [5e-5, 1e-6, 1e-7]
    assert {id(p) for p in texts["params"]} == {id(p) for p in model.cond_stage_model.parameters()}
    assert {id(p) for p in network["params"]} == {id(p) for p in model.model.parameters()}


def test_without_words_the_network_is_trained(tmp_path):
    model = text_model(tmp_path).train()
    names = {n.split(".")[0] for n, p in model.named_parameters() if p.requires_grad}
    assert names == {"model"}
    both = text_model(tmp_path, cond_stage_trainable=True).train()
    names = {n.split(".")[0] for n, p in both.named_parameters() if p.requires_grad}
    assert names == {"model", "cond_stage_model"}


def test_a_schedule_of_the_rate():
    scheduler = {
        "target": "ldm.lr_scheduler.LambdaLinearScheduler",
        "params": {
            "warm_up_steps": [2],
            "cycle_lengths": [10],
            "f_start": [0.5],
            "f_max": [1.0],
            "f_min": [1.0],
        },
    }
    model = plain_model(scheduler_config=scheduler)
    model.learning_rate = 0.2
    (optimizer,), (entry,) = model.configure_optimizers()
    assert entry["interval"] == "step"
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.1)


def test_a_resumed_run_follows_the_schedule_of_its_own_configuration():
    def schedule(decay_start):
        model = plain_model(
            scheduler_config={
                "target": "ldm.lr_scheduler.LambdaWarmUpStableDecayScheduler",
                "params": {"warm_up_steps": 1, "decay_start": decay_start, "decay_steps": 4},
            }
        )
        model.learning_rate = 0.2
        (optimizer,), (entry,) = model.configure_optimizers()
        return optimizer, entry["scheduler"]

    _, plateau = schedule(decay_start=1000)
    optimizer, decay = schedule(decay_start=2)
    state = plateau.state_dict() | {"last_epoch": 3}
    decay.load_state_dict(state)
    optimizer.step()
    decay.step()
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.1)  # two of four steps down


def test_a_checkpoint_of_a_run_holds_what_is_trained(tmp_path, model):
    def kept(of):
        checkpoint = {"state_dict": of.state_dict()}
        of.on_save_checkpoint(checkpoint)
        return set(checkpoint["state_dict"])

    assert {n.split(".")[0] for n in kept(model)} == {"embedding_manager"}
    idle_copy = text_model(tmp_path, personalization_config=WORDS, use_ema=True)
    assert {n.split(".")[0] for n in kept(idle_copy)} == {"embedding_manager"}
    full = text_model(tmp_path, use_ema=True, scale_by_std=True, scale_factor=1.0)
    assert {n.split(".")[0] for n in kept(full)} == {"model", "model_ema", "scale_factor"}
    assert not full.strict_loading


def test_regularization_pulls_the_word_to_its_initializer_word(tmp_path):
    model = text_model(tmp_path, personalization_config=WORDS, embedding_reg_weight=0.3)
    x, noise, t = latents()
    with torch.no_grad():
        encoder = model.cond_stage_model
        cat = encoder.vocab_table[encoder.word_ids("cat")]
        model.embedding_manager.word("*").copy_(cat + 1.0)
    cond = model.get_learned_conditioning(["*"] * 3)
    result = model.p_losses(x, cond, t, noise)
    assert_close(result.terms["loss_embedding_reg"], torch.tensor(16.0))
    assert_close(result.loss.detach(), result.terms["loss_simple"] + 0.3 * 16)


def test_averaged_weights_and_their_scope():
    model = plain_model(use_ema=True, ema_decay=0.9)
    weight = model.model.diffusion_model.out[2].weight
    averaged = model.model_ema.diffusion_modelout2weight.clone()
    own = weight.detach().clone()
    assert (own - averaged).abs().max() > 0  # the copy is of the weights before `randomize`

    def fail():
        with model.ema_scope():
            assert_close(weight.detach(), averaged)
            raise KeyError("inside")

    with pytest.raises(KeyError, match="inside"):
        fail()
    assert_close(weight.detach(), own)
    model.on_train_batch_end(None, None, 0)
    decay = 2 / 11
    assert_close(model.model_ema.diffusion_modelout2weight, decay * averaged + (1 - decay) * own)
    without = plain_model()
    with without.ema_scope():
        assert without.model_ema is None


@pytest.mark.parametrize("only_unet", [False, True])
def test_averages_that_a_file_lacks_start_at_its_weights(tmp_path, only_unet):
    """A file's own averages are read; without them the averages are the weights of the file."""
    source = plain_model(use_ema=True)
    state = source.state_dict()
    weights = {n: w for n, w in state.items() if not n.startswith("model_ema.")}
    torch.save({"state_dict": weights}, tmp_path / "weights.ckpt")
    torch.save({"state_dict": state}, tmp_path / "full.ckpt")
    options = {
        **{"unet_config": UNET, "first_stage_config": IDENTITY, "use_ema": True},
        **{"cond_stage_config": "__is_unconditional__", "load_only_unet": only_unet},
    }
    torch.manual_seed(1)
    model = LatentDiffusion(**options, ckpt_path=str(tmp_path / "weights.ckpt"))
    for name, weight in model.model.named_parameters():
        assert_close(weight, source.model.get_parameter(name))
        assert_close(model.model_ema.get_buffer(name.replace(".", "")), weight.detach())
    full = LatentDiffusion(**options, ckpt_path=str(tmp_path / "full.ckpt"))
    weight = source.model.diffusion_model.out[2].weight.detach()
    own = weight if only_unet else source.model_ema.diffusion_modelout2weight
    assert_close(full.model_ema.diffusion_modelout2weight, own)


def test_validation_logs_both_and_the_words_leave_the_averages_alone(tmp_path):
    model = text_model(tmp_path, personalization_config=WORDS, use_ema=True)
    logged = {}
    model.log_dict = lambda terms, **_: logged.update(terms)
    model.validation_step(batch(2), 0)
    assert (logged["val/loss_simple"] - logged["val/loss_simple_ema"]).abs() > 1e-5
    before = {n: b.clone() for n, b in model.model_ema.named_buffers()}
    model.on_train_batch_end(None, None, 0)
    assert_close(dict(model.model_ema.named_buffers()), before)


def test_the_scale_is_measured_at_the_first_batch():
    model = plain_model(scale_by_std=True, first_stage_config=FIRST_STAGE)
    randomize(model.first_stage_model)
    data = {"image": batch(3)["image"], "posterior_noise": torch.randn(3, 3, 8, 8)}
    raw = model.latents(data)
    model.on_train_batch_start(data, 1)
    assert model.scale_factor == 1
    model.on_train_batch_start(data, 0)
    assert_close(model.latents(data).std(), torch.tensor(1.0))
    assert_close(model.scale_factor, 1 / raw.std())
    model.on_train_batch_start(data | {"image": 3 * data["image"]}, 0)
    assert_close(model.scale_factor, 1 / raw.std())
    assert "scale_factor" in model.state_dict()


def test_conditions_that_are_images_are_stacked_on_the_latent():
    """Super-resolution, maps of classes and inpainting: the original's `concat` models."""
    wide = unet(in_channels=6)
    stage = {"first_stage_config": IDENTITY, "cond_stage_key": "hint", "unet_config": wide}
    hint = torch.rand(2, 8, 8, 3)
    data = {"image": torch.rand(2, 8, 8, 3), "hint": hint, "sample": torch.arange(2)}
    data |= plain_model().batch_noise()(data)
    same = plain_model(cond_stage_config={"target": "torch.nn.Identity"}, **stage)
    assert_close(same.get_learned_conditioning(same.conditions(data)), hint.permute(0, 3, 1, 2))
    first = plain_model(cond_stage_config="__is_first_stage__", **stage)
    assert_close(same.shared_step(data).loss, first.shared_step(data).loss)
    x, _, t = latents(2)
    rows = hint.permute(0, 3, 1, 2)
    expected = same.model.diffusion_model(torch.cat([x, rows], 1), t)
    for cond in (rows, [rows], {"c_concat": [rows]}):
        assert_close(same.apply_model(x, t, cond), expected)
    rescaler = {
        "target": "ldm.modules.encoders.modules.SpatialRescaler",
        "params": {"n_stages": 1, "in_channels": 3, "out_channels": 3},
    }
    halved = plain_model(cond_stage_config=rescaler, cond_stage_trainable=True, **stage)
    data["hint"] = torch.rand(2, 16, 16, 3)
    halved.shared_step(data).loss.backward()
    assert halved.cond_stage_model.channel_mapper.weight.grad.abs().sum() > 0


def test_classes_condition_by_attention_or_by_the_time_embedding():
    embedder = {
        "target": "ldm.modules.encoders.modules.ClassEmbedder",
        "params": {"embed_dim": 16, "n_classes": 4, "key": "class_label"},
    }
    network = unet(use_spatial_transformer=True, context_dim=16)
    data = {"image": torch.rand(2, 8, 8, 3), "class_label": torch.tensor([3, 1])}
    data["sample"] = torch.arange(2)
    model = plain_model(
        unet_config=network,
        cond_stage_config=embedder,
        conditioning_key="crossattn",
        cond_stage_key="class_label",
        cond_stage_trainable=True,
    )
    model.shared_step(data).loss.backward()
    rows = model.cond_stage_model.embedding.weight.grad.abs().sum(1) > 0
    assert rows.tolist() == [False, True, False, True]
    labels = plain_model(
        unet_config=unet(num_classes=4),
        cond_stage_config={"target": "torch.nn.Identity"},
        conditioning_key="adm",
        cond_stage_key="class_label",
    )
    x, _, t = latents(2)
    expected = labels.model.diffusion_model(x, t, y=data["class_label"])
    assert_close(labels.apply_model(x, t, data["class_label"]), expected)
    assert labels.shared_step(data).loss.isfinite()


def test_hybrid_conditions():
    model = plain_model(
        unet_config=unet(in_channels=5, use_spatial_transformer=True, context_dim=16),
        cond_stage_config={"target": "torch.nn.Identity"},
        conditioning_key="hybrid",
    )
    x, _, t = latents(2)
    image, text = torch.randn(2, 2, 8, 8), torch.randn(2, 3, 16)
    cond = {"c_concat": [image], "c_crossattn": [text[:, :1], text[:, 1:]]}
    expected = model.model.diffusion_model(torch.cat([x, image], 1), t, text)
    assert_close(model.apply_model(x, t, cond), expected)


def test_networks_in_half_precision_take_and_give_single(model):
    x, _, t = latents(2)
    cond = model.get_learned_conditioning(["a photo of *", ""])
    single = model.apply_model(x, t, cond), model.decode_first_stage(x)
    model.model.bfloat16()
    model.first_stage_model.bfloat16()
    half = model.apply_model(x, t, cond), model.decode_first_stage(x)
    assert [h.dtype for h in half] == [torch.float32] * 2
    for h, s in zip(half, single, strict=True):
        assert 0 < (h - s).norm() / s.norm() < 0.05
    assert model.encode_first_stage(torch.rand(1, 3, 16, 16)).mean.isfinite().all()


def test_the_empty_prompt_passes_through_the_words_too(model):
    seen = []
    model.embedding_manager.register_forward_hook(lambda _, given, __: seen.append(len(given[0])))
    model.get_learned_conditioning([""])
    assert seen == [1]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"loss_type": "l3"}, r"loss_type must be .* got 'l3'"),
        ({"parameterization": "u"}, "parameterization must be"),
        ({"loss_weighting": "snr"}, "loss_weighting must be"),
        ({"loss_weighting": "v", "parameterization": "x0"}, "loss_weighting 'v' needs"),
        ({"num_timesteps_cond": 3}, "num_timesteps_cond must be 1"),
        ({"conditioning_key": "film", "cond_stage_config": IDENTITY}, "conditioning_key must be"),
        ({"beta_schedule": "quartic"}, "beta_schedule must be"),
        ({"timestep_power": 0.0}, "timestep_power must be above 0"),
        ({"timestep_strata": 0}, "timestep_strata must be at least 1"),
    ],
)
def test_options_that_do_not_exist_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        plain_model(**options)


def test_unknown_parameters_are_named():
    with pytest.raises(TypeError, match="scale_facter"):
        LatentDiffusion(UNET, IDENTITY, "__is_unconditional__", scale_facter=1.0)


def count_keys(model):
    """Count the computations of keys from a text."""
    counts = []
    for name, layer in model.model.named_modules():
        if name.endswith("attn2.to_k"):
            layer.register_forward_hook(lambda *_, name=name: counts.append(name))
    return counts


@pytest.mark.parametrize("sampler", [DDIMSampler, PLMSSampler])
@pytest.mark.parametrize("form", [lambda c: c, lambda c: {"c_crossattn": [c[:, :4], c[:, 4:]]}])
def test_keys_of_a_text_are_computed_once_while_sampling(tmp_path, sampler, form):
    model = text_model(tmp_path).eval()
    with torch.no_grad():
        texts = [form(model.get_learned_conditioning([t] * 2)) for t in ("a cat", "")]
    options = {
        "S": 6,
        "batch_size": 2,
        "shape": (3, 8, 8),
        "conditioning": texts[0],
        "unconditional_conditioning": texts[1],
        "unconditional_guidance_scale": 4.0,
        "x_T": torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(2)),
        "verbose": False,
    }
    counts = count_keys(model)
    samples, _ = sampler(model).sample(**options)
    assert len(counts) == len(set(counts)) > 0
    # Outside of the loop nothing is kept, so new weights count.
    counts.clear()
    model.constant_context = nullcontext
    expected, _ = sampler(model).sample(**options)
    assert len(counts) >= 6 * len(set(counts))
    assert torch.equal(samples, expected)
    del model.constant_context
    with torch.no_grad():
        for name, layer in model.model.named_modules():
            if name.endswith("attn2.to_k"):
                layer.weight.neg_()
    assert not torch.allclose(sampler(model).sample(**options)[0], expected)


def test_a_context_of_other_values_is_computed_again(tmp_path):
    model = text_model(tmp_path).eval()
    x, _, t = latents(2)
    first, second = torch.randn(2, 2, 8, 16)
    with torch.no_grad():
        expected = [model.apply_model(x, t, c) for c in (first, second)]
        with model.constant_context():
            for _ in range(2):
                for cond, value in zip((first, second), expected, strict=True):
                    assert torch.equal(model.apply_model(x, t, cond), value)
