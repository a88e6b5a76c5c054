"""DVAR: its rule in closed form, and that it stops a run without changing it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from omegaconf import OmegaConf

import main
from ldm.training.callbacks import CUDACallback
from ldm.training.dvar import DVAR, variance_ratio
from ldm.util import UserError, instantiate_from_config
from tests.training.conftest import Outcome

Learn = Callable[..., Outcome]
ROOT = Path(__file__).parents[2]
PLACE = "lightning.callbacks.early_stopping"
QUIET = ("--limit_val_batches", "0", "--no-test")


def stopping(window: int, bound: float, every: int = 1, samples: int = 4) -> tuple[str, ...]:
    """The overrides that switch it on."""
    values = {"window": window, "bound": bound, "every": every, "samples": samples}
    return (
        f"{PLACE}.target=ldm.training.dvar.DVAR",
        *(f"{PLACE}.params.{name}={value}" for name, value in values.items()),
    )


def test_the_ratio_of_a_straight_line_is_known() -> None:
    """Evenly spaced values: the variance of n of them is (n² − 1)/12 of their distance squared."""
    line = [1 - 0.01 * i for i in range(20)]
    assert variance_ratio(line, 5) == pytest.approx(24 / 399)


@given(st.lists(st.floats(0.1, 1), min_size=3, max_size=30), st.integers(2, 10))
def test_the_ratio_knows_no_unit(losses: list[float], window: int) -> None:
    ratio = variance_ratio(losses, window)
    assert ratio >= 0
    if np.var(losses) > 1e-6:
        scaled = [7 * loss + 3 for loss in losses]
        assert variance_ratio(scaled, window) == pytest.approx(ratio, rel=1e-6)
    if len(losses) <= window:
        assert ratio == 1


def test_a_loss_that_never_moved_has_settled() -> None:
    assert variance_ratio([0.5] * 4, 4) == 1
    assert variance_ratio([0.5] * 5, 4) == 0


def test_a_settled_run_stops_and_is_the_run_without_it(
    learn: Learn, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("INFO"):
        stopped = learn("stopped", "--max_steps", "40", *stopping(4, 0.9))
    assert stopped.status == 0
    rows = stopped.table()
    last = int(rows[-1]["step"])
    assert 4 <= last < 40
    assert f"stopped at step {last}: over the last 4 steps" in caplog.text
    assert len(rows) == last
    ratios = [float(row["dvar/ratio"]) for row in rows]
    assert ratios[-1] < 0.9 <= min(ratios[:-1], default=1)
    assert all(ratio == 1 for ratio in ratios[:3])
    assert torch.load(stopped.folder / "checkpoints/last.ckpt")["global_step"] == last
    whole = learn("whole", "--max_steps", str(last))
    assert torch.equal(stopped.word(), whole.word())
    for name in ("train/loss", "val/loss_simple_ema", "word/norm/*"):
        assert [row[name] for row in rows] == [row[name] for row in whole.table()]


def test_the_fixed_loss_has_no_noise(learn: Learn) -> None:
    """With rate 0 and no decay the word stands still, and so does the loss."""
    still = ("model.base_learning_rate=1e-30", *QUIET)
    outcome = learn("still", "--max_steps", "9", *still, *stopping(4, 0.1, every=2))
    # Losses at steps 0, 2 and 4: one more than the window's two, and no variance.
    rows = outcome.table()
    assert int(rows[-1]["step"]) == 4
    assert len({row["dvar/loss"] for row in rows if row["dvar/loss"]}) == 1
    assert len({row["train/loss"] for row in rows}) == len(rows)


def test_an_interrupted_run_decides_as_one_that_was_not(
    learn: Learn, monkeypatch: pytest.MonkeyPatch
) -> None:
    rule = (*stopping(6, 0.8), *QUIET)
    whole = learn("whole", "--max_steps", "40", *rule)
    last = int(whole.table()[-1]["step"])
    assert last > 4

    def interrupt(self: object, trainer: object, module: object, batch: object, i: int) -> None:
        if i == 2:
            os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(CUDACallback, "on_train_batch_start", interrupt, raising=False)
        part = learn("part", "--max_steps", "40", *rule)
    assert part.status == 128 + signal.SIGTERM
    assert main.main(["-t", "--resume", str(part.folder), "--no-test"]) == 0
    assert torch.equal(part.word(), whole.word())
    assert [row["dvar/loss"] for row in part.table()] == [r["dvar/loss"] for r in whole.table()]
    # What has stopped stays where it is.
    assert main.main(["-t", "--resume", str(part.folder), "--no-test"]) == 0
    assert torch.load(part.folder / "checkpoints/last.ckpt")["global_step"] == last


@pytest.mark.slow
def test_two_processes_stop_together(arguments: list[str], learn: Learn) -> None:
    rule = (*stopping(4, 0.9), *QUIET)
    one = learn("one", "data.params.batch_size=4", "--max_steps", "40", *rule)
    more = ["-n", "both", "--devices", "2", "--strategy", "ddp", "--max_steps", "40", *rule]
    done = subprocess.run(
        [sys.executable, str(ROOT / "main.py"), *arguments, *more],
        cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True,
        timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    (folder,) = one.folder.parent.glob("*_both")
    both = Outcome(0, folder)
    assert both.table()[-1]["step"] == one.table()[-1]["step"]
    torch.testing.assert_close(one.word(), both.word(), atol=1e-5, rtol=1e-4)


def test_the_overlay_switches_it_on_and_paper_mode_has_none() -> None:
    overlay = OmegaConf.load(ROOT / "configs/variants/dvar.yaml")
    assert set(overlay) == {"variant", "lightning"}
    callback = instantiate_from_config(overlay.lightning.callbacks.early_stopping)
    assert isinstance(callback, DVAR)
    assert (callback.window, callback.bound) == (200, 0.15)
    for base in ("finetune", "finetune_style", "miniature/finetune", "miniature/paper"):
        config = OmegaConf.load(ROOT / f"configs/{base}.yaml")
        assert set(config.lightning.callbacks) <= {"image_logger"}


@pytest.mark.parametrize(
    ("given", "line"),
    [
        ({"every": 0}, "every must be at least 1, got 0"),
        ({"samples": 0}, "samples must be at least 1, got 0"),
        ({"window": 9, "every": 5}, "window must hold two evaluations, got 9 for every=5"),
        ({"bound": 0.0}, r"bound must lie in \(0, 1\], got 0"),
        ({"bound": 1.5}, r"bound must lie in \(0, 1\], got 1.5"),
    ],
)
def test_arguments_out_of_range(given: dict[str, float], line: str) -> None:
    with pytest.raises(ValueError, match=line):
        DVAR(**given)  # type: ignore[arg-type]


def test_a_mistake_in_the_file_is_one_line(learn: Learn) -> None:
    where = r"lightning\.callbacks\.early_stopping\.params"
    with pytest.raises(UserError, match=f"{where}: bound must lie in"):
        learn("wrong", *stopping(4, 2.0))
