"""Embedding files: what is written comes back, every tool's form is read, nothing in one is run."""

import base64
import json
import os
import pickle
import struct
import zipfile
import zlib

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, PngImagePlugin
from safetensors.torch import save_file
from torch import nn

from ldm.util import UserError
from ldm.words.files import check_encoder, read_words, renamed, write_words

names = st.text(
    st.characters(codec="utf-8", exclude_categories=["Cs", "Cc"]), min_size=1, max_size=8
).filter(lambda name: name not in ("emb_params", "emp_params", "clip_l", "clip_g", "__metadata__"))
shapes = st.tuples(st.integers(1, 3), st.integers(1, 5))


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
@settings(max_examples=40, deadline=None)
@given(words=st.dictionaries(names, shapes, min_size=1, max_size=3), seed=st.integers(0, 2**31))
def test_round_trip(tmp_path_factory, suffix, words, seed):
    path = tmp_path_factory.mktemp("words") / f"w{suffix}"
    rng = torch.Generator().manual_seed(seed)
    tensors = {name: torch.randn(shape, generator=rng) for name, shape in words.items()}
    ids = {name: i for i, name in enumerate(tensors)}
    write_words(path, tensors, ids, {"step": "12", "first_words": "ünïcode"})
    back = read_words(path)
    assert set(back.words) == set(tensors)
    for name, tensor in tensors.items():
        torch.testing.assert_close(back.words[name], tensor, rtol=0, atol=0)
    assert back.metadata["step"] == "12"
    assert back.metadata["first_words"] == "ünïcode"
    if suffix == ".pt":
        assert back.token_ids == ids


def test_the_original_reads_our_pt(tmp_path):
    """The original loads without limit and indexes both tables by placeholder."""
    path = tmp_path / "e.pt"
    write_words(path, {"*": torch.ones(2, 4)[:1], "@": torch.zeros(3, 4)}, {"*": 8, "@": 9})
    raw = torch.load(path, weights_only=False)
    assert raw["string_to_token"]["*"].dtype == torch.int64
    assert raw["string_to_token"]["*"].shape == ()
    assert isinstance(raw["string_to_param"], nn.ParameterDict)
    assert raw["string_to_param"]["@"].shape == (3, 4)
    assert raw["string_to_param"]["*"].untyped_storage().nbytes() == 16


def test_safetensors_serves_other_tools(tmp_path):
    from safetensors import safe_open

    path = tmp_path / "e.safetensors"
    write_words(path, {"*": torch.ones(1, 4)}, metadata={"encoder_family": "clip"})
    with safe_open(path, framework="pt") as file:
        assert list(file.keys()) == ["*"]
        assert file.metadata()["format"] == "pt"
        assert file.metadata()["encoder_family"] == "clip"
        assert file.metadata()["word_file_version"] == "1"


def automatic(vectors):
    return {
        "string_to_token": {"*": 265},
        "string_to_param": {"*": vectors},
        "name": "mycat",
        "step": 1499,
        "sd_checkpoint": "81761151",
        "sd_checkpoint_name": "v1-5",
    }


def old_torch(vectors):
    params = nn.ParameterDict({"*": nn.Parameter(vectors)})
    del params.__dict__["_keys"]
    return {"string_to_token": {"*": torch.tensor(1008)}, "string_to_param": params}


FOREIGN = {
    "original": lambda v: {
        "string_to_token": {"*": torch.tensor(1008)},
        "string_to_param": nn.ParameterDict({"*": nn.Parameter(v)}),
    },
    "old torch": old_torch,
    "automatic": automatic,
    "half precision": lambda v: {"*": v.half()},
}


@pytest.mark.parametrize("form", FOREIGN)
def test_reads_pickles_that_name_their_word(tmp_path, form):
    vectors = torch.arange(8.0).reshape(2, 4)
    torch.save(FOREIGN[form](vectors), tmp_path / "e.pt")
    file = read_words(tmp_path / "e.pt")
    assert list(file.words) == ["*"]
    torch.testing.assert_close(file.words["*"], vectors)
    assert not file.words["*"].requires_grad
    if form == "automatic":
        assert file.metadata == {
            "name": "mycat",
            "step": "1499",
            "sd_checkpoint": "81761151",
            "sd_checkpoint_name": "v1-5",
        }
        assert file.token_ids == {"*": 265}


def test_reads_old_non_zip_pickles(tmp_path):
    content = FOREIGN["automatic"](torch.ones(1, 4))
    torch.save(content, tmp_path / "e.pt", _use_new_zipfile_serialization=False)
    assert read_words(tmp_path / "e.pt").words["*"].shape == (1, 4)


def test_reads_hugging_face(tmp_path):
    torch.save({"<cat-toy>": torch.ones(768)}, tmp_path / "learned_embeds.bin")
    file = read_words(tmp_path / "learned_embeds.bin")
    assert file.words["<cat-toy>"].shape == (1, 768)
    save_file({"<cat-toy>": torch.ones(2, 768)}, tmp_path / "l.safetensors", {"format": "pt"})
    assert read_words(tmp_path / "l.safetensors").words["<cat-toy>"].shape == (2, 768)


