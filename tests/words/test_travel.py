"""Words in other tools: our files against the readers' rules, and diffusers' real reader."""

import json
from copy import deepcopy

import pytest
import torch
from diffusers.loaders import TextualInversionLoaderMixin
from safetensors.torch import load_file
from torch.testing import assert_close
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from ldm.util import UserError
from ldm.words.files import read_words
from ldm.words.formats import WordFile
from ldm.words.travel import SINGLE, convert, file_name, file_names, write_for_tools
from tests.modules.vocabularies import write_clip


def vectors(k=2, width=768, seed=0):
    return torch.randn(k, width, generator=torch.Generator().manual_seed(seed))


def load(path):
    """Open a file as the tools do: a pickle with tensors only, or safetensors."""
    if path.suffix == ".safetensors":
        return load_file(path)
    return torch.load(path, map_location="cpu", weights_only=True)


# Each function states one tool's rule: it returns the vectors that the tool would use, or fails.


def automatic1111(path):
    """Also Forge's rule."""
    data = load(path)
    if "string_to_param" in data:
        params = getattr(data["string_to_param"], "_parameters", data["string_to_param"])
        assert len(params) == 1, "embedding file has multiple terms in it"
        return next(iter(params.values()))
    if "clip_g" in data and "clip_l" in data:
        return {"clip_l": data["clip_l"], "clip_g": data["clip_g"]}
    assert isinstance(next(iter(data.values())), torch.Tensor), "couldn't identify the file"
    assert len(data) == 1, "embedding file has multiple terms in it"
    return next(iter(data.values()))


def comfyui(path):
    data = load(path)
    if "string_to_param" in data:
        return next(iter(data["string_to_param"].values()))
    if "clip_l" in data:
        return {key: data[key] for key in ("clip_l", "clip_g") if key in data}
    return next(iter(data.values()))


def kohya(path):
    data = load(path)
    assert type(data) is dict, "weight file is not dict"
    if "clip_l" in data:
        return {"clip_l": data["clip_l"], "clip_g": data["clip_g"]}
    params = data.get("string_to_param", data)
    found = next(iter(getattr(params, "_parameters", params).values()))
    assert type(found) is torch.Tensor, "weight file does not contain a tensor"
    return found


def invokeai(path):
    """The base model follows from the width, which it reads by the form."""
    data = load(path)
    if "string_to_token" in data:
        found = next(iter(data["string_to_param"].values()))
        width = found.shape[-1]
    elif "emb_params" in data:
        found = data["emb_params"]
        width = found.shape[-1]
    elif "clip_g" in data and "clip_l" in data:
        found = {"clip_l": data["clip_l"], "clip_g": data["clip_g"]}
        width = found["clip_g"].shape[-1]
    else:
        found = next(iter(data.values()))
        width = found.shape[0]
    assert width in (768, 1024, 1280), "no base model has this width"
    return found


READERS = (automatic1111, comfyui, kohya, invokeai)


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("form", ["kohya", "a1111"])
def test_the_forms_for_every_tool_load_in_every_tool(tmp_path, reader, form):
    file = WordFile({"<cat>": vectors()}, {"step": "12"})
    (path,) = write_for_tools(tmp_path, file, form)
    assert path.stem == "cat"
    assert_close(reader(path), vectors())


@pytest.mark.parametrize("reader", READERS)
def test_a_word_of_sdxl_loads_in_every_tool(tmp_path, reader):
    first, second = vectors(), vectors(width=1280, seed=1)
    (path,) = write_for_tools(tmp_path, WordFile({"*": first}, second={"*": second}))
    assert_close(reader(path), {"clip_l": first, "clip_g": second})


def test_the_readers_refuse_what_they_refuse_in_truth(tmp_path):
    """The rules above can fail: InvokeAI's for `{word: vectors}`, AUTOMATIC1111's for two words."""
    convert(tmp_path / "d.safetensors", WordFile({"*": vectors()}), "diffusers", {})
    with pytest.raises(AssertionError, match="no base model"):
        invokeai(tmp_path / "d.safetensors")
    two = WordFile({"a": vectors(), "b": vectors()})
    convert(tmp_path / "two.safetensors", two, "safetensors", {})
    with pytest.raises(AssertionError, match="multiple terms"):
        automatic1111(tmp_path / "two.safetensors")


class Pipeline(TextualInversionLoaderMixin):
    """What diffusers needs of a pipeline in order to load a word."""

    hf_device_map = None

    def __init__(self, tokenizer, text_encoder):
        self.tokenizer, self.text_encoder = tokenizer, text_encoder
        self.components = {"tokenizer": tokenizer, "text_encoder": text_encoder}


