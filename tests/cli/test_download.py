"""scripts/download_models.sh, from a folder that stands for the web."""

from __future__ import annotations

import gzip
import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

SCRIPT = Path(__file__).parents[2] / "scripts" / "download_models.sh"
pytestmark = pytest.mark.skipif(
    not (shutil.which("bash") and shutil.which("curl")), reason="needs bash and curl"
)


@pytest.fixture
def web(tmp_path):
    folder = tmp_path / "web"
    folder.mkdir()
    return folder


def download(tmp_path, *parts, **environment):
    return subprocess.run(
        ["bash", str(SCRIPT), "--root", str(tmp_path / "project"), *parts],
        capture_output=True, text=True, timeout=120, check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
    )  # fmt: skip


def vocabulary(web, text="[PAD]\n[UNK]\n" * 500):
    file = web / "vocab.txt"
    file.write_text(text)
    md5 = hashlib.md5(file.read_bytes()).hexdigest()
    return {"VOCAB_URL": file.as_uri(), "VOCAB_MD5": md5}


def test_the_vocabulary_is_verified_and_kept(web, tmp_path):
    settings = vocabulary(web)
    result = download(tmp_path, "vocabulary", **settings)
    assert result.returncode == 0, result.stderr
    file = tmp_path / "project/models/ldm/text2img-large/bert-base-uncased/vocab.txt"
    assert file.read_bytes() == (web / "vocab.txt").read_bytes()
    (web / "vocab.txt").unlink()  # offline from now on
    assert download(tmp_path, "vocabulary", **settings).returncode == 0
    file.write_text("changed")
    result = download(tmp_path, "vocabulary", **settings)
    assert result.returncode == 1
    assert "does not have the MD5" in result.stderr


def test_an_interrupted_download_continues(web, tmp_path):
    settings = vocabulary(web)
    part = tmp_path / "project/models/ldm/text2img-large/bert-base-uncased/vocab.txt.part"
    part.parent.mkdir(parents=True)
    part.write_bytes((web / "vocab.txt").read_bytes()[:1000])
    assert download(tmp_path, "vocabulary", **settings).returncode == 0
    assert part.with_suffix("").read_bytes() == (web / "vocab.txt").read_bytes()


def test_a_wrong_vocabulary_is_thrown_away(web, tmp_path):
    result = download(tmp_path, "vocabulary", **{**vocabulary(web), "VOCAB_MD5": "0" * 32})
    assert result.returncode == 1
    assert "does not have the MD5 000" in result.stderr
    assert not [p for p in (tmp_path / "project").rglob("*") if p.is_file()]


def test_a_link_that_is_dead_is_an_error(tmp_path):
    result = download(tmp_path, "vocabulary", VOCAB_URL=(tmp_path / "absent").as_uri())
    assert result.returncode == 1
    assert "error: download of" in result.stderr


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"<html>gone</html>", "that is not a checkpoint"), (b"PK\x03\x04short", "expected at least")],
)
def test_a_model_that_is_none_or_too_short_is_refused(web, tmp_path, content, message):
    (web / "model.ckpt").write_bytes(content)
    result = download(tmp_path, "model", MODEL_URL=(web / "model.ckpt").as_uri())
    assert result.returncode == 1
    assert message in result.stderr
    assert not (tmp_path / "project/models/ldm/text2img-large/model.ckpt").exists()


def whole_model(web, context):
    """Settings for a small file that looks like a model with text of some width."""
    state = {
        "model.diffusion_model.input_blocks.0.0.weight": torch.zeros(320, 4, 3, 3),
        "model.diffusion_model.middle_block.1.attn2.to_k.weight": torch.zeros(8, context),
        "cond_stage_model.transformer.attn_layers.layers.0.0.weight": torch.zeros(8),
        "first_stage_model.quant_conv.bias": torch.zeros(8),
    }
    torch.save({"state_dict": state}, web / "model.ckpt")
    return {"MODEL_URL": (web / "model.ckpt").as_uri(), "MODEL_MIN_BYTES": "1000"}


def test_a_models_checksum_is_recorded(web, tmp_path):
    # Without the project's Python the contents are not checked, and the script says so.
    result = download(tmp_path, "model", **whole_model(web, 1280), PYTHON="/absent/python")
    assert result.returncode == 0, result.stderr
    assert "contents not checked" in result.stdout
    record = tmp_path / "project/models/ldm/text2img-large/model.ckpt.sha256"
    sha256 = hashlib.sha256((web / "model.ckpt").read_bytes()).hexdigest()
    assert record.read_text() == f"{sha256}  model.ckpt\n"


