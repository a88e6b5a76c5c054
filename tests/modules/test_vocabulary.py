"""Finding a text encoder's vocabulary."""

from __future__ import annotations

from pathlib import Path

import pytest

from ldm.modules.encoders import vocabulary


@pytest.mark.parametrize("name", list(vocabulary.DOWNLOADED))
def test_a_downloaded_vocabulary_is_used_before_the_hub(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def hub(*_: object) -> Path:
        raise AssertionError("asked the hub")

    monkeypatch.setattr(vocabulary, "_from_hub", hub)
    monkeypatch.setitem(vocabulary.DOWNLOADED, name, tmp_path)
    kind = "CLIPTokenizerFast" if "clip" in name else "BertTokenizerFast"
    for file in vocabulary.VOCABULARIES[kind][0]:
        (tmp_path / file).touch()
    assert vocabulary.vocabulary_folder(kind, name) == tmp_path
