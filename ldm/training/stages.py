"""A run in two stages, such as pivotal tuning: the word first, then what `second_stage` changes.

Each stage is a run of its own, with its folder, batch, rates and optimiser; so each saves and goes
on as any other run does, exactly. The second lies in the first one's log folder and begins with the
words that the first one learned.
"""

from __future__ import annotations

import argparse
import gc
import logging

from ldm.training.checks import check_config
from ldm.training.config import RunConfig, load_config
from ldm.training.run import log_folder, run
from ldm.training.trainer import accumulation, device_count, trainer_settings
from ldm.training.trainer_checks import check_trainer
from ldm.training.tuning import class_images_of, wants_class_images
from ldm.util import UserError

log = logging.getLogger(__name__)

FOLDER = "second_stage"


def run_stages(options: argparse.Namespace, config: RunConfig | None = None) -> int:
    """Do what the command line asks, in one stage or two; return the exit status.

    `--resume` of the log folder goes on in the stage that was under way.

    Args:
        options: the command line.
        config: what `load_config` made of it, if that is known already.

    Raises UserError for whatever the user can mend, of both stages before the first begins.
    """
    config = config or load_config(options)
    second = config.second()
    if second is None:
        return run(options, config)
    check_second(second)
    folder = log_folder(options, config)
    later, words = folder / FOLDER, folder / "checkpoints" / "embeddings.safetensors"
    begun = (later / "checkpoints" / "last.ckpt").is_file()
    if not begun:
        status = run(options, config, folder)
        if status or not options.train:
            return status
        gc.collect()  # the first stage's model, before the second one's is read
        log.info(f"second stage, in {later}")
    own = argparse.Namespace(**{**vars(options), "resume": str(later) if begun else ""})
    return run(own, config.second(words=str(words)), later)


def check_second(config: RunConfig) -> None:
    """Check the second stage's configuration, perhaps hours before it begins.

    Raises UserError as the stage itself would.
    """
    try:
        check_config(config)
        settings = trainer_settings(config.lightning.trainer)
        check_trainer(settings)
        batch = config.data.params.batch_size
        accumulation(config.lightning, settings, batch, device_count(settings))
        if wants_class_images(config):
            class_images_of(config)
    except UserError as error:
        raise UserError(f"second stage: {error}") from error
