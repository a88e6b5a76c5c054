"""An installed wheel works without the checkout: it learns a word and generates an image of it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def run(command: list[str | Path], folder: Path) -> str:
    """Run a command with nothing of the checkout in its environment."""
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    environment |= {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [str(part) for part in command], cwd=folder, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return done.stdout


@pytest.fixture(scope="module")
def scripts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Install the wheel into a fresh environment; return the folder of its commands.

    The dependencies come from this environment by a path file: nothing is downloaded.
    """
    folder = tmp_path_factory.mktemp("wheel")
    build = ["-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--quiet"]
    run([sys.executable, *build, "--wheel-dir", folder / "dist", ROOT], folder)
    (wheel,) = (folder / "dist").glob("*.whl")
    run([sys.executable, "-m", "venv", "--without-pip", folder / "venv"], folder)
    python = folder / "venv" / "bin" / "python"
    site = next((folder / "venv" / "lib").glob("python3*/site-packages"))
    install = ["-m", "pip", "--python", python, "install", "--no-deps", "--quiet"]
    run([sys.executable, *install, wheel], folder)
    # Plain paths, so that the editable install's own path file is not read.
    (site / "dependencies.pth").write_text(sysconfig.get_paths()["purelib"] + "\n")
    return python.parent


@pytest.mark.slow
def test_a_wheel_learns_a_word_and_generates_it(scripts: Path, tmp_path: Path) -> None:
    where = run([scripts / "python", "-c", "import ldm; print(ldm.__file__)"], tmp_path)
    assert "site-packages" in where
    assert str(ROOT) not in where
    shutil.copytree(ROOT / "examples/concepts/red-mug", tmp_path / "mugs")
    learn = ["--base", "configs/miniature/finetune.yaml", "-t", "--no-test", "--max_steps", "20"]
    learn += ["--actual_resume", "models/miniature/model.safetensors", "--init_word", "mug"]
    run([scripts / "ldm-train", *learn, "--data_root", "mugs", "--logdir", "logs"], tmp_path)
    (word,) = (tmp_path / "logs").glob("*/checkpoints/embeddings.safetensors")
    ask = ["--ckpt_path", "models/miniature", "--embedding_path", str(word)]
    ask += ["--prompt", "a photo of a *", "--ddim_steps", "2", "--n_samples", "1"]
    run([scripts / "ldm-txt2img", *ask, "--outdir", "images"], tmp_path)
    assert list((tmp_path / "images").glob("**/*.png"))


@pytest.mark.slow
@pytest.mark.parametrize("command", ["ldm-merge", "ldm-evaluate", "ldm-figures", "ldm-demo"])
def test_every_installed_command_answers_help(command: str, scripts: Path, tmp_path: Path) -> None:
    assert "usage:" in run([scripts / command, "--help"], tmp_path)
