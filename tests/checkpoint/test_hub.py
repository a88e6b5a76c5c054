"""Bases by their name on the Hub, from its cache; the tests have no network."""

from __future__ import annotations

import errno
import shutil
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import save_file

from ldm.checkpoint import hub
from ldm.checkpoint.hub import locate_base, wanted_files
from ldm.hub import HUB_NAME
from ldm.inference import load_model
from ldm.util import UserError
from tests.checkpoint.pipelines import ldm, write_as_published

NAME = "CompVis/ldm-text2im-large-256"
COMMIT = "54e3cc1c9e4d2dfd3cf0b2c1b0a4d3f6a1f0b5ad"


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory):
    return ldm(tmp_path_factory.mktemp("vocabulary"))


@pytest.fixture
def cache(pipeline, tmp_path, monkeypatch):
    """A Hub cache that holds the 1.4B model's repository at tiny size."""
    place = tmp_path / "models--CompVis--ldm-text2im-large-256"
    write_as_published(pipeline, place / "snapshots" / COMMIT)
    (place / "refs").mkdir()
    (place / "refs" / "main").write_text(COMMIT)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    hub.fetch.cache_clear()
    return place / "snapshots" / COMMIT


@torch.no_grad()
@pytest.mark.parametrize("name", [NAME, f"hf:{NAME}", f"hf:{NAME}@{COMMIT}", f"{NAME}@main"])
def test_the_published_layout_loads_by_name_without_a_network(cache, pipeline, name):
    assert locate_base(name) == cache
    model = load_model(name)
    ids = pipeline.tokenizer(
        ["a cat"], padding="max_length", max_length=77, return_tensors="pt"
    ).input_ids
    torch.testing.assert_close(model.get_learned_conditioning(["a cat"]), pipeline.bert(ids)[0])
    x = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(
        model.first_stage_model.decode(x), pipeline.vqvae.decode(x).sample, rtol=1e-4, atol=1e-4
    )


def test_weights_in_the_requested_type(cache):
    model = load_model(NAME, dtype=torch.bfloat16)
    assert model.model.diffusion_model.out[2].weight.dtype == torch.bfloat16
    assert model.alphas_cumprod.dtype == torch.float32


def test_a_name_that_is_neither_here_nor_reachable(cache):
    with pytest.raises(UserError, match=r"org/absent is no file .* the Hub cannot be reached"):
        load_model("org/absent")
    with pytest.raises(UserError, match="models/absent does not exist: get the published"):
        load_model("models/absent")
    with pytest.raises(UserError, match=r"folder/model\.ckpt does not exist"):
        load_model("folder/model.ckpt")


def test_without_a_route_to_the_hub(cache, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    assert locate_base(NAME) == cache
    with pytest.raises(UserError, match="the Hub cannot be reached") as caught:
        locate_base("org/absent")
    assert "\n" not in str(caught.value)


def test_a_cached_folder_that_lacks_a_component(cache):
    shutil.rmtree(cache / "bert")
    with pytest.raises(UserError, match="but lacks the component bert/: download"):
        load_model(NAME)


@pytest.mark.parametrize(
    ("error", "says"),
    [
        ("GatedRepoError", "is gated: accept its terms on huggingface.co/org/name"),
        ("RepositoryNotFoundError", "no repository on the Hub that you may read: check the name"),
        ("RevisionNotFoundError", "has no revision v9"),
    ],
)
def test_what_the_hub_refuses_is_one_line(monkeypatch, error, says):
    from huggingface_hub import HfApi, errors

    def refuse(*_, **__):
        raise getattr(errors, error)(
            "401 Client Error", response=SimpleNamespace(headers={}, request=None)
        )

    monkeypatch.setattr(HfApi, "model_info", refuse)
    with pytest.raises(UserError, match=says) as caught:
        hub.fetch("org/name", revision="v9")
    assert "\n" not in str(caught.value)


XET = "Data processing error: CAS service error : IO Error: "


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (OSError(errno.ENOSPC, "No space left on device", "a.bin"), "cache .* is full; free space"),
        (RuntimeError(f"{XET}No space left on device (os error 28)"), "cache .* is full; free"),
        (RuntimeError(f"{XET}Timer expired"), r"cannot be reached \(.*Timer expired\): go online"),
        (ConnectionResetError(errno.ECONNRESET, "reset"), r"cannot be reached \(.*reset\)"),
        (PermissionError(errno.EACCES, "denied", "/a"), r"cache cannot be written \(.*denied"),
    ],
)
def test_a_download_that_breaks_off_says_why(monkeypatch, tmp_path, error, says):
    from huggingface_hub import HfApi

    def download(_, local_files_only=False, **__):
        raise FileNotFoundError("no copy") if local_files_only else error

    files = [SimpleNamespace(rfilename="model.safetensors")]
    monkeypatch.setattr(HfApi, "model_info", lambda *_, **__: SimpleNamespace(siblings=files))
    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    hub.fetch.cache_clear()
    with pytest.raises(UserError, match=f"org/broken.* {says}") as caught:
        hub.fetch("org/broken")
    assert "\n" not in str(caught.value)


