"""Which base a file or folder is: from its entries, its metadata, its name."""

from __future__ import annotations

import json
import shutil
from types import SimpleNamespace

import pytest
import torch
from omegaconf import OmegaConf
from safetensors.torch import load_file, save_file

from ldm.checkpoint import loading
from ldm.checkpoint.bases import Base, recognize
from ldm.checkpoint.convert import convert
from ldm.checkpoint.folder_config import shipped_config
from ldm.inference import load_model
from ldm.util import UserError
from tests.checkpoint.pipelines import ldm, sd1, sdxl

FIRST = "model.diffusion_model.input_blocks.0.0.weight"
UNET = {
    FIRST: (320, 4, 3, 3),
    "first_stage_model.quant_conv.weight": (8, 8, 1, 1),
}
TEXT = {
    "ldm": "cond_stage_model.transformer.token_emb.weight",
    "sd1": "cond_stage_model.transformer.text_model.final_layer_norm.weight",
    "sd2": "cond_stage_model.model.ln_final.weight",
}
SD = {**UNET, TEXT["sd1"]: (2,)}


def write(path, entries, **metadata):
    save_file({n: torch.zeros(s) for n, s in entries.items()}, path, metadata=metadata or None)
    return path


@pytest.mark.parametrize("family", ["ldm", "sd1"])
def test_the_entries_decide(family, tmp_path):
    base = recognize(write(tmp_path / "a.safetensors", {**UNET, TEXT[family]: (2,)}))
    assert base.family == family
    assert "personalization_config" not in base.config.model.params
    assert not base.undecided


def test_a_configuration_beside_the_file_decides_first(tiny, tmp_path):
    shutil.copy(tiny.checkpoint, tmp_path / "mine.safetensors")
    shutil.copy(tiny.config, tmp_path / "mine.yaml")
    base = recognize(tmp_path / "mine.safetensors")
    assert base.family == "ldm"
    assert base.config.model.params.unet_config.params.model_channels == 32
    assert base.what == ("a model like the 1.4B latent diffusion model, with mine.yaml beside it")


@pytest.mark.parametrize(
    ("entries", "says"),
    [
        ({**UNET, "model.diffusion_model.input_blocks.0.0.weight": (320, 9, 3, 3)}, "inpainting"),
        (
            {**UNET, "model.diffusion_model.input_blocks.0.0.weight": (8, 8, 3, 3)},
            "InstructPix2Pix",
        ),
        ({"model.diffusion_model.double_blocks.0.img_attn.norm": (8,)}, "FLUX or SD 3"),
        ({"model.diffusion_model.joint_blocks.0.x": (8,)}, "FLUX or SD 3"),
        ({"lora_te_text_model_encoder.lora_down.weight": (8, 8)}, "a LoRA"),
        ({"control_model.zero_convs.0.0.weight": (8,)}, "a ControlNet"),
        ({"ip_adapter.1.to_k_ip.weight": (8, 8)}, "an IP-Adapter"),
        ({**UNET, "model.diffusion_model.input_blocks.1.0.time_stack.x": (8,)}, "of videos"),
        ({"down_blocks.0.motion_modules.0.norm.weight": (8,)}, "of videos, or its motion module"),
        ({"adapter.body.0.weight": (8, 8)}, "tensors of no known model"),
        ({"encoder.block.0.layer.0.SelfAttention.q.weight": (8, 8)}, "a text encoder alone"),
        ({**UNET, FIRST: (256, 7, 3, 3), TEXT["sd2"]: (2,)}, "upscaling with Stable Diffusion v2"),
        ({"encoder.conv_in.weight": (8, 3, 3, 3)}, "an autoencoder alone"),
        ({**UNET, "conditioner.embedders.0.model.x": (8,)}, "the refiner of Stable Diffusion XL"),
        ({**UNET}, "a diffusion model without text encoder"),
    ],
)
def test_what_is_not_supported_is_named_in_one_line(tmp_path, entries, says):
    path = write(tmp_path / "a.safetensors", entries)
    with pytest.raises(UserError, match=says) as caught:
        load_model(path)
    assert "supported are LDM-1.4B, Stable Diffusion 1 and 2, and SDXL" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.fixture
def folder(tmp_path):
    sd1(tmp_path / "vocabulary").save_pretrained(tmp_path / "base")
    return tmp_path / "base"


def change(path, **facts):
    path.write_text(json.dumps({**json.loads(path.read_text()), **facts}))


@pytest.mark.parametrize(
    ("file", "facts", "says"),
    [
        ("unet/config.json", {"in_channels": 9}, r"an inpainting model \(9 channels\)"),
        ("unet/config.json", {"act_fn": "gelu"}, "act_fn 'gelu' is not supported"),
        ("unet/config.json", {"attention_head_dim": [2, 2, 4]}, "heads of several sizes"),
        ("vae/config.json", {"_class_name": "AutoencoderTiny"}, "AutoencoderTiny is not supported"),
        ("model_index.json", {"transformer": ["diffusers", "x"]}, "such as Stable Diffusion 3"),
        ("scheduler/scheduler_config.json", {"beta_schedule": "x"}, "'x' is not supported"),
        ("scheduler/scheduler_config.json", {"prediction_type": "flow"}, "'flow' is not supported"),
    ],
)
def test_folders_that_are_not_supported(folder, file, facts, says):
    change(folder / file, **facts)
    with pytest.raises(UserError, match=says) as caught:
        load_model(folder)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("component", ["unet", "vae", "text_encoder", "tokenizer", "scheduler"])
