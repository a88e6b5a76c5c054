"""The one way into a model for learned words, and what it says about prompts."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from ldm.inference import load_model, load_words
from ldm.util import UserError
from ldm.words.files import write_words
from ldm.words.loading import check_prompts, check_words, split_items


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


def test_a_model_without_words_takes_them(tiny) -> None:
    model = load_model(tiny.config, tiny.checkpoint)
    model.embedding_manager = None
    assert load_words(model, [tiny.word], ["a photo of *"]) == ["*"]
    assert model.embedding_manager is not None


def test_prompts_of_a_model_without_words_are_checked_for_their_length(
    tiny, caplog: pytest.LogCaptureFixture
) -> None:
    model = load_model(tiny.config, tiny.checkpoint)
    model.embedding_manager = None
    check_prompts(model, ["a cat " * 60])
    assert "tokens" in caplog.text
    caplog.clear()
    model.cond_stage_model = None  # conditions on something that is no text
    check_prompts(model, ["a cat " * 60])
    assert not caplog.text


def test_a_file_of_several_words_gets_no_single_name(tiny, tmp_path) -> None:
    words = {"*": torch.zeros(1, 32), "@": torch.ones(1, 32)}
    write_words(tmp_path / "two.pt", words, {"*": 1, "@": 2})
    with pytest.raises(UserError, match=r"cat=.*two.pt: the file holds 2 words: \['\*', '@'\]"):
        check_words([f"cat={tmp_path / 'two.pt'}"], [])
