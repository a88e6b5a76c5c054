"""`--init_word auto`: which word is chosen, by what, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
from transformers import BertTokenizer, CLIPTokenizer

from ldm.cli import initializer
from ldm.miniature.names import named_things
from ldm.training.arguments import parse
from ldm.training.config import load
from ldm.training.run import build_data
from ldm.util import UserError
from tests.modules.vocabularies import write_clip

ROOT = Path(__file__).parents[2]
STAR = ROOT / "examples" / "concepts" / "teal-star"


def options(tmp_path: Path, *more: str):
    command = f"--base {ROOT}/configs/miniature/finetune.yaml -t --model miniature -l {tmp_path}"
    return parse([*command.split(), "--data_root", str(STAR), "--init_word", "auto", *more])


def test_the_clip_chooses_a_word_that_looks_like_the_images(tmp_path, caplog) -> None:
    caplog.set_level("INFO")
    (word,) = initializer.with_chosen_words(options(tmp_path)).init_word
    look = named_things().get(word, (word,))
    assert {"star", "teal"} & set(look)
    assert f"initializer word '{word}', of " in caplog.text
    assert "by the CLIP" in caplog.text


def test_without_a_clip_the_loss_chooses(tmp_path, monkeypatch, caplog) -> None:
    caplog.set_level("INFO")
    monkeypatch.setattr(initializer, "default_selector", lambda _: str(tmp_path / "none"))
    monkeypatch.setattr(initializer, "MOST_BY_LOSS", 3)
    given = options(tmp_path)
    (word,) = initializer.with_chosen_words(given).init_word
    assert f"initializer word '{word}', of 3 words by the loss of a fixed batch" in caplog.text
    given.init_word = ["star"]
    config = load(given)
    dataset = build_data(config).datasets["train"]
    texts = ["a photo of a mug on the moon", "a photo of a teal star with yellow dots"]
    assert initializer.by_loss(config, dataset, texts, "cpu") == 1
    assert initializer.by_loss(config, dataset, texts[::-1], "cpu") == 0


def test_words_are_whole_tokens_of_letters(tmp_path) -> None:
    words = initializer.whole_words(
        BertTokenizer.from_pretrained(ROOT / "models/miniature/tokenizer")
    )
    assert "star" in words
    assert not [word for word in words if not word.isalpha() or len(word) < 3]
    write_clip(tmp_path)
    clip = CLIPTokenizer.from_pretrained(tmp_path)
    found = initializer.whole_words(clip)
    assert found
    assert all(f"{word}</w>" in clip.get_vocab() for word in found)


def test_each_folder_gets_a_word_and_a_given_word_stays(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(initializer, "_choose", lambda _, root: Path(root).name)
    given = options(tmp_path)
    given.data_roots, given.init_word = ["a/one", "a/two"], ["auto", "cup"]
    assert initializer.with_chosen_words(given).init_word == ["one", "cup"]
    given.data_roots, given.init_word = ["a/one"], ["auto", "auto"]
    with pytest.raises(UserError, match="one placeholder for each --data_root"):
        initializer.with_chosen_words(given)
