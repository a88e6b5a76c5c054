"""The loader: every form of file, names that drifted, and files that are something else."""

from __future__ import annotations

import argparse
import pickle
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf
from safetensors.torch import load_file, save_file
from torch import nn
from torch.testing import assert_close

from ldm.checkpoint.files import mapped_ranges, release
from ldm.checkpoint.loading import (
    checkpoint_hash,
    load_model,
    load_state,
    read_config,
    read_state_dict,
)
from ldm.checkpoint.names import SCHEDULE, describe
from ldm.models.autoencoder import AutoencoderKL
from ldm.util import UserError, instantiate_from_config


def own_entries(model):
    return {k: v for k, v in model.state_dict().items() if not k.startswith("embedding_manager.")}


@pytest.mark.parametrize("form", ["checkpoint", "ckpt"])
def test_every_weight_is_the_files(tiny, form):
    model = load_model(tiny.config, getattr(tiny, form))
    stored = load_file(tiny.checkpoint)
    got = own_entries(model)
    assert got.keys() == stored.keys()
    for name, value in got.items():
        assert_close(value, stored[name], rtol=0, atol=0)
    assert not model.training
    assert not any(p.is_meta for p in model.parameters())
    assert not any(b.is_meta for b in model.buffers())


def test_a_loaded_model_predicts_what_the_saved_one_does(tiny):
    model = load_model(tiny.config, tiny.checkpoint)
    eager = load_model(tiny.config, None)
    eager.load_state_dict(load_file(tiny.checkpoint), strict=False)
    eager.embedding_manager.initialize()
    x, t = torch.randn(2, 4, 8, 8), torch.tensor([10, 900])
    with torch.no_grad():
        for_text = [m.get_learned_conditioning(["a photo of *", ""]) for m in (model, eager)]
        assert_close(for_text[0], for_text[1])
        assert_close(model.apply_model(x, t, for_text[0]), eager.apply_model(x, t, for_text[0]))
        assert_close(model.decode_first_stage(x), eager.decode_first_stage(x))


def test_the_word_starts_from_the_loaded_vocabulary(tiny):
    model = load_model(tiny.config, tiny.checkpoint)
    cat = model.cond_stage_model.word_ids("cat")[0]
    assert_close(model.embedding_manager.word("*")[0], model.cond_stage_model.vocab_table[cat])


def test_only_the_word_is_trainable_after_loading(tiny):
    model = load_model(tiny.config, tiny.checkpoint)
    trainable = [name for name, p in model.named_parameters() if p.requires_grad]
    assert trainable == ["embedding_manager.string_to_param_dict.*"]


def test_weights_convert_and_schedule_and_words_do_not(tiny):
    model = load_model(tiny.config, tiny.checkpoint, dtype=torch.bfloat16)
    assert model.first_stage_model.decoder.conv_in.weight.dtype == torch.bfloat16
    weight = model.model.diffusion_model.out[2].weight
    assert weight.dtype == torch.bfloat16
    assert weight.is_contiguous(memory_format=torch.channels_last)
    assert not weight.is_contiguous(), "the order of float32"
    assert model.alphas_cumprod.dtype == torch.float32
    assert model.embedding_manager.word("*").dtype == torch.float32


def test_half_precision_files_load_as_float32(tiny, tmp_path):
    half = {k: v.half() for k, v in load_file(tiny.checkpoint).items()}
    save_file(half, tmp_path / "half.safetensors")
    model = load_model(tiny.config, tmp_path / "half.safetensors")
    assert {p.dtype for p in model.parameters()} == {torch.float32}


def test_schedule_is_computed_where_the_file_lacks_it(tiny, tmp_path):
    stored = load_file(tiny.checkpoint)
    networks = {k: v for k, v in stored.items() if "." in k}
    save_file(networks, tmp_path / "networks.safetensors")
    model = load_model(tiny.config, tmp_path / "networks.safetensors")
    assert_close(model.alphas_cumprod, stored["alphas_cumprod"])
    assert_close(model.posterior_mean_coef2, stored["posterior_mean_coef2"])


def test_missing_and_unexpected_names_are_reported(tiny):
    model = load_model(tiny.config, tiny.checkpoint)
    state = read_state_dict(tiny.ckpt)
    del state["betas"]
    report = load_state(model, state)
    assert report.missing == ("betas",)
    assert report.unexpected == ("model_ema.decay", "model_ema.num_updates")
    assert "1 missing (betas)" in str(report)


def test_a_bare_state_dict_is_as_good(tiny, tmp_path):
    torch.save(load_file(tiny.checkpoint), tmp_path / "bare.pt")
    assert read_state_dict(tmp_path / "bare.pt").keys() == load_file(tiny.checkpoint).keys()