def test_only_the_files_that_are_needed_are_fetched():
    names = [
        *("model_index.json", "README.md", "sd.ckpt", "tokenizer/vocab.json"),
        *("tokenizer/merges.txt", "unet/config.json", "safety_checker/config.json"),
        *("unet/diffusion_pytorch_model.safetensors", "unet/diffusion_pytorch_model.bin"),
        *("unet/diffusion_pytorch_model.fp16.safetensors", "text_encoder/pytorch_model.bin"),
        *("safety_checker/model.safetensors", "vae/diffusion_pytorch_model.fp16.safetensors"),
        "text_encoder_2/model-00001-of-00002.safetensors",
        "text_encoder_2/model-00002-of-00002.safetensors",
        "text_encoder_2/model.safetensors.index.json",
    ]
    wanted = set(wanted_files(names, "org/name"))
    assert {n for n in wanted if n.endswith((".safetensors", ".bin", ".ckpt"))} == {
        "unet/diffusion_pytorch_model.safetensors",
        "text_encoder/pytorch_model.bin",
        "vae/diffusion_pytorch_model.fp16.safetensors",
        "text_encoder_2/model-00001-of-00002.safetensors",
        "text_encoder_2/model-00002-of-00002.safetensors",
    }
    assert wanted > {"tokenizer/vocab.json", "tokenizer/merges.txt", "unet/config.json"}
    assert not any("safety" in name for name in wanted)


def test_a_repository_of_single_files():
    assert wanted_files(["a.safetensors", "a.ckpt", "x.md"], "o/n") == ["a.safetensors"]
    with pytest.raises(UserError, match=r"2 files of weights: name one, as hf:o/n/a\.ckpt"):
        wanted_files(["a.ckpt", "b.ckpt"], "o/n")
    with pytest.raises(UserError, match="no weights of a base"):
        wanted_files(["README.md"], "o/n")


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("org/name", (None, "org/name", None, None)),
        ("hf:org/name@v1", ("hf:", "org/name", None, "v1")),
        ("hf:org/name/a/b.ckpt", ("hf:", "org/name", "/a/b.ckpt", None)),
        ("name", None),
        ("/org/name", None),
    ],
)
def test_names(text, parts):
    found = HUB_NAME.fullmatch(text)
    assert (found and found.groups()) == parts


def test_a_repository_that_is_reached_is_downloaded(monkeypatch, tmp_path):
    from huggingface_hub import HfApi

    names = ["model.safetensors", "README.md"]
    listing = SimpleNamespace(siblings=[SimpleNamespace(rfilename=name) for name in names])
    asked = {}

    def download(repository, **options):
        asked.update(options, repository=repository)
        save_file({"a": torch.zeros(2)}, tmp_path / "model.safetensors")
        return str(tmp_path)

    monkeypatch.setattr(HfApi, "model_info", lambda *_, **__: listing)
    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    hub.fetch.cache_clear()
    assert hub.fetch("org/name", "model.safetensors", "v1") == tmp_path / "model.safetensors"
    wanted = {"repository": "org/name", "revision": "v1", "allow_patterns": names[:1]}
    assert asked == wanted
    with pytest.raises(UserError, match=r"org/name on the Hub has no file absent\.ckpt"):
        hub.fetch("org/name", "absent.ckpt")


def test_a_file_that_the_hub_lacks_and_a_fault_of_ours(monkeypatch):
    from huggingface_hub import HfApi, errors

    raised = []
    monkeypatch.setattr(HfApi, "model_info", lambda *_, **__: raised[0])

    def refuse(*_, **__):
        raise raised[0]

    monkeypatch.setattr(HfApi, "model_info", refuse)
    raised[:] = [errors.EntryNotFoundError("404: a.safetensors")]
    with pytest.raises(UserError, match=r"lacks a file: 404: a\.safetensors"):
        hub.fetch("org/other")
    raised[:] = [KeyError("ours")]
    with pytest.raises(KeyError, match="ours"):
        hub.fetch("org/other")


def test_a_folder_of_one_or_several_files(tmp_path):
    (tmp_path / "a.safetensors").touch()
    assert hub.file_in(tmp_path) == tmp_path / "a.safetensors"
    (tmp_path / "b.ckpt").touch()
    with pytest.raises(UserError, match=r"2 files of weights \(a.safetensors, b.ckpt\): name one"):
        hub.file_in(tmp_path)
    (tmp_path / "model.ckpt").touch()
    assert hub.file_in(tmp_path) == tmp_path / "model.ckpt"
