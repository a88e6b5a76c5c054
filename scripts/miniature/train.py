"""Train the miniature from nothing: tokenizer, autoencoder, diffusion model and its two CLIPs.

    python scripts/miniature/train.py [--threads 2] [--device 0]

It takes hours and is resumable. Each stage is a command line of its own, printed as it starts. A
stage whose result is there is not run again; an interrupted one continues from its last checkpoint.
Work in progress lies in outputs/miniature, results in models/miniature.
"""

from __future__ import annotations

import argparse
import logging
import shlex
import subprocess
import sys
from pathlib import Path

from ldm.miniature.clip import TRAINING
from ldm.util import UserError, cli_main

log = logging.getLogger(__name__)
WORK = Path("outputs/miniature")
RESULT = Path("models/miniature")


def call(*words: str | Path) -> None:
    """Run a command of the project with this Python; a failure ends the training."""
    command = [sys.executable, *map(str, words)]
    log.info("$ %s", shlex.join(["python", *command[1:]]))
    status = subprocess.run(command, check=False).returncode
    if status:
        raise UserError(f"{words[0]} ended with status {status}; run the same command to continue")


def train(stage: str, machine: list[str], *overrides: str, over: str = "") -> Path:
    """Train a stage to its end with main.py and return its log folder.

    `over` names the stage whose configuration it changes.
    """
    logs = WORK / "logs"
    begun = sorted(p for p in logs.glob(f"*_{stage}") if (p / "checkpoints/last.ckpt").is_file())
    if begun:
        call("main.py", "-t", "--no-test", "--resume", begun[-1], *machine)
        return begun[-1]
    files = [f"configs/miniature/{name}.yaml" for name in (over, stage) if name]
    options = ["--scale_lr", "false", "--no-test", "-l", str(logs), "-n", stage]
    call("main.py", "--base", *files, "-t", *options, *machine, *overrides)
    return max(logs.glob(f"*_{stage}"))


def scale_of(autoencoder: Path) -> str:
    """Return the scale factor that export.py measured and stored."""
    from safetensors import safe_open

    with safe_open(str(autoencoder), framework="pt") as file:
        return str(file.metadata()["scale"])


def main() -> int:
    """Read the command line and run what is left to do."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--threads", type=int, default=2, help="CPU threads (2)")
    parser.add_argument("--device", help="GPU number; the CPU by default")
    parser.add_argument("--again", action="store_true", help="train also what is already there")
    options = parser.parse_args()
    machine = ["--threads", str(options.threads)]
    machine += ["--gpus", options.device] if options.device else []

    if options.again or not (RESULT / "tokenizer" / "vocab.txt").is_file():
        call("scripts/miniature/train_tokenizer.py")
    autoencoder = WORK / "autoencoder.safetensors"
    if not autoencoder.is_file():
        first = WORK / "autoencoder-first.safetensors"
        run = train("autoencoder", machine)
        call("scripts/miniature/export.py", "autoencoder", "--run", run, "--output", first)
        run = train("decoder", machine, f"model.params.ckpt_path={first}")
        call("scripts/miniature/export.py", "autoencoder", "--run", run, "--output", autoencoder)
    if options.again or not (RESULT / "model.safetensors").is_file():
        scale = f"model.params.scale_factor={scale_of(autoencoder)}"
        first = WORK / "diffusion"
        if not (first / "model.safetensors").is_file():
            run = train("diffusion", machine, scale)
            call("scripts/miniature/export.py", "model", "--run", run, "--output", first)
        # Another seed: the noise of the first stage is not repeated.
        more = ["--seed", "24", f"model.params.ckpt_path={first / 'model.safetensors'}"]
        run = train("diffusion-longer", machine, scale, *more, over="diffusion")
        call("scripts/miniature/export.py", "model", "--run", run, "--output", RESULT)
    for clip in TRAINING:
        if options.again or not (RESULT / clip / "model.safetensors").is_file():
            call("scripts/miniature/train_clip.py", clip)
    log.info("done: %s; measure it with: make miniature-eval", RESULT)
    return 0


if __name__ == "__main__":
    cli_main(main)