def test_a_lightning_checkpoint_loads_without_its_classes(tiny, tmp_path):
    # What old Lightning left beside the weights: classes as keys, omegaconf, namespaces, numpy.
    import numpy as np
    from pytorch_lightning.callbacks import ModelCheckpoint

    torch.save(
        {
            "state_dict": load_file(tiny.checkpoint),
            "callbacks": {ModelCheckpoint: {"best_model_score": np.float64(1.0)}},
            "hparams": OmegaConf.create({"a": [1, {"b": 2}]}),
            "options": argparse.Namespace(seed=23),
            "epoch": 3,
        },
        tmp_path / "lightning.ckpt",
    )
    state = read_state_dict(tmp_path / "lightning.ckpt")
    assert_close(state["betas"], load_file(tiny.checkpoint)["betas"])


def test_an_autoencoder_takes_its_part_of_a_whole_model(tiny):
    params = OmegaConf.load(tiny.config).model.params.first_stage_config.params
    alone = AutoencoderKL(**params, ckpt_path=str(tiny.checkpoint))
    stored = load_file(tiny.checkpoint)
    for name, value in alone.state_dict().items():
        assert_close(value, stored[f"first_stage_model.{name}"])


def test_averaged_copies_start_at_the_weights(tiny, tmp_path):
    config = read_config(tiny.config)
    config.model.params.use_ema, config.model.params.ema_decay = True, 0.5
    del config.model.params["personalization_config"]
    model = load_model(config, tiny.checkpoint)
    name = "input_blocks.0.0.weight"
    shadow = getattr(model.model_ema, "diffusion_model" + name.replace(".", ""))
    assert_close(shadow, model.model.diffusion_model.get_parameter(name))
    assert model.model_ema.decay == 0.5
    assert model.model_ema.num_updates == 0
    full = {f"model_ema.{k}": v for k, v in model.model_ema.state_dict().items()}
    full["model_ema.diffusion_modelinput_blocks00weight"] = torch.zeros_like(shadow)
    save_file({**load_file(tiny.checkpoint), **full}, tmp_path / "full.safetensors")
    again = load_model(config, tmp_path / "full.safetensors")
    assert again.model_ema.diffusion_modelinput_blocks00weight.abs().max() == 0


def test_an_autoencoder_with_an_average_loads_alone(tiny):
    part = OmegaConf.to_container(read_config(tiny.config).model.params.first_stage_config)
    part["params"]["ema_decay"] = 0.9
    model = load_model({"model": part}, tiny.checkpoint)
    shadow = model.model_ema.get_buffer("encoderconv_inweight")
    assert_close(shadow, load_file(tiny.checkpoint)["first_stage_model.encoder.conv_in.weight"])
    assert model.model_ema.decay == pytest.approx(0.9)


class ClipShaped(nn.Module):
    """Only the names of a CLIP text encoder, nested as older or newer `transformers` does."""

    def __init__(self, nested):
        super().__init__()
        layer = nn.Linear(3, 3)
        inner = nn.ModuleDict({"final_layer_norm": layer})
        transformer = nn.ModuleDict({"text_model": inner}) if nested else inner
        self.cond_stage_model = nn.ModuleDict({"transformer": transformer})


@pytest.mark.parametrize("nested", [True, False])
def test_clip_names_map_both_ways(nested):
    theirs, ours = ClipShaped(not nested), ClipShaped(nested)
    state = dict(theirs.state_dict())
    prefix = "" if nested else "text_model."
    state[f"cond_stage_model.transformer.{prefix}embeddings.position_ids"] = torch.arange(77)
    report = load_state(ours, state)
    assert report.missing == ()
    assert [n.rsplit(".", 1)[1] for n in report.unexpected] == ["position_ids"]
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert_close(a, b)


def refused(tiny, path):
    with pytest.raises(UserError) as caught:
        load_model(tiny.config, path)
    message = str(caught.value)
    assert "\n" not in message
    assert str(path) in message
    return message


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "an empty file"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\n", "a git-lfs pointer"),
        (b"<!DOCTYPE html><html><body>404</body></html>", "an HTML page"),
        (b"\n <html></html>", "an HTML page"),
        (b"\x89PNG\r\n\x1a\n0000", "not a checkpoint"),
        (b"PK\x03\x04" + b"0" * 400, "truncated or damaged"),
    ],
)
def test_what_is_no_checkpoint_is_called_by_its_name(tiny, tmp_path, content, says):
    path = tmp_path / "model.ckpt"
    path.write_bytes(content)
    assert says in refused(tiny, path)


