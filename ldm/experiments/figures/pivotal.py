"""Pivotal tuning in the miniature, for figure 11: a run of `main.py`, and the two files it leaves.

The weight delta is as large as the model, so it is made when it is needed, and not shipped.
`scripts/figures.py pivotal` is the command. Imports nothing heavy.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

from ldm.checkpoint.names import DELTA_FILE
from ldm.util import UserError

WORD = "embeddings.safetensors"
FOLDER = "outputs/pivotal"  # with a folder for each concept
HOW = "run scripts/figures.py pivotal, a few minutes, or give --pivotal DIR"
# The published rates, 1e-7 and 5e-5 over 4200 steps of one image, are for networks two hundred
# times as large. At these the concept keeps its shape and dots in every scene of figure 11.
SETTINGS = (
    "second_stage.model.params.model_lr=1.0e-4",
    "second_stage.model.base_learning_rate=1.0e-4",
    "second_stage.data.params.batch_size=8",
    "second_stage.lightning.images_per_step=8",
    "second_stage.lightning.trainer.max_steps=400",
)


def training_command(concept: str, concepts: Path, logs: Path, steps: int | None) -> list[str]:
    """Return the arguments of `python` that tune: those that a user would type.

    `concept` is a folder of `concepts`, described in its `concepts.json`; `logs` is the parent of
    the log folder; `steps` replaces those of both stages. Raises UserError where there is no such
    concept, or nothing says its initializer word.
    """
    if not (concepts / concept).is_dir():
        raise UserError(f"no concept {concept!r} in {concepts}: give a folder there to --concept")
    from ldm.experiments.figures.subjects import concept_record

    if not (first := str(concept_record(concepts / concept).get("first_word", ""))):
        listed = concepts / "concepts.json"
        raise UserError(f"{listed} says no initializer word of {concept!r}: add it there")
    command = ["main.py", "--base", "configs/miniature/finetune.yaml", "--variant", "pivotal"]
    command += ["-t", "--no-test", "--actual_resume", "models/miniature/model.safetensors"]
    command += ["--data_root", str(concepts / concept), "--init_word", first]
    command += ["--logdir", str(logs), "--name", "pivotal", *SETTINGS]
    if steps:
        for where in ("lightning", "second_stage.lightning"):
            command.append(f"{where}.trainer.max_steps={steps}")
    return command


def make(concept: str, concepts: Path, output: Path, root: Path, steps: int | None = None) -> Path:
    """Tune, keep the weight delta and the word in `output/CONCEPT`, and return that folder.

    Arguments and errors as `training_command`'s; `root` is the folder of `main.py`. A failed run,
    which has logged its error, is a UserError too.
    """
    logs = output / "logs" / concept
    command = training_command(concept, concepts, logs, steps)
    before = set(logs.glob("*"))
    status = subprocess.run([sys.executable, *command], cwd=root, check=False).returncode
    made = sorted(set(logs.glob("*")) - before)
    if status or not made:
        raise UserError(f"pivotal tuning of {concept!r} failed with status {status}: see above")
    folder = output / concept
    folder.mkdir(parents=True, exist_ok=True)
    # The weight delta last: it is what says that the folder is complete.
    for name in (WORD, DELTA_FILE):
        shutil.copyfile(made[-1] / "second_stage" / "checkpoints" / name, folder / name)
    shutil.rmtree(made[-1])  # checkpoints with optimizers: many times the weight delta's size
    return folder
