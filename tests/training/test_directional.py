"""Directional words by the real command line: on their sphere, repeatable, resumable."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import main
from ldm.training.callbacks import CUDACallback
from ldm.util import UserError
from ldm.words.files import read_words
from tests.training.conftest import Outcome

Learn = Callable[..., Outcome]
ROOT = Path(__file__).parents[2]
OVERLAY = ROOT / "configs" / "variants" / "directional.yaml"
WORDS = "model.params.personalization_config.params"


@pytest.fixture
def arguments(arguments: list[str]) -> list[str]:
    """The command line that learns a directional word on the tiny model."""
    place = arguments.index("-t")
    return [*arguments[:place], str(OVERLAY), *arguments[place:]]


def test_the_word_keeps_the_vocabularys_norm(learn: Learn) -> None:
    often = "lightning.modelcheckpoint.params.every_n_train_steps=2"
    outcome = learn("norm", "--max_steps", "4", often, f"{WORDS}.num_vectors_per_token=2")
    for row in outcome.table():
        assert float(row["word/norm_ratio/*"]) == pytest.approx(1, abs=1e-5)
    files = outcome.folder.rglob("embeddings*.safetensors")
    norms = [read_words(path).words["*"].norm(dim=-1) for path in files]
    assert len(norms) >= 3
    mean = float(outcome.table()[0]["word/vocabulary/mean"])
    torch.testing.assert_close(torch.stack(norms), torch.full((len(norms), 2), mean))
    facts = read_words(outcome.folder / "checkpoints" / "embeddings.safetensors").metadata
    assert facts["parameterization"] == "directional"
    # Two images a step here; with the paper's eight this is 0.04.
    assert float(facts["learning_rate"]) == pytest.approx(0.01)


@pytest.mark.parametrize("accumulate", [1, 2])
def test_an_interrupted_run_resumes_exactly(
    learn: Learn, accumulate: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    more = ("--max_steps", "6", "--accumulate_grad_batches", str(accumulate))
    more += ("--val_check_interval", "2")
    whole = learn("whole", *more)

    def interrupt(self: object, trainer: object, module: object, batch: object, i: int) -> None:
        if i == 3 * accumulate:
            os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(CUDACallback, "on_train_batch_start", interrupt, raising=False)
        first = learn("part", *more)
    assert first.status == 128 + signal.SIGTERM
    assert not torch.equal(first.word(), whole.word())
    assert main.main(["-t", "--resume", str(first.folder)]) == 0
    resumed = Outcome(0, first.folder)
    assert torch.equal(resumed.word(), whole.word())
    for name in ("train/loss", "word/norm/*"):
        assert [r[name] for r in resumed.table()] == [r[name] for r in whole.table()]


def test_accumulation_is_a_larger_batch(learn: Learn) -> None:
    whole = learn("whole", "data.params.batch_size=4", "--max_steps", "3")
    parts = learn("parts", "--accumulate_grad_batches", "2", "--max_steps", "3")
    torch.testing.assert_close(whole.word(), parts.word(), atol=1e-5, rtol=1e-4)


def test_half_precision_learns_nearly_the_same(learn: Learn) -> None:
    full = learn("full", "--max_steps", "3")
    half = learn("half", "--max_steps", "3", "--precision", "bf16-mixed")
    torch.testing.assert_close(full.word(), half.word(), atol=0.02, rtol=0)
    torch.testing.assert_close(full.word().norm(dim=-1), half.word().norm(dim=-1))


@pytest.mark.slow
def test_two_processes_learn_what_one_learns(arguments: list[str], learn: Learn) -> None:
    one = learn("one", "data.params.batch_size=4", "--max_steps", "3", "--no-test")
    more = ["-n", "both", "--devices", "2", "--strategy", "ddp", "--max_steps", "3", "--no-test"]
    done = subprocess.run(
        [sys.executable, str(ROOT / "main.py"), *arguments, *more],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    (folder,) = one.folder.parent.glob("*_both")
    torch.testing.assert_close(one.word(), Outcome(0, folder).word(), atol=1e-5, rtol=1e-4)


def test_without_initializer_word_nothing_is_built(learn: Learn) -> None:
    with pytest.raises(UserError, match="starts from an initializer word's direction"):
        learn("none", f"{WORDS}.initializer_words=[]", "--init_word", "")


def test_networks_beside_it_are_refused_before_anything_is_read(learn: Learn) -> None:
    with pytest.raises(UserError, match="learned alone, with the model frozen"):
        learn("tuned", "model.params.unfreeze_model=true", "--data_root", "nowhere")