@pytest.mark.parametrize("form", ["checkpoint", "ckpt"])
@pytest.mark.parametrize("share", [0.001, 0.5, 0.99])
def test_a_truncated_file_says_so(tiny, tmp_path, form, share):
    whole = getattr(tiny, form).read_bytes()
    path = tmp_path / getattr(tiny, form).name
    path.write_bytes(whole[: int(len(whole) * share)])
    assert "truncated" in refused(tiny, path)


def test_a_missing_file_says_how_to_get_it(tiny, tmp_path):
    message = refused(tiny, tmp_path / "model.ckpt")
    assert "does not exist" in message
    assert "scripts/download_models.sh" in message
    assert "models/miniature" in message
    assert "has no weights" in refused(tiny, tmp_path)


def shapes(entries):
    return {name: torch.empty(shape) for name, shape in entries.items()}


STABLE_DIFFUSION = {
    "model.diffusion_model.input_blocks.0.0.weight": (320, 4, 3, 3),
    "model.diffusion_model.input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight": (320, 768),
    "cond_stage_model.transformer.text_model.final_layer_norm.weight": (768,),
    "first_stage_model.quant_conv.weight": (8, 8, 1, 1),
}


@pytest.mark.parametrize(
    ("entries", "says"),
    [
        (STABLE_DIFFUSION, r"Stable Diffusion v1 \(CLIP text encoder\), context 768"),
        (
            {"model.diffusion_model.x": (1,), "cond_stage_model.model.ln_final.weight": (1024,)},
            "Stable Diffusion v2",
        ),
        ({"conditioner.embedders.0.x": (1,), "model.diffusion_model.x": (1,)}, "Diffusion XL"),
        ({"encoder.conv_in.weight": (32, 3, 3, 3)}, "an autoencoder alone"),
        ({"embedding_manager.string_to_param_dict.*": (1, 8)}, "holds the learned word and not"),
        ({"<cat>": (1, 768)}, "an embedding file"),
        ({"emb_params": (1, 768)}, "an embedding file"),
        ({"down_blocks.0.x": (3, 3, 3), "time_embedding.linear_1.x": (2,)}, "diffusers"),
        ({"text_model.encoder.layers.0.x": (3, 3, 3)}, "a CLIP text encoder alone"),
        ({"encoder.layers.0.self_attn.q_proj.weight": (8, 8)}, "a CLIP text encoder alone"),
        ({"unet.mid_block.attn2.to_k.lora.up.weight": (8, 4)}, "a LoRA"),
        ({"unet.mid_block.attn2.to_k.lora_A.weight": (4, 8)}, "a LoRA"),
        ({"control_model.input_hint_block.0.weight": (3, 3, 3)}, "a ControlNet"),
        (
            {"model.diffusion_model.input_blocks.0.0.weight": (320, 9, 3, 3)},
            "inpainting with a diffusion model",
        ),
        ({"model.diffusion_model.double_blocks.0.x": (3, 3, 3)}, "FLUX or SD 3"),
        ({"lora_unet_down.lora_up.weight": (3, 3, 3)}, "a LoRA"),
        ({f"blob.{i}": (3, 3, 3) for i in range(4)}, "4 tensors of no known model"),
        ({}, "no tensors"),
    ],
)
def test_another_architecture_is_named_in_one_line(tiny, tmp_path, entries, says):
    path = tmp_path / "model.safetensors"
    save_file(shapes(entries), path)
    message = refused(tiny, path)
    assert re.search(says, message)
    assert "latent diffusion with a BERT text encoder, context 32, U-Net width 32" in message


def test_the_same_kind_of_another_size_is_refused(tiny, tmp_path):
    stored = load_file(tiny.checkpoint)
    stored["first_stage_model.decoder.conv_out.weight"] = torch.zeros(3, 16, 3, 3)
    save_file(stored, tmp_path / "model.safetensors")
    message = refused(tiny, tmp_path / "model.safetensors")
    assert "1 differ, first_stage_model.decoder.conv_out.weight has [3, 16, 3, 3]" in message


def test_weights_that_lack_some_are_refused(tiny, tmp_path):
    stored = load_file(tiny.checkpoint)
    del stored["model.diffusion_model.out.2.bias"]
    save_file(stored, tmp_path / "model.safetensors")
    message = refused(tiny, tmp_path / "model.safetensors")
    assert "1 of" in message
    assert "model.diffusion_model.out.2.bias" in message


def test_an_embedding_file_says_where_it_belongs(tiny):
    message = refused(tiny, tiny.word)
    assert "an embedding file" in message
    assert "--embedding_path" in message


