"""`--compile`: the same word, a cache on disk, and one line where nothing can be compiled."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from ldm.training.compiling import CACHE_VARIABLE
from ldm.util import UserError
from tests.training.conftest import Outcome

Learn = Callable[..., Outcome]
QUIET = ("--max_steps", "2", "--limit_val_batches", "0", "--no-test")


def test_a_cache_that_cannot_be_written_is_one_line(
    learn: Learn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "file"
    file.touch()
    monkeypatch.setenv(CACHE_VARIABLE, str(file / "cache"))
    with pytest.raises(UserError, match=f"--compile: compile cache .*is a file; {CACHE_VARIABLE}"):
        learn("run", *QUIET, "--compile")


def test_a_machine_without_a_compiler_is_one_line(
    learn: Learn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("no compiler\nand much more")

    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "cache"))
    monkeypatch.setattr(torch, "compile", broken)
    with pytest.raises(UserError, match=r"--compile: torch cannot compile here: no compiler$"):
        learn("run", *QUIET, "--compile")


@pytest.mark.slow
def test_a_compiled_unet_teaches_the_same_word(
    learn: Learn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "cache"))
    torch._dynamo.reset()
    plain = learn("plain", *QUIET)
    compiled = learn("compiled", *QUIET, "--compile")
    assert compiled.status == 0
    torch.testing.assert_close(compiled.word(), plain.word(), atol=1e-3, rtol=0)
    assert any((tmp_path / "cache").rglob("*.so"))