def test_a_folder_that_lacks_a_component(folder, component):
    shutil.rmtree(folder / component)
    with pytest.raises(UserError, match=rf"lacks.* {component}|{component} lacks|lacks config"):
        load_model(folder)


@pytest.mark.parametrize(
    ("component", "facts", "says"),
    [
        ("unet", {}, "unet/config.json lacks block_out_channels"),
        ("vae", {}, "vae/config.json lacks block_out_channels"),
        ("text_encoder", {}, "width 768, but unet_config's context_dim is 32"),
        ("unet", {"block_out_channels": [0, 32, 32]}, "do not fit"),
        ("unet", {"block_out_channels": None}, "do not fit"),
        ("unet", {"block_out_channels": []}, "do not fit"),
        ("unet", {"norm_num_groups": 5}, "do not fit"),
        ("unet", {"cross_attention_dim": "wide"}, "do not fit"),
        ("vae", {"block_out_channels": "8"}, "do not fit"),
        ("vae", {"norm_num_groups": 0}, "do not fit"),
        ("text_encoder", {"num_attention_heads": 5}, "width 32 must be a multiple of heads 5"),
        ("text_encoder", {"num_hidden_layers": "3"}, "num_hidden_layers must be .*, got '3'"),
        ("text_encoder", {"vocab_size": -1}, "vocab_size must be .*, got -1"),
        ("text_encoder", {"num_attention_heads": True}, "num_attention_heads must be .*, got True"),
        ("text_encoder", {"hidden_size": None}, "hidden_size must be .*, got None"),
        ("scheduler", {"num_train_timesteps": "many"}, "do not fit"),
    ],
)
def test_sizes_that_do_not_fit_are_one_line(folder, component, facts, says):
    path = folder / component / f"{'scheduler_' * (component == 'scheduler')}config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **facts} if facts else {}))
    with pytest.raises(UserError, match=says) as caught:
        load_model(folder)
    assert str(folder) in str(caught.value)
    assert "\n" not in str(caught.value)


STRANGE = "model.diffusion_model.label_emb.0.0.weight"


def test_weights_of_the_unet_that_no_model_here_has(folder, tmp_path):
    """unCLIP, GLIGEN: their U-Net has more weights, without which it makes other images."""
    convert(folder, tmp_path / "whole.safetensors")
    state = load_file(tmp_path / "whole.safetensors")
    path = tmp_path / "more.safetensors"
    save_file(state | {STRANGE: torch.ones(2, 2)}, path)
    shutil.copy(tmp_path / "whole.yaml", tmp_path / "more.yaml")
    unet = folder / "unet" / "diffusion_pytorch_model.safetensors"
    save_file(load_file(unet) | {"position_net.null": torch.ones(2)}, unet)
    for base, name in ((path, STRANGE), (folder, "position_net.null")):
        for use in (load_model, lambda given: convert(given, tmp_path / "out.safetensors")):
            says = rf"found Stable Diffusion .*1 more weights, such as {name}: another kind of"
            with pytest.raises(UserError, match=says) as caught:
                use(base)
            assert "\n" not in str(caught.value)


def test_a_configuration_of_another_program_is_not_used(tmp_path):
    """Stability AI's `sd_xl_base.yaml` lies beside files of SDXL; it configures another program."""
    write(tmp_path / "a.safetensors", SD)
    (tmp_path / "a.yaml").write_text("model: {target: sgm.models.diffusion.DiffusionEngine}")
    base = recognize(tmp_path / "a.safetensors")
    assert base.family == "sd1"
    assert "a.yaml is of another program, not used" in base.what


def test_a_file_without_its_autoencoder_is_named(folder, tmp_path):
    convert(folder, tmp_path / "whole.safetensors")
    state = load_file(tmp_path / "whole.safetensors")
    part = {n: v for n, v in state.items() if not n.startswith("first_stage_model.")}
    save_file(part, tmp_path / "part.safetensors")
    shutil.copy(tmp_path / "whole.yaml", tmp_path / "part.yaml")
    with pytest.raises(UserError, match=r"no autoencoder: give a file that holds it too$"):
        load_model(tmp_path / "part.safetensors")


def test_a_component_without_weights_or_with_a_damaged_file(folder):
    weights = folder / "unet" / "diffusion_pytorch_model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:1000])
    with pytest.raises(UserError, match=r"truncated|damaged"):
        load_model(folder)
    weights.unlink()
    with pytest.raises(UserError, match="unet has no weights"):
        load_model(folder)
    (folder / "vae" / "config.json").write_text("{")
    with pytest.raises(UserError, match="is damaged"):
        load_model(folder)
    with pytest.raises(UserError, match="unet is one component of a model"):
        load_model(folder / "unet")