class Evil:
    def __reduce__(self):
        return (print, ("code from a checkpoint ran",))


@pytest.mark.parametrize("zipped", [True, False])
def test_a_file_that_would_run_code_is_refused(tiny, tmp_path, capsys, zipped):
    path = tmp_path / "model.ckpt"
    content = {"state_dict": {"betas": torch.zeros(2)}, "extra": Evil()}
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    assert "refused" in refused(tiny, path)
    assert capsys.readouterr().out == ""


def test_the_old_pickle_format_loads(tiny, tmp_path):
    path = tmp_path / "old.ckpt"
    torch.save(
        {"state_dict": load_file(tiny.checkpoint)}, path, _use_new_zipfile_serialization=False
    )
    model = load_model(tiny.config, path)
    assert_close(own_entries(model), load_file(tiny.checkpoint))


def test_pickles_of_something_else_are_refused(tiny, tmp_path):
    path = tmp_path / "list.ckpt"
    path.write_bytes(pickle.dumps([1, 2, 3], protocol=2))
    refused(tiny, path)
    with zipfile.ZipFile(tmp_path / "some.ckpt", "w") as file:
        file.writestr("readme.txt", "not a checkpoint")
    refused(tiny, tmp_path / "some.ckpt")


def test_configurations_that_are_none_are_refused(tmp_path):
    with pytest.raises(UserError, match="does not exist"):
        read_config(tmp_path / "absent.yaml")
    (tmp_path / "bad.yaml").write_text("a: [1\nb")
    with pytest.raises(UserError, match="is not YAML"):
        read_config(tmp_path / "bad.yaml")
    (tmp_path / "other.yaml").write_text("data: {}")
    with pytest.raises(UserError, match="has no 'model'"):
        read_config(tmp_path / "other.yaml")


def test_part_checkpoints_of_a_configuration_are_not_read(tiny):
    config = read_config(tiny.config)
    config.model.params.first_stage_config.params.ckpt_path = "absent.ckpt"
    model = load_model(config, tiny.checkpoint)
    assert model.first_stage_model.ckpt_path is None
    assert config.model.params.first_stage_config.params.ckpt_path == "absent.ckpt"


def test_the_hash_tells_files_apart_and_stays(tiny, tmp_path):
    first = checkpoint_hash(tiny.checkpoint)
    assert len(first) == 16
    copy = tmp_path / "renamed.safetensors"
    data = bytearray(Path(tiny.checkpoint).read_bytes())
    copy.write_bytes(data)
    assert checkpoint_hash(copy) == first
    data[-1] ^= 1
    copy.write_bytes(data)
    assert checkpoint_hash(copy) != first


def test_descriptions_of_the_published_models():
    assert describe(shapes(STABLE_DIFFUSION)) == (
        "Stable Diffusion v1 (CLIP text encoder), context 768, U-Net width 320, 4 latent channels"
    )


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_new_model_has_the_requested_precision_and_its_word_float32(tiny, dtype):
    model = load_model(tiny.config, None, dtype=dtype)
    for name, weight in model.named_parameters():
        word = name.startswith("embedding_manager.")
        assert weight.dtype == (torch.float32 if word else dtype), name
    assert model.alphas_cumprod.dtype == torch.float32


def test_what_the_configuration_determines_is_not_missing(tiny, tmp_path, caplog):
    state = {n: t for n, t in load_file(tiny.checkpoint).items() if n not in SCHEDULE}
    save_file(state, tmp_path / "small.safetensors")
    with caplog.at_level("INFO", logger="ldm.checkpoint.loading"):
        load_model(tiny.config, tmp_path / "small.safetensors")
    assert "tensors read" in caplog.text
    assert "missing" not in caplog.text


def test_half_precision_files_leave_the_schedule_exact(tiny, tmp_path):
    state = {
        n: t.half() if t.is_floating_point() else t for n, t in load_file(tiny.checkpoint).items()
    }
    assert "alphas_cumprod" in state
    save_file(state, tmp_path / "half.safetensors")
    exact = load_model(tiny.config, tiny.checkpoint)
    half = load_model(tiny.config, tmp_path / "half.safetensors")
    for name in SCHEDULE:
        assert_close(getattr(half, name), getattr(exact, name), rtol=1e-6, atol=0)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ([torch.zeros(2)], "not a checkpoint; it holds a list"),
        ({"string_to_param": {"*": torch.zeros(1, 8)}}, "an embedding file"),
    ],
)
def test_what_a_readable_file_holds_instead_is_named(tiny, tmp_path, content, says):
    torch.save(content, tmp_path / "model.ckpt")
    assert says in refused(tiny, tmp_path / "model.ckpt")


