"""A weight delta as a whole model and as a LoRA: diffusers' networks move as ours."""

from __future__ import annotations

import shutil

import pytest
import torch
from diffusers import DiffusionPipeline
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch.testing import assert_close

from ldm.checkpoint.files import checkpoint_hash
from ldm.checkpoint.lora import export_delta, factors
from ldm.checkpoint.weight_delta import FORMAT, apply_weight_delta
from ldm.cli.convert_model import main
from ldm.inference import load_model, load_words
from ldm.util import UserError
from ldm.words.files import WordFile, read_words, write_words
from tests.checkpoint.pipelines import PIPELINES
from tests.checkpoint.test_folders import relative, text_states

MOVED = (
    "attn1.to_q.weight",
    "in_layers.2.weight",
    "proj_in.weight",
    "q_proj.weight",
    "mlp.fc1.weight",
    "attn.in_proj_weight",
    "mlp.c_fc.weight",
    "text_projection",
)
MOVED_BIAS = "in_layers.2.bias"


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    folder = tmp_path_factory.mktemp("lora")
    PIPELINES["sd1"](folder).save_pretrained(folder / "pipeline")
    assert main([str(folder / "pipeline"), str(folder / "base.safetensors")]) == 0
    return folder / "base.safetensors"


@pytest.fixture
def delta(base, tmp_path):
    return write_delta(base, tmp_path / "weight_delta.safetensors", MOVED)


def write_delta(base, path, endings):
    rng = torch.Generator().manual_seed(3)
    moved = {
        name: 0.02 * torch.randn(value.shape, generator=rng)
        for name, value in load_file(base).items()
        if name.endswith(endings) and not name.startswith("first_stage_model.")
    }
    facts = {"format": FORMAT, "base_checkpoint": base.name}
    save_file(moved, path, {**facts, "base_checkpoint_hash": checkpoint_hash(base)})
    return path


def tuned(base, delta):
    model = load_model(base)
    apply_weight_delta(model, delta, base)
    return model.state_dict()


def test_a_whole_model(base, delta, tmp_path):
    out = tmp_path / "tuned.safetensors"
    assert main([str(base), str(out), "--weight_delta", str(delta)]) == 0
    found, want = load_model(out).state_dict(), tuned(base, delta)
    assert found.keys() == want.keys()
    for name, value in want.items():
        assert_close(found[name], value, rtol=0, atol=1e-7, msg=name)


@torch.no_grad()
@pytest.mark.parametrize("family", ["sd1", "sdxl"])
def test_a_whole_model_as_a_folder(family, tmp_path):
    """A pipeline of diffusers opens the tuned model, and it acts as the delta does here."""
    PIPELINES[family](tmp_path / "vocabulary").save_pretrained(tmp_path / "pipeline")
    base, out = tmp_path / "base.safetensors", tmp_path / "tuned"
    assert main([str(tmp_path / "pipeline"), str(base)]) == 0
    delta = write_delta(base, tmp_path / "weight_delta.safetensors", MOVED)
    assert main([str(base), str(out), "--weight_delta", str(delta)]) == 0
    before, after = (
        DiffusionPipeline.from_pretrained(path) for path in (tmp_path / "pipeline", out)
    )
    model, rng = load_model(base, weight_delta=delta), torch.Generator().manual_seed(5)
    x, t = torch.randn(1, 4, 8, 8, generator=rng), torch.tensor([500])
    condition = model.get_learned_conditioning(["a photo of cat"])
    found = model.apply_model(x, t, condition)
    plain, wanted = (
        pipeline.unet(x, t, encoder_hidden_states=states, added_cond_kwargs=added).sample
        for pipeline in (before, after)
        for states, added in [text_states(pipeline, family, "a photo of cat")]
    )
    assert relative(found, wanted) < 1e-4
    assert relative(plain, wanted) > 0.02


PROMPT = "a photo of my-cat, cat"
# Components of a pipeline under kohya's prefixes; SDXL's text encoders have others.
KOHYA = {"unet": "lora_unet", "text_encoder": "lora_te", "text_encoder_2": "lora_te2"}


