"""Without --base, the model decides the configuration of a run."""

from __future__ import annotations

import logging

import pytest
from omegaconf import OmegaConf

from ldm.cli.train import main
from ldm.training.config import load
from ldm.util import UserError
from tests.checkpoint.pipelines import PIPELINES


@pytest.fixture(scope="module", params=list(PIPELINES))
def folder(request, tmp_path_factory):
    path = tmp_path_factory.mktemp("base") / "pipeline"
    PIPELINES[request.param](tmp_path_factory.mktemp("vocabulary")).save_pretrained(path)
    return path


def command(model, images, *more):
    flags = ["-t", "--model", str(model), "--data_root", str(images), "--init_word", "cat"]
    return [*flags, *map(str, more)]


@pytest.fixture
def images(tmp_path):
    from PIL import Image

    for name in "ab":
        (tmp_path / "cats").mkdir(exist_ok=True)
        Image.new("RGB", (80, 64), "teal").save(tmp_path / "cats" / f"{name}.png")
    return tmp_path / "cats"


def test_a_word_is_learned_on_a_folder_of_diffusers(folder, images, tmp_path, caplog):
    more = ["--max_steps", 2, "-l", tmp_path / "logs", "--accelerator", "cpu", "-n", "run"]
    few = ["data.params.num_workers=0", "lightning.callbacks.image_logger=null"]
    with caplog.at_level(logging.INFO):
        assert main(command(folder, images, *more, *few)) == 0
    assert f"{folder}: " in caplog.text
    assert "a folder of diffusers; configuration configs/" in caplog.text
    (words,) = tmp_path.glob("logs/*/checkpoints/embeddings.pt")
    (stored,) = words.parents[1].glob("configs/*-project.yaml")
    config = OmegaConf.load(stored)
    assert config.data.params.train.params.size == 64
    assert config.model.params.unet_config.params.model_channels == 16


def test_the_miniature_has_its_own_settings(images):
    config = load(command("miniature", images))
    wanted = OmegaConf.load("configs/miniature/finetune.yaml")
    assert config.model.base_learning_rate == wanted.model.base_learning_rate
    assert config.data.params.train.params.size == 64
    assert config.run.base_checkpoint.endswith("models/miniature/model.safetensors")


def test_a_base_configuration_still_decides(images):
    line = [*command("miniature", images), "--base", "configs/miniature/paper.yaml"]
    stored = OmegaConf.load("configs/miniature/paper.yaml")
    assert load(line).model.base_learning_rate == stored.model.base_learning_rate


def test_a_model_that_is_not_there(images):
    with pytest.raises(UserError, match=r"checkpoint absent\.ckpt does not exist"):
        load(command("absent.ckpt", images))
