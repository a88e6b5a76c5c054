"""What a run saves: `last.ckpt`, from which it resumes exactly, its words, and the weight delta."""

from __future__ import annotations

import logging
import os
import signal
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any, TypeGuard

from pytorch_lightning import LightningModule, Trainer
from torch import Tensor

from ldm.checkpoint.names import DELTA_FILE
from ldm.checkpoint.weight_delta import save_weight_delta
from ldm.models.diffusion.ddpm import LatentDiffusion
from ldm.training.callbacks import StepCallback
from ldm.training.config import RunConfig
from ldm.training.lightning_private import count_steps, settle_counters
from ldm.training.watch import Watch
from ldm.training.words import EachWord, is_joint, manager_of, save_words
from ldm.util import at_least, write_whole

log = logging.getLogger(__name__)

# Functions that write more files at each save, called with (trainer, module, folder).
Saver = Callable[[Trainer, LightningModule, Path], None]

LAST, PREVIOUS = "last.ckpt", "previous.ckpt"
# SLURM sends SIGUSR1 before it ends a job; a terminal that closes sends SIGHUP.
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP)


class Checkpoints(StepCallback):
    """Save `last.ckpt` at an interval of optimizer steps, at the end, and when asked to stop.

    The checkpoint before it stays as `previous.ckpt`; a damaged one never takes this name. The
    signals of `SIGNALS` let the step in progress end, save, and end the run without an exception; a
    second signal stops at once. A save happens between steps, after the averaged weights were
    updated, so a resumed run equals an uninterrupted one bit for bit.

    Args:
        folder: where the checkpoints go.
        every_n_train_steps: optimizer steps between saves, at least 1.
        savers: further functions to call at each save.
        watch: stops the run instead of saving numbers that are not finite.
    """

    def __init__(
        self,
        folder: Path,
        every_n_train_steps: int = 500,
        savers: tuple[Saver, ...] = (),
        watch: Watch | None = None,
    ) -> None:
        at_least(1, every_n_train_steps=every_n_train_steps)
        self.folder, self.every, self.savers = folder, every_n_train_steps, savers
        self.watch = watch
        self.saved_at = -1
        self.last_is_whole = True
        self.signal: int | None = None
        self._handlers: dict[int, Any] = {}

    def _on_signal(self, number: int, _: FrameType | None) -> None:
        if self.signal is not None:
            raise KeyboardInterrupt
        self.signal = number

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Store the first step, and whether `last.ckpt` is damaged."""
        self.saved_at = trainer.global_step
        self.last_is_whole = Path(trainer.ckpt_path or LAST).name != PREVIOUS

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take over the signals. Before this hook, Lightning would take some of them back."""
        if threading.current_thread() is threading.main_thread():  # no other may take signals
            for number in SIGNALS:
                self._handlers[number] = signal.signal(number, self._on_signal)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Give the signals back."""
        for number, handler in self._handlers.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        self._handlers = {}

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Save between two steps if a save is due."""
        count_steps(trainer)
        if batch_idx % trainer.accumulate_grad_batches:
            return
        if trainer.global_step % self.every == 0 and trainer.global_step != self.saved_at:
            self.save(trainer, pl_module)

    def on_step(self, trainer: Trainer, module: LightningModule, loss: Tensor, logs: bool) -> None:
        """Stop after a whole step, if a signal has asked any process to."""
        if trainer.strategy.reduce_boolean_decision(self.signal is not None, all=False):
            trainer.should_stop = True

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save what the last step changed."""
        if trainer.global_step != self.saved_at:
            self.save(trainer, pl_module)

    def save(self, trainer: Trainer, module: LightningModule) -> None:
        """Call the savers, then write `last.ckpt` whole or not at all.

        Raises UserError, and writes no checkpoint, if a trained number is not finite.
        """
        if self.watch is not None:
            self.watch.check(trainer, module)
            self.watch.check_networks(trainer, module)
        manager = manager_of(module)
        if manager is not None:
            manager.set_step(trainer.global_step)
        path = self.folder / LAST
        if trainer.is_global_zero:
            for saver in self.savers:
                saver(trainer, module, self.folder)
            if self.last_is_whole:
                keep_previous(path)
            write_whole(path, lambda part: trainer.save_checkpoint(part, weights_only=False))
            self.last_is_whole = True
        else:  # gathers the state with the first process, and writes nothing
            trainer.save_checkpoint(path, weights_only=False)
        self.saved_at = trainer.global_step

    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Keep what is trained, and buffers (averages); set the counters as after a whole step."""
        frozen = {name for name, weight in pl_module.named_parameters() if not weight.requires_grad}
        state = checkpoint["state_dict"].items()
        checkpoint["state_dict"] = {name: value for name, value in state if name not in frozen}
        settle_counters(checkpoint, trainer.global_step * trainer.accumulate_grad_batches)


def keep_previous(path: Path) -> None:
    """Give a checkpoint a second name, `previous.ckpt`; do nothing if it does not exist."""
    if not path.is_file():
        return
    part = path.with_name(f"{PREVIOUS}.new")
    part.unlink(missing_ok=True)
    try:
        os.link(path, part)
        part.replace(path.with_name(PREVIOUS))
    except OSError:  # a file system without links
        path.replace(path.with_name(PREVIOUS))


def save_delta(
    trainer: Trainer, module: LightningModule, folder: Path, *, base: str, half: bool
) -> None:
    """Write the weight delta from the checkpoint `base`; nothing if only words are trained."""
    if not tunes(module):
        return
    assert module.embedding_manager is not None
    facts = {"step": str(trainer.global_step)}
    if found := module.embedding_manager.metadata.get("config_hash"):
        facts["config_hash"] = found
    save_weight_delta(module, folder / DELTA_FILE, Path(base), half=half, facts=facts)


def tunes(module: LightningModule) -> TypeGuard[LatentDiffusion]:
    """Tell whether a model's networks are trained beside its words."""
    return manager_of(module) is not None and bool(getattr(module, "trains_model", False))


def network_rates(model: LatentDiffusion) -> str:
    """Return a text with the learning rates at which the networks are tuned."""
    rate = model.model_lr if model.text_lr is None else model.text_lr
    trained = any(weight.requires_grad for weight in model.cond_stage_model.parameters())
    texts = f"text encoder's {rate:.4g}" if trained else "text encoder frozen"
    return f"U-Net's learning rate {model.model_lr:.4g}, {texts} (not scaled)"


def savers(config: RunConfig) -> tuple[Saver, ...]:
    """Return what a run writes at each save."""
    if is_joint(config):
        return (EachWord(config),)
    base, half = config.run.base_checkpoint, config.run.half_difference
    return (save_words, partial(save_delta, base=base, half=half)) if base else (save_words,)