def test_weights_in_several_files(tmp_path):
    pipeline = sd1(tmp_path / "vocabulary")
    pipeline.save_pretrained(tmp_path / "base", max_shard_size="60KB")
    assert (tmp_path / "base/unet/diffusion_pytorch_model.safetensors.index.json").is_file()
    model = load_model(tmp_path / "base")
    found = dict(model.model.diffusion_model.named_parameters())["out.2.weight"]
    assert torch.equal(found, pipeline.unet.conv_out.weight)


def test_a_vocabulary_that_does_not_fit(tmp_path):
    ldm(tmp_path / "vocabulary").save_pretrained(tmp_path / "base")
    vocabulary = tmp_path / "base" / "tokenizer"
    shutil.rmtree(vocabulary)
    vocabulary.mkdir()
    (vocabulary / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", *map(str, range(900))]))
    with pytest.raises(UserError, match=r"tokenizer .* entries, more than vocab_size"):
        load_model(tmp_path / "base")


@pytest.mark.parametrize("form", ["tokenizer.json", "vocab.json"])
def test_two_vocabularies_that_differ(tmp_path, form):
    sdxl(tmp_path / "vocabulary").save_pretrained(tmp_path / "base")
    path = tmp_path / "base/tokenizer_2" / form
    whole = json.loads((path.parent / "tokenizer.json").read_text())
    whole["model"]["vocab"]["more"] = 99
    path.write_text(json.dumps(whole if form == "tokenizer.json" else whole["model"]["vocab"]))
    with pytest.raises(UserError, match=r"different vocabularies \(69 and 70 entries\)"):
        load_model(tmp_path / "base")


@pytest.mark.parametrize(("turned", "is_v"), [(1.0, False), (0.05, True), (-1.0, True)])
def test_an_evaluation_at_the_last_timestep_tells_v_from_noise(monkeypatch, turned, is_v):
    network = SimpleNamespace(context_dim=8)

    class Wrapper:
        diffusion_model = network

        def __call__(self, x, t, c_crossattn):
            assert t.tolist() == [999]
            assert c_crossattn[0].shape == (1, 77, 8)
            other = torch.randn(x.shape, generator=torch.Generator().manual_seed(4))
            return turned * x + 0.3 * other

    model = SimpleNamespace(channels=4, num_timesteps=1000, model=Wrapper())
    monkeypatch.setattr(loading, "_load_base", lambda *_: model)
    base = Base(None, "sd2", shipped_config("sd1"), "", True)
    assert loading._predicts_v(base) == is_v


SD2 = {**UNET, TEXT["sd2"]: (2,)}


@pytest.mark.parametrize(
    ("name", "metadata", "family", "undecided"),
    [
        ("768-v-ema", {}, "sd2-v", False),
        ("v2-1_512", {}, "sd2", False),
        ("mine", {"modelspec.resolution": "768x768"}, "sd2-v", False),
        ("mine", {"modelspec.resolution": "512x512"}, "sd2", False),
        ("mine", {}, "sd2", True),
    ],
)
def test_stable_diffusion_2_predicts_v_by_its_metadata_or_name(
    tmp_path, name, metadata, family, undecided
):
    base = recognize(write(tmp_path / f"{name}.safetensors", SD2, **metadata))
    assert (base.family, base.undecided) == (family, undecided)
    assert ("v or ε is not known yet" in base.what) == undecided


def test_a_file_of_stable_diffusion_2_that_names_nothing_is_evaluated(tmp_path, monkeypatch):
    path = write(tmp_path / "mine.safetensors", SD2)
    monkeypatch.setattr(loading, "_predicts_v", lambda base: base.path == path)
    found = loading.find_base(path)
    assert found.family == "sd2-v"
    assert found.config.model.params.parameterization == "v"
    monkeypatch.setattr(loading, "_predicts_v", lambda base: False)
    assert loading.find_base(path).family == "sd2"


def test_a_folder_for_a_configuration_without_a_family_is_refused(folder, tmp_path):
    config = OmegaConf.create({"model": {"target": "torch.nn.Linear"}})
    config.model.params = {"in_features": 2, "out_features": 2}
    with pytest.raises(UserError, match="a folder of diffusers does not fit this configuration"):
        load_model(config, folder)


@pytest.mark.parametrize(
    ("index", "says"),
    [
        (
            {"weight_map": {"a": "gone.safetensors"}},
            r"unet lacks gone.safetensors, which its index",
        ),
        ([1], "expected a mapping, got a list"),
    ],
)
def test_an_index_of_weights_that_does_not_fit_its_folder(folder, index, says):
    weights = folder / "unet" / "diffusion_pytorch_model.safetensors"
    weights.unlink()
    (folder / "unet" / f"{weights.name}.index.json").write_text(json.dumps(index))
    with pytest.raises(UserError, match=says) as caught:
        load_model(folder)
    assert "\n" not in str(caught.value)
