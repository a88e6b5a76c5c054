"""A weight delta as a whole model and as a LoRA: diffusers' networks move as ours."""

from __future__ import annotations

import shutil

import diffusers
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch.testing import assert_close

from ldm.checkpoint.files import checkpoint_hash
from ldm.checkpoint.lora import export_delta, factors
from ldm.checkpoint.weight_delta import FORMAT, apply_weight_delta
from ldm.cli.convert_model import main
from ldm.inference import load_model
from ldm.util import UserError
from ldm.words.files import read_words, write_words
from tests.checkpoint.pipelines import PIPELINES

MOVED = (
    "attn1.to_q.weight",
    "in_layers.2.weight",
    "proj_in.weight",
    "q_proj.weight",
    "mlp.fc1.weight",
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


def networks(folder):
    """The networks of a folder that a LoRA moves, under kohya's prefixes."""
    pipeline = diffusers.StableDiffusionPipeline.from_pretrained(folder)
    return {"lora_unet": pipeline.unet, "lora_te": pipeline.text_encoder}


def test_a_lora_of_full_rank_moves_diffusers_as_the_whole_model(base, delta, tmp_path):
    """Kohya's rule: W + alpha / rank * up @ down, at the module that the name spells with "_"."""
    assert main([str(base), str(tmp_path / "tuned"), "--weight_delta", str(delta)]) == 0
    out = tmp_path / "cat.safetensors"
    assert export_delta(delta, base, out, rank=1000) < 1e-3
    held, used = load_file(out), set()
    before, after = (networks(path) for path in (base.parent / "pipeline", tmp_path / "tuned"))
    for prefix, network in before.items():
        wanted = dict(after[prefix].named_modules())
        for name, module in network.named_modules():
            # transformers 5 has no level "text_model" any more; kohya's names keep it.
            own = (
                name
                if prefix == "lora_unet" or name.startswith("text_model.")
                else f"text_model.{name}"
            )
            stem = f"{prefix}_{own.replace('.', '_')}"
            if f"{stem}.alpha" not in held:
                continue
            parts = [held[f"{stem}.lora_{part}.weight"].float() for part in ("up", "down")]
            change = (parts[0].flatten(1) @ parts[1].flatten(1)).reshape(module.weight.shape)
            scale = held[f"{stem}.alpha"] / len(parts[1])
            assert_close(module.weight + scale * change, wanted[name].weight, atol=1e-4, rtol=0)
            assert (module.weight - wanted[name].weight).abs().max() > 1e-3
            used |= {key for key in held if key.startswith(f"{stem}.")}
    assert used == set(held)
    assert any(
        key.startswith("lora_te_text_model_encoder_layers_0_self_attn_q_proj") for key in used
    )


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
