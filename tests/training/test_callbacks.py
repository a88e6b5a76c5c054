"""Pictures when they are due, the table of values, the progress line."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from ldm.image_io import pil_grid
from ldm.training.callbacks import Progress
from ldm.training.checkpoints import Checkpoints
from ldm.training.csv_log import CsvLogger
from ldm.training.datamodule import DataModuleFromConfig
from ldm.training.image_logger import ImageLogger, quietly, write_caption


def test_images_are_due_every_so_many_steps() -> None:
    logger = ImageLogger(batch_frequency=10)
    assert [n for n in range(31) if logger.due(n)] == [10, 20, 30]
    early = ImageLogger(batch_frequency=10, increase_log_steps=True)
    assert [n for n in range(21) if early.due(n)] == [1, 2, 4, 8, 10, 20]


def test_the_originals_image_options() -> None:
    options = {"ddim_steps": 7, "unconditional_guidance_scale": 3.0, "inpaint": False}
    logger = ImageLogger(750, 8, log_images_kwargs=options)
    assert (logger.sampling.steps, logger.sampling.scale, logger.max_images) == (7, 3.0, 8)
    with pytest.raises(ValueError, match="batch_frequency must be at least 1, got 0"):
        ImageLogger(batch_frequency=0)
    with pytest.raises(ValueError, match="splits"):
        ImageLogger(splits=("training",))


def test_generation_leaves_no_trace() -> None:
    module: Any = torch.nn.Dropout()
    module.device = torch.device("cpu")
    state = torch.get_rng_state()
    with quietly(module):
        assert not module.training
        torch.rand(3)
    assert module.training
    assert torch.equal(state, torch.get_rng_state())


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("full"), ValueError("too small")])
def test_a_run_outlives_its_images(
    error: Exception, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    module: Any = torch.nn.Dropout()
    module.device = torch.device("cpu")
    logger = ImageLogger(max_images=2)
    logger.folder = tmp_path / "images"

    def fail(*_: object) -> None:
        raise error

    logger.grids = fail  # type: ignore[assignment, method-assign]
    data = SimpleNamespace(datasets={"train": [{"caption": "a *"}] * 2})
    trainer: Any = SimpleNamespace(datamodule=data, is_global_zero=True, global_step=7, loggers=[])
    logger.generate(trainer, module, "train", 0)
    assert "no images at step 7" in caplog.text
    assert module.training
    assert not list(tmp_path.iterdir())


def test_captions_are_written_and_laid_out() -> None:
    pictures = [write_caption("a photo of a *", 64) for _ in range(5)]
    assert len(pictures[0].getcolors() or []) > 1
    sheet = pil_grid(pictures, 4)
    assert sheet.width > 4 * pictures[0].width
    assert sheet.height > 2 * pictures[0].height


def test_the_table_continues_where_the_run_resumes(tmp_path: Path) -> None:
    path = tmp_path / "logger" / "metrics.csv"
    first = CsvLogger(path)
    for step in (1, 2, 3):
        first.log_metrics({"loss": 0.5 / step, "epoch": 0}, step)
    first.log_metrics({"late": 1.0}, 3)
    assert first.lowest("loss") == (3, pytest.approx(0.5 / 3))
    assert first.lowest("never") is None
    first.save()
    assert path.read_text().splitlines()[0] == "step,seconds,loss,late"
    second = CsvLogger(path, first_step=2)
    second.log_metrics({"loss": 9.0}, 3)
    second.finalize("success")
    rows = [line.split(",") for line in path.read_text().splitlines()[1:]]
    assert [row[0] for row in rows] == ["1", "2", "3"]
    assert [row[2] for row in rows] == ["0.5", "0.25", "9"]
    assert float(rows[2][1]) >= float(rows[1][1])


def test_the_progress_line() -> None:
    progress = Progress()
    progress.first_step, progress.start = 10, 100.0
    trainer: Any = SimpleNamespace(global_step=30, max_steps=50)
    line = progress.line(trainer, 0.12345, 110.0)
    assert line == "step 30/50  loss 0.1235  2.00 steps/s  remaining 0:00:10"


def test_arguments_out_of_range() -> None:
    with pytest.raises(ValueError, match="every_n_train_steps must be at least 1, got 0"):
        Checkpoints(Path(), 0)
    with pytest.raises(ValueError, match="batch_size must be at least 1, got 0"):
        DataModuleFromConfig(batch_size=0)
    with pytest.raises(ValueError, match="num_workers must be at least 0, got -1"):
        DataModuleFromConfig(batch_size=1, num_workers=-1)


def test_validation_samples_are_always_the_same(pictures: Path) -> None:
    target = "ldm.data.personalized.PersonalizedBase"
    config = {"target": target, "params": {"data_root": str(pictures), "size": 8, "set": "val"}}
    data = DataModuleFromConfig(2, validation=config, num_workers=0, validation_samples=7)
    data.setup()
    loader: Any = data.val_dataloader()
    samples = [batch["sample"].tolist() for batch in loader]
    assert samples == [[0, 1], [2, 3], [4, 5], [6]]
    assert [batch["sample"].tolist() for batch in loader] == samples
    assert data.predict_dataloader() == []