@pytest.mark.parametrize("key", ["emb_params", "emp_params"])
def test_a_nameless_word_takes_the_file_name_or_the_given_one(tmp_path, key):
    save_file({key: torch.ones(2, 768)}, tmp_path / "mycat.safetensors")
    assert list(read_words(tmp_path / "mycat.safetensors").words) == ["mycat"]
    assert list(read_words(tmp_path / "mycat.safetensors", placeholder="*").words) == ["*"]


def test_reads_a_word_in_an_image(tmp_path):
    content = automatic({"TORCHTENSOR": [[1.0, 2.0], [3.0, 4.0]]})
    chunk = PngImagePlugin.PngInfo()
    chunk.add_text("sd-ti-embedding", base64.b64encode(json.dumps(content).encode()).decode())
    Image.new("RGB", (4, 4)).save(tmp_path / "w.png", pnginfo=chunk)
    file = read_words(tmp_path / "w.png")
    assert file.words["*"].tolist() == [[1.0, 2.0], [3.0, 4.0]]
    Image.new("RGB", (4, 4)).save(tmp_path / "plain.png")
    with pytest.raises(UserError, match="holds no word"):
        read_words(tmp_path / "plain.png")


class Harm:
    """A pickle that would make a folder on loading."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (self.path,)


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("suffix", [".pt", ".bin"])
def test_a_harmful_pickle_is_refused_in_one_line_and_not_run(tmp_path, suffix, zipped):
    path, harmed = tmp_path / f"e{suffix}", tmp_path / "harmed"
    content = {"string_to_token": {}, "string_to_param": {"*": Harm(str(harmed))}}
    if zipped:
        torch.save(content, path)
    else:
        path.write_bytes(pickle.dumps(content, protocol=2))
    with pytest.raises(UserError, match="refused") as caught:
        read_words(path)
    assert "mkdir" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not harmed.exists()


def damaged(path):
    write_words(path, {"*": torch.ones(50, 40)}, {"*": 1})
    path.write_bytes(path.read_bytes()[:3000])


def bomb(side):
    """A PNG of a few bytes that claims a large area."""

    def chunk(kind, content):
        length, sum_ = len(content), zlib.crc32(kind + content)
        return struct.pack(">I", length) + kind + content + struct.pack(">I", sum_)

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", b"") + chunk(b"IEND", b"")


def zip_bomb(path):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("w/data.pkl", bytes(2**29))


BAD = {
    "missing.pt": (lambda path: None, "does not exist"),
    "text.pt": (lambda path: path.write_text("hello, I am no pickle\n"), "not a readable"),
    "empty.pt": (lambda path: path.write_bytes(b""), "not a readable"),
    "cut.pt": (damaged, "not a readable"),
    "garbled.pt": (
        lambda path: path.write_bytes(b"\x80\x02" + b"\xff" * 50),
        "not a readable embedding file$",  # and no advice to load it without checks
    ),
    "cut.safetensors": (damaged, "not a readable"),
    "text.safetensors": (lambda path: path.write_text("hello"), "not a readable"),
    "text.png": (lambda path: path.write_text("hello"), "not a readable"),
    "list.pt": (lambda path: torch.save([torch.ones(2)], path), "holds a list"),
    "bomb.png": (lambda path: path.write_bytes(bomb(20000)), "too large"),
    "small_bomb.png": (lambda path: path.write_bytes(bomb(9000)), "9000 x 9000 pixels"),
    "bomb.pt": (zip_bomb, "537 MB"),
    "nothing.pt": (lambda path: torch.save({}, path), "holds no words"),
    "ids.pt": (lambda path: torch.save({"*": torch.ones(2).long()}, path), "not a float tensor"),
    "text_value.pt": (lambda path: torch.save({"*": "hi"}, path), "not a float tensor"),
    "three.pt": (lambda path: torch.save({"*": torch.ones(1, 2, 3)}, path), "shape"),
    "nan.pt": (
        lambda path: torch.save({"*": torch.tensor([1.0, float("nan")])}, path),
        "undefined",
    ),
    "params.pt": (lambda path: torch.save({"string_to_param": 3}, path), "no tensors"),
    "word.txt": (lambda path: path.write_text("x"), "not a readable"),
    "folder.pt": (lambda path: path.mkdir(), "holds no learned_embeds"),
    "pipe.pt": (os.mkfifo, "not a regular file"),
    "page.bin": (lambda path: path.write_text("<!doctype html>"), "a web page"),
    "huge_value.pt": (
        lambda path: torch.save({"*": torch.full((1, 4), 1e30)}, path),
        "up to 1e.30",
    ),
    "wide.pt": (lambda path: torch.save({"*": torch.zeros(1).expand(2**33)}, path), "shape"),
    "lfs.safetensors": (
        lambda path: path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\n"),
        "git-lfs pointer.*git lfs pull",
    ),
    "model.safetensors": (
        lambda path: save_file({"model.diffusion_model.out.0.weight": torch.ones(4)}, path),
        "a model's weights",
    ),
    "lora.safetensors": (
        lambda path: save_file(
            {
                "lora_unet_mid_block_attentions_0_proj_in.lora_down.weight": torch.ones(4, 8),
                "lora_unet_mid_block_attentions_0_proj_in.alpha": torch.tensor(4.0),
            },
            path,
        ),
        "is a LoRA",
    ),
    "peft.safetensors": (
        lambda path: save_file({"unet.mid.to_q.lora_A.weight": torch.ones(4, 8)}, path),
        "is a LoRA",
    ),
    "flux.safetensors": (
        lambda path: save_file({"clip_l": torch.ones(1, 768), "t5": torch.ones(1, 4096)}, path),
        "FLUX",
    ),
    "flux.pti": (
        lambda path: save_file(
            {"text_encoders_0": torch.ones(1, 768), "text_encoders_1": torch.ones(1, 4096)}, path
        ),
        "FLUX",
    ),
    "xti.safetensors": (
        lambda path: save_file({f"IN{i:02}": torch.ones(1, 768) for i in (1, 2, 4)}, path),
        "kohya's XTI",
    ),
    "clip_g.safetensors": (
        lambda path: save_file({"clip_g": torch.ones(1, 1280)}, path),
        "clip_l is missing",
    ),
    "uneven.safetensors": (
        lambda path: save_file({"clip_l": torch.ones(2, 768), "clip_g": torch.ones(1, 1280)}, path),
        "2 vectors for SDXL's first text encoder and 1",
    ),
    "twice.pt": (
        lambda path: torch.save([{"a": torch.ones(1, 2)}, {"a": torch.ones(1, 2)}], path),
        "two words of one name",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_files_are_one_line_that_names_the_file(tmp_path, name):
    make, message = BAD[name]
    make(tmp_path / name)
    with pytest.raises(UserError, match=message) as caught:
        read_words(tmp_path / name)
    assert name in str(caught.value)
    assert "\n" not in str(caught.value)


def test_strange_token_ids_do_not_stop_a_file(tmp_path):
    content = {"string_to_token": {"*": "eight"}, "string_to_param": {"*": torch.ones(1, 2)}}
    torch.save(content, tmp_path / "e.pt")
    assert read_words(tmp_path / "e.pt").token_ids == {}


def test_writing_replaces_all_or_nothing(tmp_path, monkeypatch):
    path = tmp_path / "new" / "e.pt"
    write_words(path, {"*": torch.ones(1, 2)}, {"*": 1})
    before = path.read_bytes()

    def fail(*args):
        raise OSError("disk full")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(UserError, match="disk full"):
        write_words(path, {"*": torch.zeros(1, 2)}, {"*": 1})
    assert path.read_bytes() == before
    assert [p.name for p in path.parent.iterdir()] == ["e.pt"]


def test_writing_where_nothing_can_be_written_is_a_user_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write"):
        write_words(tmp_path / "file" / "e.pt", {"*": torch.ones(1, 2)}, {"*": 1})


def test_writing_says_which_argument_is_wrong(tmp_path):
    with pytest.raises(ValueError, match="words is empty"):
        write_words(tmp_path / "e.pt", {}, {})
    with pytest.raises(ValueError, match="token_ids"):
        write_words(tmp_path / "e.pt", {"*": torch.ones(1, 2)})
    with pytest.raises(ValueError, match=r"\.pt or \.safetensors"):
        write_words(tmp_path / "e.bin", {"*": torch.ones(1, 2)}, {"*": 1})


def test_a_word_for_another_encoder_is_refused_by_width_and_by_family(tmp_path):
    path = tmp_path / "e.safetensors"
    write_words(path, {"*": torch.ones(1, 768)})
    with pytest.raises(UserError, match=r"width 768, for CLIP ViT-L/14.*ldm-bert, width 1280"):
        check_encoder(read_words(path), "ldm-bert", 1280, path)
    write_words(path, {"*": torch.ones(1, 1280)}, metadata={"encoder_family": "clip_g"})
    with pytest.raises(UserError, match="'clip_g'"):
        check_encoder(read_words(path), "ldm-bert", 1280, path)
    write_words(path, {"*": torch.ones(1, 1280)})
    check_encoder(read_words(path), "ldm-bert", 1280, path)


def test_renaming(tmp_path):
    path = tmp_path / "e.safetensors"
    write_words(path, {"*": torch.ones(1, 2), "@": torch.zeros(1, 2)})
    file = read_words(path)
    assert set(renamed(file, {"*": "#"}, path).words) == {"#", "@"}
    with pytest.raises(UserError, match="no word '!'"):
        renamed(file, {"!": "#"}, path)
    with pytest.raises(UserError, match="two words one name"):
        renamed(file, {"*": "@"}, path)
