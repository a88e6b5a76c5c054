"""Weights, chunks and layers of prompts: closed forms, and equality with the plain way."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch.testing import assert_close

from ldm.modules.encoders.modules import FrozenCLIPEmbedder
from ldm.sampling import Sampling
from ldm.util import UserError
from ldm.words.manager import EmbeddingManager
from ldm.words.prompts import chunks, count_chunks, encode_weighted, length, parse
from tests.modules.vocabularies import write_clip


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("", []),
        ("a cat", [("a cat", 1)]),
        ("a (cat)", [("a ", 1), ("cat", 1.1)]),
        ("((cat))", [("cat", 1.21)]),
        ("[cat]", [("cat", 1 / 1.1)]),
        ("a (cat:1.3), b", [("a ", 1), ("cat", 1.3), (", b", 1)]),
        ("(a (cat:2):0.5)", [("a ", 0.5), ("cat", 1)]),
        ("(cat:.5)", [("cat", 0.5)]),
        ("[cat:2]", [("cat:2", 1 / 1.1)]),
        (r"a \(cat\) \[b\]", [("a (cat) [b]", 1)]),
        (r"a \\ b", [("a \\ b", 1)]),
        ("(cat", [("cat", 1.1)]),
        ("cat) a]", [("cat) a]", 1)]),
        ("time 10:30", [("time 10:30", 1)]),
        ("a BREAK b", [("a", 1), ("BREAK", 1), ("b", 1)]),
        (
            "a (((house:1.3)) [on] a (hill:0.5), sun, (((sky))).",
            [
                ("a ", 1),
                ("house", 1.3 * 1.1 * 1.1),
                (" ", 1.1),
                ("on", 1),
                (" a ", 1.1),
                ("hill", 0.5 * 1.1),
                (", sun, ", 1.1),
                ("sky", 1.1**4),
                (".", 1.1),
            ],
        ),
    ],
)
def test_weights_as_automatic1111_reads_them(text, parts):
    """The last case is the documented example of its parser."""
    found = parse(text)
    assert [part for part, _ in found] == [part for part, _ in parts]
    assert [weight for _, weight in found] == pytest.approx([weight for _, weight in parts])


@pytest.fixture
def model(tmp_path):
    torch.manual_seed(0)
    encoder = FrozenCLIPEmbedder(
        tokenizer=write_clip(tmp_path), width=24, layers=3, heads=2, vocab_size=70
    )
    manager = EmbeddingManager(encoder, ["*"], ["cat"], num_vectors_per_token=3)

    def condition(texts, **options):
        return encoder.encode(texts, manager, **options)

    return SimpleNamespace(
        cond_stage_model=encoder, embedding_manager=manager, get_learned_conditioning=condition
    )


def test_a_plain_prompt_is_the_usual_one(model):
    texts = ["a photo of *, the cat", "the moon"]
    assert_close(encode_weighted(model, texts, 1), model.get_learned_conditioning(texts))
    empty = model.get_learned_conditioning(["", ""])
    longer = encode_weighted(model, texts, 2)
    assert_close(longer, torch.cat([model.get_learned_conditioning(texts), empty], 1))


def test_weights_multiply_positions_and_keep_the_mean(model):
    plain = model.get_learned_conditioning(["cat * cat"])[0]
    weighted = encode_weighted(model, ["cat (*:1.5) [cat]"], 1)[0]
    factors = torch.ones(77)
    factors[2:5], factors[5] = 1.5, 1 / 1.1  # the word has three vectors
    scaled = plain * factors[:, None]
    assert_close(weighted, scaled * (plain.mean() / scaled.mean()))
    other = encode_weighted(model, ["a cat", "cat (*:1.5) [cat]"], 1)[1]
    assert_close(other, weighted)  # the batch does not matter


def test_long_prompts_are_read_in_chunks(model):
    cat = model.cond_stage_model.word_ids("cat")
    text = "cat " * 74 + "* cat"
    first, second = chunks(model.cond_stage_model, text, {model.embedding_manager.token_id("*"): 3})
    assert [token for token, _, _ in first] == cat * 74  # the word's three vectors stay together
    assert len(second) == 2
    assert length(second) == 4
    assert count_chunks(model, [text, "cat"]) == 2
    found = encode_weighted(model, [text, "cat"], 2)
    halves = model.get_learned_conditioning(["cat " * 74, "* cat"])
    assert_close(found[0], torch.cat([halves[0], halves[1]]))
    assert_close(found[1], torch.cat(list(model.get_learned_conditioning(["cat", ""]))))
    with pytest.raises(ValueError, match="count must be 2 for these texts, got 1"):
        encode_weighted(model, [text], 1)


@pytest.mark.parametrize(("behind", "kept"), [(19, 56), (20, 75)])
def test_a_chunk_ends_at_a_near_comma(model, behind, kept):
    text = "cat " * (74 - behind) + ", " + "cat " * (behind + 5)
    first, second = chunks(model.cond_stage_model, text, {})
    assert len(first) == kept
    assert len(second) == 80 - kept


def test_break_begins_a_chunk(model):
    first, second = chunks(model.cond_stage_model, "cat BREAK moon", {})
    ids = [[token for token, _, _ in chunk] for chunk in (first, second)]
    assert ids == [model.cond_stage_model.word_ids(text) for text in ("cat", "moon")]


def test_the_settings_are_kept_only_where_they_differ():
    assert not {"weighted_prompts", "clip_skip"} & set(Sampling().metadata())
    settings = Sampling(weighted_prompts=True, clip_skip=2)
    assert Sampling.from_metadata(settings.metadata()) == settings
    with pytest.raises(UserError, match="clip_skip must be at least 1, got 0"):
        Sampling(clip_skip=0)
