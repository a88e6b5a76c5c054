"""A base as one file and as a folder: diffusers opens what is written, and nothing is lost."""

from __future__ import annotations

import errno
import os
import shutil
from types import SimpleNamespace

import diffusers
import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from ldm.checkpoint import convert
from ldm.checkpoint.loading import find_base
from ldm.checkpoint.tables import FAMILIES, text_encoder
from ldm.cli.convert_model import main
from ldm.inference import Sampling, generate, load_model
from ldm.util import UserError
from tests.checkpoint.pipelines import PIPELINES


@pytest.fixture(scope="module", params=list(PIPELINES))
def family(request):
    return request.param


@pytest.fixture(scope="module")
def folder(family, tmp_path_factory):
    path = tmp_path_factory.mktemp("base") / "pipeline"
    PIPELINES[family](tmp_path_factory.mktemp("vocabulary")).save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def file(folder, tmp_path_factory):
    """The folder as one file, with its configuration beside it."""
    path = tmp_path_factory.mktemp("file") / "base.safetensors"
    assert main([str(folder), str(path)]) == 0
    return path


def test_the_file_has_the_published_names(file, family):
    names = load_file(file)
    assert text_encoder(names)[0] == family.removesuffix("-v")
    assert file.with_suffix(".yaml").is_file(), "its sizes are not the published ones"


def test_a_file_makes_the_images_of_the_folder(file, folder):
    settings = Sampling(steps=3, seed=5)
    of_file, of_folder = (
        generate(load_model(path), "a cat", settings)[0].image for path in (file, folder)
    )
    assert of_file.tobytes() == of_folder.tobytes()


def test_diffusers_opens_the_folder_that_is_written(file, folder, family, tmp_path):
    again = tmp_path / "again"
    assert main([str(file), str(again)]) == 0
    pipeline = getattr(diffusers, FAMILIES[family].pipeline)
    before, after = (pipeline.from_pretrained(path) for path in (folder, again))
    for name, part in before.components.items():
        if not isinstance(part, torch.nn.Module):
            continue
        state, found = part.state_dict(), after.components[name].state_dict()
        assert state.keys() == found.keys()
        for entry, value in state.items():
            assert torch.equal(value, found[entry]), f"{name}: {entry}"
        if name in ("unet", "vae", "vqvae"):
            told, own = after.components[name].config, part.config
            for key in ("block_out_channels", "norm_num_groups", "sample_size", "layers_per_block"):
                assert told[key] == own[key] or list(told[key]) == list(own[key])
    settings = {"num_inference_steps": 3, "output_type": "np"}
    images = []
    for made in (before, after):
        made.set_progress_bar_config(disable=True)
        generator = torch.Generator().manual_seed(1)
        images.append(made("a cat", generator=generator, **settings).images[0])
    assert (images[0] == images[1]).all()


def test_half_precision_and_the_other_file_form(folder, family, tmp_path):
    assert main([str(folder), str(tmp_path / "half.ckpt"), "--half"]) == 0
    state = torch.load(tmp_path / "half.ckpt", weights_only=True)["state_dict"]
    weight = state["model.diffusion_model.out.2.weight"]
    assert weight.dtype == torch.float16
    whole = load_model(folder)
    found = load_model(tmp_path / "half.ckpt")
    assert torch.equal(found.alphas_cumprod, whole.alphas_cumprod)
    assert find_base(tmp_path / "half.ckpt").family == family


def test_what_exists_is_not_overwritten(folder, tmp_path):
    (tmp_path / "there.ckpt").touch()
    with pytest.raises(UserError, match="exists: give another name"):
        main([str(folder), str(tmp_path / "there.ckpt")])


FULL = (
    OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)),
    SafetensorError("Error while serializing: No space left on device (os error 28)"),
)


@pytest.mark.parametrize("error", FULL, ids=["of the system", "of safetensors"])
@pytest.mark.parametrize("written", [0, 1, 2])
def test_a_full_disk_leaves_no_folder(folder, tmp_path, monkeypatch, error, written):
    """The error comes after some of the components were written."""
    whole, count = convert.save_file, []

    def save(*arguments, **options):
        if len(count) == written:
            monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=0))
            raise error
        count.append(1)
        whole(*arguments, **options)

    monkeypatch.setattr(convert, "save_file", save)
    with pytest.raises(UserError, match=r"cannot write '.*/out': No space left on device$"):
        main([str(folder), str(tmp_path / "out")])
    assert list(tmp_path.iterdir()) == []