def test_another_model_is_refused(web, tmp_path):
    python = {"PYTHON": sys.executable, "PYTHONPATH": str(SCRIPT.parents[1])}
    result = download(tmp_path, "model", **whole_model(web, 768), **python)
    assert result.returncode == 1
    assert "not the 1.4B model but latent diffusion" in result.stderr


@pytest.mark.slow
def test_the_hub_serves_where_the_first_link_fails(tmp_path, monkeypatch):
    """From a local Hub cache, with the network off."""
    from tests.checkpoint.pipelines import SIZES, ldm, write_as_published

    monkeypatch.setitem(SIZES, "ldm", 1280)
    place = tmp_path / "hub" / "models--CompVis--ldm-text2im-large-256"
    write_as_published(ldm(tmp_path / "vocabulary"), place / "snapshots" / ("0" * 40))
    (place / "refs").mkdir()
    (place / "refs" / "main").write_text("0" * 40)
    settings = {
        "MODEL_URL": (tmp_path / "gone.ckpt").as_uri(),
        "HF_HUB_CACHE": str(tmp_path / "hub"),
        "HF_HUB_OFFLINE": "1",
        "PYTHON": sys.executable,
        "PYTHONPATH": str(SCRIPT.parents[1]),
    }
    # The names are compared with the published ones, which have other sizes.
    result = download(tmp_path, "model", **settings)
    assert result.returncode == 1
    assert "entries are missing or have another shape" in result.stderr
    file = tmp_path / "project/models/ldm/text2img-large/model.ckpt"
    state = torch.load(file, weights_only=True)["state_dict"]
    rows = [f"{n}\t{','.join(map(str, v.shape))}\tfloat32" for n, v in state.items()]
    listing = tmp_path / "names.tsv.gz"
    listing.write_bytes(gzip.compress("\n".join(["name\tshape\tdtype", *rows]).encode()))
    file.unlink()
    file.with_name("model.ckpt.part").write_bytes(b"PK\x03\x04")
    result = download(tmp_path, "model", **settings, MODEL_NAMES=str(listing))
    assert result.returncode == 0, result.stderr
    assert not file.with_name("model.ckpt.part").exists()
    assert f"{len(rows)} names and shapes as published" in result.stdout


def test_a_link_that_failed_half_way_and_is_gone(web, tmp_path):
    """What is left of a first download does not keep a later one from the Hub."""
    part = tmp_path / "project/models/ldm/text2img-large/model.ckpt.part"
    part.parent.mkdir(parents=True)
    part.write_bytes(b"PK\x03\x04" + bytes(100))
    settings = {"MODEL_URL": (web / "gone.ckpt").as_uri(), "PYTHON": "/absent/python"}
    result = download(tmp_path, "model", **settings)
    assert result.returncode == 1
    assert "the first link fails: fetching CompVis/ldm-text2im-large-256" in result.stdout
    assert part.exists()  # the link may come back


def test_without_a_link_and_without_the_hub(tmp_path):
    settings = {
        "MODEL_URL": (tmp_path / "gone.ckpt").as_uri(),
        "HF_HUB_CACHE": str(tmp_path / "hub"),
        "HF_HUB_OFFLINE": "1",
        "PYTHONPATH": str(SCRIPT.parents[1]),
    }
    result = download(tmp_path, "model", **settings, PYTHON=sys.executable)
    assert result.returncode == 1
    assert "the Hub cannot be reached" in result.stderr
    assert "Traceback" not in result.stderr
    result = download(tmp_path, "model", **settings, PYTHON="/absent/python")
    assert "error: the conversion needs the project's Python" in result.stderr


def test_files_without_a_published_checksum_must_stay_what_they_were(web, tmp_path):
    for name in ("vocab.json", "merges.txt", "tokenizer_config.json"):
        (web / name).write_text(f"{name}\n")
    result = download(tmp_path, "clip", CLIP_URL=web.as_uri())
    assert result.returncode == 0, result.stderr
    assert "recorded beside it (none was published" in result.stdout
    assert "as recorded" in download(tmp_path, "clip", CLIP_URL=web.as_uri()).stdout
    folder = tmp_path / "project/models/ldm/stable-diffusion-v1/clip-vit-large-patch14"
    (folder / "merges.txt").write_text("changed")
    result = download(tmp_path, "clip", CLIP_URL=web.as_uri())
    assert result.returncode == 1
    assert "does not have the SHA-256 in" in result.stderr


def test_help_and_unknown_arguments(tmp_path):
    assert "vocabulary and model" in download(tmp_path, "--help").stdout
    result = download(tmp_path, "weights")
    assert result.returncode == 1
    assert result.stderr == "error: unknown argument weights (see --help)\n"