def move(network, prefix, held):
    """Add a LoRA to a network of diffusers by kohya's rule; return the names of the file used.

    W + alpha / rank * up @ down, at the module that the name spells with "_".
    """
    used = set()
    for name, module in network.named_modules():
        # transformers 5 has no level "text_model" any more; kohya's names keep it.
        alone = prefix == "lora_unet" or name.startswith(("text_model.", "text_projection"))
        stem = f"{prefix}_{(name if alone else f'text_model.{name}').replace('.', '_')}"
        if f"{stem}.alpha" in held:
            up, down = (held[f"{stem}.lora_{part}.weight"].float() for part in ("up", "down"))
            change = (up.flatten(1) @ down.flatten(1)).reshape(module.weight.shape)
            module.weight.data += held[f"{stem}.alpha"] / len(down) * change
            used |= {key for key in held if key.startswith(f"{stem}.")}
    return used


def learn(pipeline, held):
    """Give a pipeline the word that a LoRA bundles, as `load_textual_inversion` does it."""
    word = {key: held[f"bundle_emb.my-cat.{key}"] for key in ("clip_l", "clip_g")
            if f"bundle_emb.my-cat.{key}" in held}  # fmt: skip
    if not word:
        pipeline.load_textual_inversion({"my-cat": held["bundle_emb.my-cat.string_to_param.*"]})
        return {"bundle_emb.my-cat.string_to_param.*"}
    parts = (pipeline.text_encoder, pipeline.text_encoder_2)
    tokenizers = (pipeline.tokenizer, pipeline.tokenizer_2)
    for key, encoder, tokenizer in zip(word, parts, tokenizers, strict=True):
        pipeline.load_textual_inversion(
            {"my-cat": word[key]}, text_encoder=encoder, tokenizer=tokenizer
        )
    return {f"bundle_emb.my-cat.{key}" for key in word}


@pytest.mark.parametrize("family", ["sd1", "sd2", "sd2-v", "sdxl"])
@torch.no_grad()
def test_a_lora_with_its_word_acts_in_diffusers_as_the_delta_here(family, tmp_path):
    pipeline = PIPELINES[family](tmp_path)
    pipeline.save_pretrained(tmp_path / "pipeline")
    base, out = tmp_path / f"{family}.safetensors", tmp_path / "cat.safetensors"
    assert main([str(tmp_path / "pipeline"), str(base)]) == 0
    delta = write_delta(base, tmp_path / "weight_delta.safetensors", MOVED)
    rng = torch.Generator().manual_seed(5)
    second = {"my-cat": torch.randn(2, 16, generator=rng)} if family == "sdxl" else {}
    words = WordFile({"my-cat": torch.randn(2, 32, generator=rng)}, second=second)
    assert export_delta(delta, base, out, rank=1000, words=words) < 1e-3

    model = load_model(base, weight_delta=delta)
    load_words(model, out, [PROMPT])
    x, t = torch.randn(1, 4, 8, 8, generator=rng), torch.tensor([500])
    condition = model.model.conditions(model.get_learned_conditioning([PROMPT]))
    held = load_file(out)
    used = learn(pipeline, held)
    spelled = PROMPT  # SDXL's pipeline spells a word of several vectors itself
    if family != "sdxl":
        spelled = pipeline.maybe_convert_prompt(PROMPT, pipeline.tokenizer)
    plain, added = text_states(pipeline, family, spelled)
    before = pipeline.unet(x, t, encoder_hidden_states=plain, added_cond_kwargs=added).sample
    for component, prefix in KOHYA.items():
        if hasattr(pipeline, component):
            if family == "sdxl" and component == "text_encoder":
                prefix = "lora_te1"
            used |= move(getattr(pipeline, component), prefix, held)
    assert used == set(held)
    alone = {key: value for key, value in held.items() if not key.startswith("bundle_emb.")}
    save_file(alone, tmp_path / "alone.safetensors")
    options = {"unet_config": pipeline.unet.config} if family == "sdxl" else {}
    read, alphas = pipeline.lora_state_dict(str(tmp_path / "alone.safetensors"), **options)
    assert 3 * len(alphas) == len(read) + len(alphas) == len(alone)  # diffusers knows every name
    states, added = text_states(pipeline, family, spelled)
    wanted = pipeline.unet(x, t, encoder_hidden_states=states, added_cond_kwargs=added).sample
    # The file is in half precision.
    assert relative(condition["c_crossattn"][0], states) < 1e-3
    assert relative(model.model(x, t, **condition), wanted) < 1e-3
    assert relative(plain, states) > 0.02
    assert relative(before, wanted) > 0.02


