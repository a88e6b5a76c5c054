"""`main.py` as a script, and as the module that configurations name."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import main
from ldm.training.callbacks import CUDACallback, SetupCallback
from ldm.training.datamodule import DataModuleFromConfig
from ldm.training.image_logger import ImageLogger

ROOT = Path(__file__).parents[1]
# The original's flags, and those beside them.
FLAGS = (
    *("--base", "--train", "--name", "--resume", "--logdir", "--project", "--seed", "--postfix"),
    *("--no-test", "--scale_lr", "--datadir_in_name", "--actual_resume", "--data_root", "--gpus"),
    *("--embedding_manager_ckpt", "--placeholder_string", "--init_word", "--templates"),
    *("--max_steps", "--num_nodes"),
)


def script(*arguments: str, folder: Path = ROOT) -> subprocess.CompletedProcess[str]:
    """Run main.py in a process of its own."""
    command = [sys.executable, str(ROOT / "main.py"), *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120)


def test_the_originals_names_are_the_same_classes() -> None:
    assert main.DataModuleFromConfig is DataModuleFromConfig
    assert main.ImageLogger is ImageLogger
    assert main.SetupCallback is SetupCallback
    assert main.CUDACallback is CUDACallback
    with pytest.raises(AttributeError, match="Nonsense"):
        _ = main.Nonsense


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys, main\n"
        "try: main.main(['--help'])\n"
        "except SystemExit: pass\n"
        "heavy = {'torch', 'numpy', 'omegaconf', 'transformers', 'pytorch_lightning'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    for name in FLAGS:
        assert name in done.stdout


def test_mistakes_are_one_line_and_status_2(tmp_path: Path) -> None:
    done = script("--base", "nowhere.yaml", "-t", folder=tmp_path)
    assert done.returncode == 2
    assert (
        done.stderr == "error: no configuration at nowhere.yaml: give an existing file to --base\n"
    )
    assert not list(tmp_path.iterdir())


def test_an_unknown_argument_is_named_in_one_line(tmp_path: Path) -> None:
    done = script("--bse", "x.yaml", folder=tmp_path)
    assert done.returncode == 2
    assert done.stderr.startswith("error: unknown argument '--bse'")
    assert done.stderr.count("\n") == 1


def test_without_t_there_is_nothing_to_do(tmp_path: Path) -> None:
    done = script("--base", "nowhere.yaml", folder=tmp_path)
    assert done.returncode == 2
    assert done.stderr == "error: nothing to do: add -t to train\n"
