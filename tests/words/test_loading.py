"""The one way into a model for learned words, and what it says about prompts."""

from __future__ import annotations

from pathlib import Path

import pytest

from ldm.inference import load_model, load_words
from ldm.util import UserError
from ldm.words.loading import check_words, split_items


def test_a_path_with_an_equals_sign_is_a_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("a=b.pt").touch()
    assert split_items(["a=b.pt", "@=b.pt", Path("b.pt")]) == [
        ("a=b.pt", None),
        ("b.pt", "@"),
        ("b.pt", None),
    ]
    assert split_items("b.pt") == [("b.pt", None)]


def test_words_are_checked_without_a_model(tiny) -> None:
    assert check_words([tiny.word, f"@={tiny.other_word}"], ["a * on @"]) == ["*", "@"]
    with pytest.raises(UserError, match=r"names '\*', but no word is loaded"):
        check_words([], ["a photo of *"])
    with pytest.raises(UserError, match="does not exist"):
        check_words(["absent.pt"], [])


def test_unused_words_are_a_warning_by_tokens(tiny, caplog: pytest.LogCaptureFixture) -> None:
    model = load_model(tiny.config, tiny.checkpoint)
    both = [tiny.word, f"@={tiny.other_word}"]
    load_words(model, both, ["a photo of *"])
    assert "no prompt names the loaded word @: no effect" in caplog.text
    caplog.clear()
    load_words(model, both, ["a photo of *", "on @."])
    assert not [r for r in caplog.records if r.levelname == "WARNING"]


def test_words_of_the_configuration_were_never_learned(tiny) -> None:
    model = load_model(tiny.config, tiny.checkpoint)
    with pytest.raises(UserError, match="but no word is loaded"):
        load_words(model, [], ["a photo of *"])
    assert load_words(load_model(tiny.config, tiny.checkpoint), [], ["a cat"]) == []
