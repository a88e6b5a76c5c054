"""Shipped files are found from any folder, and one's own files come first."""

from __future__ import annotations

from pathlib import Path

import pytest

from ldm.resources import ROOT, locate

NAME = "configs/miniature/finetune.yaml"


def test_shipped_files_are_found_from_elsewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert locate(NAME) == ROOT / NAME
    assert locate("models/miniature") == ROOT / "models/miniature"


def test_ones_own_files_come_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / NAME).parent.mkdir(parents=True)
    (tmp_path / NAME).touch()
    assert locate(NAME) == Path(NAME)


def test_what_is_nowhere_stays_as_given(tmp_path: Path) -> None:
    assert locate("no/such.yaml") == Path("no/such.yaml")
    assert locate(tmp_path / NAME) == tmp_path / NAME