@pytest.fixture
def pipeline(tmp_path):
    folder = tmp_path / "clip"
    write_clip(folder)
    tokenizer = CLIPTokenizer.from_pretrained(folder)
    config = CLIPTextConfig(
        vocab_size=len(tokenizer), hidden_size=24, intermediate_size=32, num_hidden_layers=1,
        num_attention_heads=2, max_position_embeddings=77,
    )  # fmt: skip
    return Pipeline(tokenizer, CLIPTextModel(config))


@pytest.mark.parametrize(
    ("form", "token", "name"),
    [("kohya", "<w>", "<w>"), ("a1111", None, "<cat>"), ("diffusers", None, "<cat>"),
     ("onetrainer", "<w>", "<w>")],
)  # fmt: skip
def test_diffusers_loads_our_files(pipeline, tmp_path, form, token, name):
    (path,) = write_for_tools(tmp_path, WordFile({"<cat>": vectors(3, 24)}), form)
    before = deepcopy(pipeline.text_encoder.get_input_embeddings().weight)
    pipeline.load_textual_inversion(str(path), token=token)
    ids = pipeline.tokenizer.convert_tokens_to_ids([name, f"{name}_1", f"{name}_2"])
    table = pipeline.text_encoder.get_input_embeddings().weight
    assert min(ids) >= len(before)
    assert_close(table[ids].detach(), vectors(3, 24))


@pytest.mark.parametrize("form", [*SINGLE, "safetensors", "original"])
def test_each_form_comes_back(tmp_path, form):
    """Name, vectors, encoder and facts, in our own reader."""
    second = {"<cat>": vectors(width=1280, seed=1)} if form == "sdxl" else {}
    facts = {"encoder_family": "sdxl" if second else "clip", "step": "7", "seed": "23"}
    file = WordFile({"<cat>": vectors()}, facts, {"<cat>": 9}, second)
    suffix = {"original": ".pt", "a1111": ".pt", "png": ".png"}.get(form, ".safetensors")
    convert(tmp_path / f"other{suffix}", file, form, file.token_ids)
    back = read_words(tmp_path / f"other{suffix}")
    assert_close((back.words, back.second), (file.words, second))
    assert facts.items() <= back.metadata.items()


def test_a_word_of_sdxl_for_diffusers_is_two_files(tmp_path):
    file = WordFile({"<cat>": vectors()}, {}, {}, {"<cat>": vectors(width=1280)})
    path = tmp_path / "learned_embeds.safetensors"
    convert(path, file, "diffusers", {})
    assert_close(load_file(tmp_path / "learned_embeds_2.safetensors"), file.second)
    assert_close(read_words(path).second, file.second)
    with pytest.raises(UserError, match="must be named learned_embeds"):
        convert(tmp_path / "cat.safetensors", file, "diffusers", {})


@pytest.mark.parametrize(
    ("form", "name", "message"),
    [
        ("sdxl", "a.safetensors", "vectors for one text encoder"),
        ("png", "a.pt", r"must end in \.png"),
        ("original", "a.png", r"must end in \.pt"),
    ],
)
def test_what_a_form_cannot_hold_is_one_line(tmp_path, form, name, message):
    with pytest.raises(UserError, match=message):
        convert(tmp_path / name, WordFile({"*": vectors()}), form, {"*": 1})
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("form", ["a1111", "png"])
def test_automatic1111_has_no_pickle_of_sdxl(tmp_path, form):
    file = WordFile({"*": vectors()}, {}, {}, {"*": vectors(width=1280)})
    with pytest.raises(UserError, match="choose --to sdxl"):
        write_for_tools(tmp_path, file, form)


def test_several_words_are_split_into_a_folder(tmp_path):
    file = WordFile({"<cat>": vectors(), "*": vectors(1, seed=1)})
    with pytest.raises(UserError, match="give a folder as OUT"):
        convert(tmp_path / "one.safetensors", file, "kohya", {})
    paths = convert(tmp_path / "words", file, "kohya", {})
    assert [path.name for path in paths] == ["cat.safetensors", "word-asterisk.safetensors"]
    for path, name in zip(paths, file.words, strict=True):
        assert_close(read_words(path).words, {name: file.words[name]})
        assert json.loads(read_words(path).metadata["placeholders"]) == [name]


@pytest.mark.parametrize(
    ("placeholder", "stem"),
    [
        ("<cat-toy>", "cat-toy"),
        ("*", "word-asterisk"),
        ("@", "word-commercial-at"),
        ("猫", "猫"),
        ("../../x", "x"),
        ("CON", "word-CON"),
        ("a/b:c", "abc"),
        ("_", "word-low-line"),
        ("x" * 300, "x" * 60),
        ("cafe\u0301", "caf\u00e9"),
    ],
)
def test_names_of_files(placeholder, stem):
    assert file_name(placeholder) == stem


def test_no_two_words_share_a_file():
    assert file_names(["<Cat>", "cat", "[cat]"]) == {
        "<Cat>": "Cat",
        "cat": "cat-2",
        "[cat]": "cat-3",
    }
