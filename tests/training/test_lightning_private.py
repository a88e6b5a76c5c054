"""The parts of Lightning that are used and not documented are as `lightning_private` expects."""

from __future__ import annotations

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.demos.boring_classes import BoringModel

from ldm.training import lightning_private
from ldm.training.checkpoints import Checkpoints

CHANGED = (
    f"pytorch-lightning {pl.__version__} has changed its loops: adapt ldm/training/"
    "lightning_private.py, then run tests/training/test_run.py"
)


@pytest.mark.filterwarnings("ignore")
def test_the_counters_are_where_they_are_written(tmp_path) -> None:
    saving = Checkpoints(tmp_path, 2)
    trainer = pl.Trainer(
        max_steps=3, max_epochs=-1, accelerator="cpu", logger=False, callbacks=[saving],
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
        log_every_n_steps=7, limit_val_batches=0, default_root_dir=tmp_path,
    )  # fmt: skip
    try:
        trainer.fit(BoringModel())
        assert lightning_private.log_interval(trainer) == 7
        assert trainer.fit_loop.epoch_loop._batches_that_stepped == 3
        lightning_private.count_steps(trainer)
        content = torch.load(tmp_path / "last.ckpt", weights_only=True)
        assert lightning_private.is_run_checkpoint(content)
        assert not lightning_private.is_run_checkpoint({"state_dict": {}})
        fit = content["loops"]["fit_loop"]
        assert set(fit) == {
            "state_dict", "epoch_loop.state_dict", "epoch_loop.batch_progress",
            "epoch_loop.scheduler_progress", "epoch_loop.automatic_optimization.state_dict",
            "epoch_loop.automatic_optimization.optim_progress",
            "epoch_loop.manual_optimization.state_dict",
            "epoch_loop.manual_optimization.optim_step_progress",
            "epoch_loop.val_loop.state_dict", "epoch_loop.val_loop.batch_progress",
            "epoch_progress",
        }  # fmt: skip
        counters = {"ready": 3, "started": 3, "processed": 3, "completed": 3}
        for scope in ("total", "current"):
            assert fit["epoch_loop.batch_progress"][scope] == counters
            assert fit["epoch_progress"][scope] == {
                "ready": 1, "started": 1, "processed": 0, "completed": 0,
            }  # fmt: skip
    except (AttributeError, KeyError, AssertionError) as error:
        pytest.fail(f"{CHANGED} ({type(error).__name__}: {error})")