def test_a_schedule_that_the_configuration_contradicts_is_computed(tiny, tmp_path, caplog):
    """A file in half precision has rounded tables; the model's own are exact."""
    own = load_model(tiny.config, tiny.checkpoint).alphas_cumprod
    halved = {
        n: v.half() if v.is_floating_point() else v for n, v in load_file(tiny.checkpoint).items()
    }
    halved["alphas_cumprod"] = own.half()
    save_file(halved, tmp_path / "half.safetensors")
    config = read_config(tiny.config)
    model = instantiate_from_config(config.model)
    with caplog.at_level("INFO"):
        load_state(model, read_state_dict(tmp_path / "half.safetensors"), source="half")
    assert "half: the schedule's" in caplog.text
    assert "alphas_cumprod" in caplog.text
    assert_close(model.alphas_cumprod, own)


def test_neither_configuration_nor_checkpoint_is_an_error():
    with pytest.raises(ValueError, match="give a configuration, a checkpoint, or both"):
        load_model(None, None)


def test_an_averaged_copy_that_is_not_used_is_told(tiny, tmp_path, caplog):
    state = load_file(tiny.checkpoint)
    name = "diffusion_modelinput_blocks00weight"
    averages = {f"model_ema.{n}": torch.zeros(2) for n in (name, "decay", "num_updates")}
    save_file({**state, **averages}, tmp_path / "full.safetensors")
    with caplog.at_level("INFO"):
        load_model(tiny.config, tmp_path / "full.safetensors")
    assert "an averaged copy of 1 weights is there and not used" in caplog.text


def test_the_hash_of_a_folder_follows_its_weights(tmp_path):
    (tmp_path / "unet").mkdir()
    save_file({"a": torch.zeros(2)}, tmp_path / "unet" / "model.safetensors")
    (tmp_path / "unet" / "config.json").write_text("{}")
    first = checkpoint_hash(tmp_path)
    (tmp_path / "unet" / "config.json").write_text('{"a": 1}')
    assert checkpoint_hash(tmp_path) == first
    save_file({"a": torch.ones(2)}, tmp_path / "unet" / "model.safetensors")
    assert checkpoint_hash(tmp_path) != first


def test_a_folder_or_a_locked_file_is_no_checkpoint(tmp_path, monkeypatch):
    with pytest.raises(UserError, match="is a folder: give the file in it"):
        read_state_dict(tmp_path)
    path = tmp_path / "model.ckpt"
    path.write_bytes(b"x")

    def locked(*_, **__):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(type(path), "open", locked)
    with pytest.raises(UserError, match=r"model.ckpt: Permission denied"):
        read_state_dict(path)


# Loads a file in another precision and prints by how much its peak of memory grew, in KiB.
LOAD = """
import re, sys
import torch
from ldm.checkpoint.loading import load_state, read_state_dict
with torch.device("meta"):
    model = torch.nn.Sequential(*(torch.nn.Linear(2048, 2048) for _ in range(8)))
state = read_state_dict(sys.argv[1])
def peak():
    with open("/proc/self/status") as file:
        return int(re.search(r"VmHWM:\\s*(\\d+)", file.read())[1])
before = peak()
load_state(model, state, dtype=torch.bfloat16)
print(peak() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere the system keeps what was mapped")
@pytest.mark.parametrize("form", ["safetensors", "ckpt"])
def test_converting_a_file_peaks_at_about_one_copy(tmp_path, form):
    path = tmp_path / f"model.{form}"
    state = {f"{i}.weight": torch.ones(2048, 2048).half() for i in range(8)}
    state |= {f"{i}.bias": torch.ones(2048).half() for i in range(8)}
    save_file(state, path) if form == "safetensors" else torch.save({"state_dict": state}, path)
    child = [sys.executable, "-c", LOAD, str(path)]
    grown = 1024 * int(subprocess.run(child, check=True, capture_output=True, text=True).stdout)
    copy = path.stat().st_size
    assert copy < 1.1 * grown, "the conversion was not measured"
    assert grown < 1.5 * copy


def test_memory_that_is_no_mapped_file_is_not_given_back(tmp_path):
    save_file({"a": torch.arange(4096.0)}, tmp_path / "a.safetensors")
    (of_file,) = read_state_dict(tmp_path / "a.safetensors").values()
    own, mapped = of_file.clone(), mapped_ranges()
    for tensor in (of_file, own):
        release(tensor, mapped)
        assert_close(tensor, torch.arange(4096.0), rtol=0, atol=0)