@pytest.mark.parametrize("shape", [(5, 9), (9, 5), (6, 4, 3, 3), (30, 2, 3, 3), (7, 5, 1, 1)])
@pytest.mark.parametrize("rank", [1, 3])
def test_factors_are_the_nearest_of_their_rank(shape, rank):
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    up, down = factors(matrix, rank)
    assert up.shape == (shape[0], rank, *(1,) * (len(shape) - 2))
    assert down.shape == (rank, *shape[1:])
    error = (matrix.flatten(1) - up.flatten(1) @ down.flatten(1)).square().sum()
    assert_close(error, torch.linalg.svdvals(matrix.flatten(1))[rank:].square().sum())


def test_the_stated_error_counts_what_has_no_place(base, tmp_path):
    path = write_delta(base, tmp_path / "d.safetensors", (*MOVED, MOVED_BIAS))
    errors = [export_delta(path, base, tmp_path / f"{r}.safetensors", rank=r) for r in (1, 4, 1000)]
    assert errors[0] > errors[1] > errors[2]
    values = load_file(path)
    lost = sum(v.square().sum().item() for n, v in values.items() if n.endswith(MOVED_BIAS))
    whole = sum(v.square().sum().item() for v in values.values())
    assert errors[2] == pytest.approx((lost / whole) ** 0.5, 1e-2)
    with safe_open(tmp_path / "1.safetensors", "pt") as file:
        facts = file.metadata()
    assert float(facts["relative_error"]) == pytest.approx(errors[0], 1e-3)
    assert (facts["ss_network_module"], facts["ss_network_dim"]) == ("networks.lora", "1")


def test_the_word_travels_in_the_lora(base, delta, tmp_path):
    word, out = tmp_path / "embeddings.safetensors", tmp_path / "cat.safetensors"
    write_words(word, {"*": torch.ones(2, 32)})
    arguments = ["--weight_delta", str(delta), "--lora", "2", "--embedding_path", f"my-cat={word}"]
    assert main([str(base), str(out), *arguments]) == 0
    assert "bundle_emb.my-cat.string_to_param.*" in load_file(out)
    assert_close(read_words(out).words, {"my-cat": torch.ones(2, 32)})


@pytest.mark.parametrize(
    ("out", "options", "message"),
    [
        ("x.safetensors", ["--lora", "0"], "at least 1"),
        ("x.ckpt", ["--lora", "4"], "must end in .safetensors"),
        ("base", ["--lora", "4"], "exists"),
        ("x", ["--embedding_path", "word.safetensors"], "with a LoRA only"),
        ("x", ["--half"], "--half is for bases"),
        (
            "x.safetensors",
            ["--lora", "2", "--embedding_path", "my.cat=word.safetensors"],
            "name at a dot, got 'my.cat'",
        ),
    ],
)
def test_mistakes_are_one_line(base, delta, tmp_path, monkeypatch, out, options, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "base").mkdir()
    write_words("word.safetensors", {"*": torch.ones(2, 32)})
    with pytest.raises(UserError, match=message) as caught:
        main([str(base), out, "--weight_delta", str(delta), *options])
    assert "\n" not in str(caught.value)
    assert not (tmp_path / out).is_file()


def test_options_without_a_delta_and_another_base_are_refused(base, delta, tmp_path):
    with pytest.raises(UserError, match="need --weight_delta"):
        main([str(base), str(tmp_path / "x"), "--lora", "4"])
    other = tmp_path / "other.safetensors"
    save_file(load_file(base) | {"extra": torch.ones(3)}, other)
    shutil.copy(base.with_suffix(".yaml"), other.with_suffix(".yaml"))
    with pytest.raises(UserError, match="choose the one that tuning began from"):
        main([str(other), str(tmp_path / "x"), "--weight_delta", str(delta)])
