"""A run in two stages, such as pivotal tuning: the word first, then what `second_stage` changes.

Each stage is a run of its own, with its folder, batch, learning rates and optimizer, so each is
saved and resumed as any other run. The second lies in the first one's log folder and begins with
the words that the first one learned.
"""

from __future__ import annotations

import gc
import logging

from ldm.training.config import RunConfig
from ldm.training.run import run

log = logging.getLogger(__name__)


def run_stages(config: RunConfig) -> int:
    """Do what the configuration says, in one stage or two; return the exit status.

    A resumed run continues in the stage that was interrupted.

    Raises UserError for whatever the user can change.
    """
    if config.second is None:
        return run(config).status
    folder = config.folder
    words = "checkpoints", "embeddings.safetensors"
    second = config.second_after(folder, folder.joinpath(*words))
    if second.resume is None:
        first = run(config)
        if first.status or not config.train:
            return first.status
        gc.collect()  # the first stage's model, before the second one's is read
        second = config.second_after(first.folder, first.folder.joinpath(*words))
        log.info(f"second stage, in {second.folder}")
    return run(second, exclusive=False).status
