"""Pivotal tuning for figure 11: its command, what it leaves, and what it says when it fails."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import pytest

from ldm.checkpoint.names import DELTA_FILE
from ldm.experiments.figures import pivotal
from ldm.training.config import load
from ldm.util import UserError

ROOT = Path(__file__).parents[3]
CONCEPTS = ROOT / "examples" / "concepts"


class Runs:
    """Stands for `subprocess.run`: leaves a run's files, and remembers what was asked."""

    def __init__(self, status: int = 0) -> None:
        self.status, self.commands = status, list[list[str]]()

    def __call__(self, command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        self.commands.append(command)
        logs = Path(command[command.index("--logdir") + 1])
        made = logs / f"run{len(self.commands)}" / "second_stage" / "checkpoints"
        made.mkdir(parents=True)
        if not self.status:
            for name in (pivotal.WORD, DELTA_FILE):
                (made / name).write_text(f"{name} {len(self.commands)}")
        return subprocess.CompletedProcess(command, self.status)


def test_the_command_is_one_that_main_takes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    command = pivotal.training_command("teal-star", CONCEPTS, tmp_path, None)
    config = load(command[1:])
    second = config.second
    assert second is not None
    assert config.lightning.trainer.max_steps == 100
    assert second.model.params.unfreeze_model
    assert second.model.params.scheduler_config is None
    # Every setting is one of the second stage, and arrives.
    for text in pivotal.SETTINGS:
        name, _, value = text.partition("=")
        assert name.startswith("second_stage.")
        node: Any = second
        for part in name.split(".")[1:]:
            node = node[part] if not hasattr(node, part) else getattr(node, part)
        assert float(node) == float(value)


def test_the_two_files_are_kept_and_the_run_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = Runs()
    monkeypatch.setattr(pivotal.subprocess, "run", runs)
    for again in (1, 2):
        folder = pivotal.make("teal-star", CONCEPTS, tmp_path, ROOT, steps=3)
        assert folder == tmp_path / "teal-star"
        assert {path.name: path.read_text() for path in folder.iterdir()} == {
            name: f"{name} {again}" for name in (pivotal.WORD, DELTA_FILE)
        }
    assert not list((tmp_path / "logs" / "teal-star").iterdir())
    assert runs.commands[0][-2:] == [
        "lightning.trainer.max_steps=3",
        "second_stage.lightning.trainer.max_steps=3",
    ]
    assert runs.commands[0][runs.commands[0].index("--init_word") + 1] == "star"


def test_a_run_that_fails_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pivotal.subprocess, "run", Runs(status=3))
    with pytest.raises(UserError, match="of 'teal-star' failed with status 3"):
        pivotal.make("teal-star", CONCEPTS, tmp_path, ROOT)
    assert not (tmp_path / "teal-star").exists()


@pytest.mark.parametrize(
    ("concept", "said"),
    [("unicorn", "no concept 'unicorn'"), ("any-star", "says no initializer word")],
)
def test_what_cannot_be_tuned_is_one_line(concept: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=said):
        pivotal.make(concept, CONCEPTS, tmp_path, ROOT)
