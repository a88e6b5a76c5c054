"""scripts/edit.py and scripts/invert.py: from files to files, and what is wrong in a line."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ldm.cli import edit, img2img, invert
from ldm.editing.inversion import read_noise
from ldm.image_io import read_settings
from ldm.util import UserError

ROOT = Path(__file__).parents[2]


@pytest.fixture
def files(tmp_path, untrained_miniature):
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 256, (64, 64, 3), np.uint8)).save(tmp_path / "image.png")
    mask = Image.new("L", (64, 64))
    mask.paste(255, (16, 16, 48, 48))
    mask.save(tmp_path / "mask.png")
    Image.new("L", (32, 32), 255).save(tmp_path / "small.png")
    Image.new("L", (64, 64)).save(tmp_path / "empty.png")
    (tmp_path / "broken.png").write_bytes(b"no image")
    return {
        "folder": tmp_path,
        "model": untrained_miniature,
        "word": untrained_miniature / "words" / "sepia.safetensors",
    }


def options(files, image="image.png", **more):
    """The words of a command line; None leaves an option out."""
    given = {
        "image": files["folder"] / image,
        "ckpt_path": files["model"],
        "outdir": files["folder"] / "out",
        "device": "cpu",
        "prompt": "a photo of *",
        "embedding_path": files["word"],
        "steps": 2,
        **more,
    }
    line = []
    for name, value in given.items():
        if value is not None:
            line += [f"--{name}", *map(str, value if isinstance(value, list) else [value])]
    return line


def editing(files, mask="mask.png", **more):
    return options(files, mask=files["folder"] / mask, **more)


def command(script, arguments):
    return subprocess.run(
        [sys.executable, str(ROOT / "scripts" / script), *arguments],
        capture_output=True, text=True, timeout=300, check=False,
        env={"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PATH": ""},
    )  # fmt: skip


def test_the_command_leaves_the_background_as_it_was(files):
    result = command("edit.py", editing(files, n_samples=2))
    assert result.returncode == 0, result.stderr
    out = files["folder"] / "out"
    first, second = sorted(out.glob("0*.png"))
    assert {p.name.split("_")[1] for p in (first, second)} == {"42.png", "43.png"}
    original = np.asarray(Image.open(files["folder"] / "image.png"))
    outside = np.asarray(Image.open(files["folder"] / "mask.png")) == 0
    for path in (first, second):
        edited = np.asarray(Image.open(path))
        assert (edited[outside] == original[outside]).all()
        assert (edited[~outside] != original[~outside]).mean() > 0.9
    scores = [read_settings(path)["score"] for path in (first, second)]
    assert scores == sorted(scores, reverse=True)
    settings = read_settings(first)
    assert (settings["prompt"], settings["steps"], settings["scale"]) == ("a photo of *", 2, 5.0)
    assert len(settings["checkpoint_hash"]) == 16
    assert Image.open(out / "grid.png").width > 2 * 64


def test_inversion_writes_noise_the_image_and_the_edits(files, caplog):
    caplog.set_level("INFO")
    line = options(files, edit=["a * at night", "a red mug *"], scales=[1, 5], steps=3)
    assert invert.main(line) == 0
    out = files["folder"] / "out"
    assert sorted(p.name for p in out.iterdir()) == [
        "a-at-night_scale1.png", "a-at-night_scale5.png", "a-red-mug_scale1.png",
        "a-red-mug_scale5.png", "autoencoder.png", "drawn_back.png", "grid.png",
        "noise.safetensors",
    ]  # fmt: skip
    noise = read_noise(out / "noise.safetensors")
    assert noise.noise.shape == (1, 16, 8, 8)
    assert (noise.prompt, noise.steps) == ("a photo of *", 3)
    assert (noise.facts or {})["image"] == "image.png"
    assert "dB against the autoencoder's own" in caplog.text
    again = {"noise": out / "noise.safetensors", "prompt": None, "outdir": files["folder"] / "2"}
    assert invert.main(options(files, edit=["a * at night"], scales=[5], **again)) == 0
    images = [Image.open(f / "a-at-night_scale5.png") for f in (out, files["folder"] / "2")]
    difference = np.asarray(images[0]).astype(int) - np.asarray(images[1])
    assert abs(difference).max() <= 1
    with pytest.raises(UserError, match=r"noise\.safetensors exists: give another --outdir"):
        invert.main(line)
    with pytest.raises(UserError, match=r"is of another image, image\.png"):
        invert.main(options(files, "mask.png", edit=["a *"], **again))


@pytest.fixture
def without_model(monkeypatch):
    """Whatever is refused is refused before the model is loaded."""

    def load_model(*_, **__):
        raise AssertionError("the model was loaded")

    monkeypatch.setattr("ldm.inference.load_model", load_model)


@pytest.mark.usefixtures("without_model")
@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"mask": "small.png"}, r"small.png' is 32 x 32, but the image is 64 x 64: give"),
        ({"mask": "empty.png"}, r"empty.png' is empty: make white"),
        ({"mask": "broken.png"}, r"broken.png' cannot be read"),
        ({"mask": "absent.png"}, r"absent.png' does not exist"),
        ({"image": "broken.png"}, r"broken.png' cannot be read"),
        ({"embedding_path": None}, r"names '\*', but no word is loaded: give its file"),
        ({"embedding_path": "absent.pt"}, "absent.pt"),
        ({"ckpt_path": "absent.ckpt"}, "checkpoint absent.ckpt does not exist"),
        ({"device": "tpu"}, "device 'tpu' is unknown"),
        ({"extractor": "absent"}, "extractor absent"),
        ({"steps": 0}, r"--steps must lie in 1\.\.1000, got 0"),
        ({"scale": "nan"}, "--scale must be at least 0, got nan"),
        ({"n_samples": 0}, "--n_samples must be at least 1, got 0"),
        ({"dilate": -1}, "--dilate must be at least 0, got -1"),
        ({"seed": -1}, r"--seed must lie in 0\.\.2\^62, got -1"),
        ({"background": "blur"}, "invalid choice: 'blur'"),
    ],
)
def test_a_bad_edit_is_refused_in_a_line(files, given, message):
    with pytest.raises(UserError, match=message) as caught:
        edit.main(editing(files, **given))
    assert "\n" not in str(caught.value)
    assert not (files["folder"] / "out").exists()


@pytest.mark.parametrize("which", [edit.parse, invert.parse, img2img.parse])
def test_a_second_prompt_is_an_error(which):
    with pytest.raises(UserError, match="--prompt: is given twice: this command takes one"):
        which(["--image", "a.png", "--prompt", "a cat", "--prompt", "a cat"])


@pytest.mark.usefixtures("without_model")
@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"image": "broken.png"}, r"broken.png' cannot be read"),
        ({"embedding_path": None}, r"names '\*', but no word is loaded"),
        ({"prompt": None}, "give either --prompt TEXT, which describes the image, or --noise"),
        ({"prompt": None, "noise": "x"}, "nothing to do: with --noise FILE give --edit TEXT"),
        ({"prompt": None, "noise": "x", "edit": ["a *"]}, "noise 'x' does not exist"),
        ({"steps": 1}, r"--steps must lie in 2\.\.1000, got 1"),
        ({"scales": [1, -3]}, "--scales must be at least 0, got -3.0"),
        ({"inversion_scale": "inf"}, "--inversion_scale must be at least 0, got inf"),
        ({"refinements": -1}, "--refinements must be at least 0, got -1"),
    ],
)
def test_a_bad_inversion_is_refused_in_a_line(files, given, message):
    with pytest.raises(UserError, match=message) as caught:
        invert.main(options(files, **given))
    assert "\n" not in str(caught.value)
    assert not (files["folder"] / "out").exists()


@pytest.mark.slow
def test_the_shipped_miniature_reconstructs_above_30_db_at_the_papers_250_steps(tmp_path, caplog):
    caplog.set_level("INFO")
    invert.main([
        "--ckpt_path", str(ROOT / "models/miniature"), "--outdir", str(tmp_path / "out"),
        "--image", str(ROOT / "examples/concepts/red-mug/1.png"), "--device", "cpu",
        "--prompt", "a photo of a red mug",
    ])  # fmt: skip
    assert read_settings(tmp_path / "out" / "drawn_back.png")["psnr_db"] >= 30
