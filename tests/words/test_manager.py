"""The learned words: where they start, how they enter a text, what is saved, what is refused."""

import copy
import itertools
import json
import logging

import pytest
import torch

from ldm.util import UserError
from ldm.words.files import read_words, write_words
from ldm.words.manager import EmbeddingManager
from ldm.words.placeholders import PER_IMAGE_PLACEHOLDERS
from tests.words.word_doubles import FakeEmbedder


@pytest.fixture
def embedder():
    return FakeEmbedder()


def encode(manager, *texts):
    ids = manager.embedder.tokenize(list(texts))
    return manager(ids, manager.embedder.vocab_table[ids])


def row(embedder, word):
    return embedder.vocab_table[embedder.word_ids(word)]


def test_a_word_stands_where_its_placeholder_stands(embedder):
    manager = EmbeddingManager(embedder, ["*", "@"], ["cat", "moon"], num_vectors_per_token=2)
    with torch.no_grad():
        manager.word("*").copy_(torch.arange(12.0).reshape(2, 6))
    out = encode(manager, "photo of * on @ *", "the cat")
    star, at = manager.word("*"), manager.word("@")
    ids = embedder.tokenize(["photo of on"])[0]
    plain = embedder.vocab_table[ids]
    expected = torch.cat([plain[:3], star, plain[3:4], at, star])[:10]
    torch.testing.assert_close(out[0], torch.cat([expected, row(embedder, "[SEP]")[:0]]))
    torch.testing.assert_close(out[1], embedder.vocab_table[embedder.tokenize(["the cat"])[0]])


def test_only_the_words_are_parameters(embedder):
    manager = EmbeddingManager(embedder, ["*"], ["cat"], num_vectors_per_token=3)
    assert [tuple(p.shape) for p in manager.parameters()] == [(3, 6)]
    assert list(manager.embedding_parameters()) == list(manager.parameters())
    encode(manager, "a photo of *").square().sum().backward()
    assert (manager.word("*").grad.abs().sum(-1) > 0).all()


def test_without_words_a_text_passes_unchanged(embedder, caplog):
    manager = EmbeddingManager(embedder, [])
    assert not caplog.records
    ids = embedder.tokenize(["a photo of *"])
    torch.testing.assert_close(
        manager(ids, embedder.vocab_table[ids]), embedder.vocab_table[ids], rtol=0, atol=0
    )


class TestFirstWord:
    def test_of_one_token_is_copied_to_every_vector(self, embedder):
        for mode in ("mean", "sequence"):
            manager = EmbeddingManager(
                embedder, ["*"], ["cat"], num_vectors_per_token=3, initializer_mode=mode
            )
            expected = row(embedder, "cat").expand(3, -1)
            torch.testing.assert_close(manager.word("*").data, expected)

    def test_of_several_tokens_starts_at_their_mean(self, embedder):
        manager = EmbeddingManager(embedder, ["*"], ["polarbear"], num_vectors_per_token=2)
        expected = row(embedder, "polarbear").mean(0).expand(2, -1)
        torch.testing.assert_close(manager.word("*").data, expected)

    def test_of_several_tokens_as_a_sequence(self, embedder):
        def make(k):
            return EmbeddingManager(
                embedder, ["*"], ["polarbear"], num_vectors_per_token=k, initializer_mode="sequence"
            )

        rows = row(embedder, "polarbear")
        assert len(rows) == 2
        torch.testing.assert_close(make(3).word("*").data, rows[[0, 1, 1]])
        with pytest.raises(UserError, match=r"2 tokens.*got 1"):
            make(1)

    def test_unknown_to_the_vocabulary(self, embedder):
        for word in ("zzz", "cat zzz"):
            with pytest.raises(UserError, match=r"initializer word.*unknown"):
                EmbeddingManager(embedder, ["*"], [word])

    def test_none_is_the_originals_draw_by_seed_with_a_warning(self, embedder, caplog):
        managers = [EmbeddingManager(embedder, ["*"], seed=s) for s in (1, 1, 2)]
        words = [manager.word("*").data for manager in managers]
        assert not caplog.text
        managers[0].make_optimizer([{"params": managers[0].embedding_parameters()}], 1.0)
        torch.testing.assert_close(words[0], words[1], rtol=0, atol=0)
        assert not torch.equal(words[0], words[2])
        assert all(((w >= 0) & (w < 1)).all() for w in words)
        assert "far outside the scale" in caplog.text

    def test_is_taken_anew_once_weights_are_loaded(self, embedder):
        manager = EmbeddingManager(embedder, ["*"], ["cat"])
        parameter = manager.word("*")
        embedder.vocab_table += 1.0
        manager.initialize()
        torch.testing.assert_close(parameter.data, row(embedder, "cat"))

    def test_waits_for_weights_of_a_model_built_on_meta(self):
        real, meta = FakeEmbedder(), FakeEmbedder(device="meta")
        with torch.device("meta"):
            manager = EmbeddingManager(meta, ["*"], ["cat"])
        assert all(t.device.type == "cpu" for t in (*manager.parameters(), *manager.buffers()))
        torch.testing.assert_close(manager.word("*").data, torch.zeros(1, 6))
        meta.vocab_table = real.vocab_table
        manager.initialize()
        torch.testing.assert_close(manager.word("*").data, row(real, "cat"))


class TestPlaceholder:
    @pytest.mark.parametrize(
        ("strings", "message"),
        [
            (["* *"], "has a space"),
            ([""], "is empty"),
            (["*", "*"], "same token"),
            (["cat", "Cat"], "same token"),
        ],
    )
    def test_refused_in_one_line(self, embedder, strings, message):
        with pytest.raises(UserError, match=message) as caught:
            EmbeddingManager(embedder, strings)
        assert "\n" not in str(caught.value)

    @pytest.mark.parametrize("name", ["<my.cat>", "a.b", ".", "train", "keys", "training", "_keys"])
    @pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
    def test_may_have_a_name_that_pytorch_reserves(self, embedder, tmp_path, name, suffix):
        manager = EmbeddingManager(embedder, ["*", name], ["cat", "moon"])
        prompt = f"a photo of {name}"
        manager.check_prompts([prompt])
        assert manager.placeholders == ["*", name]
        ids = embedder.tokenize([prompt])
        table = torch.cat([embedder.vocab_table, torch.zeros(2, 6)])  # rows of added tokens
        torch.testing.assert_close(manager(ids, table[ids])[0, 4:5], row(embedder, "moon"))
        with torch.no_grad():
            manager.word(name).fill_(3.0)
        # The state of a resumed run, the file, and the word taken away again.
        resumed = EmbeddingManager(FakeEmbedder(), ["*", name], ["cat", "moon"])
        resumed.load_state_dict(manager.state_dict())
        assert resumed.configured() == []
        torch.testing.assert_close(resumed.word(name), manager.word(name))
        manager.save(tmp_path / f"words{suffix}")
        loaded = EmbeddingManager(FakeEmbedder(), [])
        assert loaded.load(tmp_path / f"words{suffix}") == ["*", name]
        torch.testing.assert_close(loaded.word(name), manager.word(name))
        loaded.clear()
        assert list(loaded.parameters()) == []

    def test_that_pytorch_takes_keeps_its_name_in_checkpoints(self, embedder):
        manager = EmbeddingManager(embedder, ["*", "<my-cat>"], ["cat", "moon"])
        assert [n for n, _ in manager.named_parameters()] == [
            "string_to_param_dict.*",
            "string_to_param_dict.<my-cat>",
        ]

    def test_that_is_a_word_warns_what_is_lost(self, embedder, caplog):
        with caplog.at_level(logging.WARNING):
            EmbeddingManager(embedder, ["*"], ["cat"])
            assert "lose" not in caplog.text
            EmbeddingManager(embedder, ["moon"], ["cat"])
        assert "prompts lose that word's own meaning" in caplog.text

    def test_arguments_out_of_range(self, embedder):
        with pytest.raises(ValueError, match=r"num_vectors_per_token.*got 0"):
            EmbeddingManager(embedder, num_vectors_per_token=0)
        with pytest.raises(ValueError, match=r"initializer_mode.*'median'"):
            EmbeddingManager(embedder, initializer_mode="median")
        with pytest.raises(UserError, match="2 initializer_words for 1"):
            EmbeddingManager(embedder, ["*"], ["cat", "moon"])
        with pytest.raises(TypeError, match="num_vectors"):
            EmbeddingManager(embedder, num_vectors=2)


class TestPrompts:
    def test_that_keep_their_words_pass(self, embedder):
        manager = EmbeddingManager(embedder, ["*"], ["cat"], num_vectors_per_token=2)
        manager.check_prompts(["a photo of *", "the cat", "", "*, *"])

    def test_whose_placeholder_touches_a_neighbour_find_the_word(self):
        embedder = FakeEmbedder(extra=["*,"])
        prompt = "a photo of *, the moon"
        assert embedder.pieces.index("*,") in embedder.word_ids(prompt)
        manager = EmbeddingManager(embedder, ["*"], ["cat"])
        manager.check_prompts([prompt])
        assert embedder.word_ids(prompt) == embedder.word_ids("a photo of * , the moon")
        manager.clear()
        assert embedder.pieces.index("*,") in embedder.word_ids(prompt)

    def test_whose_placeholder_is_cut_off(self, embedder):
        manager = EmbeddingManager(embedder, ["*"], ["cat"], num_vectors_per_token=2)
        manager.check_prompts(["a photo of the cat on the *"])  # positions 8 and 9 of 10
        for prompt in ("a photo of the cat on the moon *", "a a a a a a a a a *"):
            with pytest.raises(UserError, match=r"cut off at the encoder's 10 positions"):
                manager.check_prompts([prompt])

    def test_agree_with_what_splicing_leaves(self, embedder):
        """The check passes exactly where every vector of each named word reaches the encoder."""
        manager = EmbeddingManager(embedder, ["*", "@"], ["cat", "cat"], num_vectors_per_token=2)
        with torch.no_grad():
            for value, placeholder in enumerate(manager.placeholders):
                manager.word(placeholder).copy_(
                    100.0 + torch.arange(12.0).reshape(2, 6) + 50 * value
                )
        for words in itertools.product(["a", "*", "@"], repeat=7):
            out = encode(manager, " ".join(words))[0]
            whole = (out >= 100).all(-1).sum() == 2 * sum(w in "*@" for w in words)
            try:
                manager.check_prompts([" ".join(words)])
            except UserError:
                assert not whole, words
            else:
                assert whole, words

    def test_several_words_push_each_other_out(self, embedder):
        manager = EmbeddingManager(embedder, ["*", "@"], ["cat", "cat"], num_vectors_per_token=4)
        manager.check_prompts(["* @"])
        with pytest.raises(UserError, match="'@'"):
            manager.check_prompts(["a photo * @"])

    def test_whose_end_is_cut_off_are_warned_of_once_with_what_is_lost(self, embedder, caplog):
        manager = EmbeddingManager(embedder, ["*"], ["cat"], num_vectors_per_token=3)
        fits = "a photo of the cat on the moon"  # 8 tokens and 2 special ones
        manager.check_prompts([fits, "* of the cat on a"])
        assert not caplog.text
        for _ in range(2):
            manager.check_prompts([f"{fits} sculpture train", "* of the cat on a moon the"])
        messages = [record.message for record in caplog.records]
        assert len(messages) == 2
        assert "has 10 tokens, and the text encoder reads the first 8" in messages[0]
        assert messages[0].endswith("Its end is cut off: 'sculpture train'")
        assert messages[1].endswith("Its end is cut off: 'the'")

    def test_are_judged_by_tokens(self, embedder):
        """A word glued to a neighbour is replaced although the text does not show it."""
        manager = EmbeddingManager(embedder, ["polar"], ["cat"])
        assert manager.named("a polarbear") == ["polar"]
        assert manager.named("a cat") == []
        with pytest.raises(UserError, match="cut off"):
            manager.check_prompts(["a a a a a a a a a polarbear"])

    def test_of_a_file_name_it(self, embedder, caplog):
        manager = EmbeddingManager(embedder, ["*"], ["cat"])
        text = "a * on the moon of the cat sculpture"
        manager.check_prompts([text], {text: "0.txt"})
        assert "caption '0.txt' has 9 tokens" in caplog.text
        with pytest.raises(UserError, match=r"caption '1.txt'.*cut off"):
            manager.check_prompts(["a a a a a a a a a *"], {"a a a a a a a a a *": "1.txt"})


class TestProgressive:
    def test_vectors_come_into_play_by_optimiser_steps_not_by_calls(self, embedder):
        manager = EmbeddingManager(
            embedder, ["*"], ["cat"], num_vectors_per_token=3, progressive_words=True
        )
        manager.check_prompts(["a a a a a *"])
        with pytest.raises(UserError, match="cut off"):  # the third vector would be
            manager.check_prompts(["a a a a a a a *"])
        for step, active in [(0, 1), (1999, 1), (2000, 2), (3999, 2), (4000, 3), (9000, 3)]:
            manager.set_step(step)
            for _ in range(3):
                encode(manager, "*")
            assert len(manager.word("*")) == active
        assert [len(p) for p in manager.embedding_parameters()] == [3]

    def test_the_step_survives_in_checkpoint_and_files(self, embedder, tmp_path):
        def make():
            return EmbeddingManager(
                embedder, ["*"], ["cat"], num_vectors_per_token=3, progressive_words=True
            )

        manager = make()
        manager.set_step(2500)
        other = make()
        other.load_state_dict(manager.state_dict())
        assert len(other.word("*")) == 2
        for name in ("e.pt", "e.safetensors"):
            manager.save(tmp_path / name)
            other = make()
            other.load(tmp_path / name)
            assert (len(other.word("*")), len(next(other.embedding_parameters()))) == (2, 3)
            plain = EmbeddingManager(embedder)
            plain.load(tmp_path / name)
            assert len(plain.word("*")) == 2

    def test_the_interval_may_be_shorter_and_is_stored(self, embedder, tmp_path):
        manager = EmbeddingManager(
            embedder,
            num_vectors_per_token=3,
            progressive_words=True,
            progressive_steps=160,
        )
        for step, active in [(159, 1), (160, 2), (319, 2), (320, 3)]:
            manager.set_step(step)
            assert len(manager.word("*")) == active
        manager.set_step(160)
        manager.save(tmp_path / "e.safetensors")
        assert read_words(tmp_path / "e.safetensors").metadata["progressive_steps"] == "160"
        plain = EmbeddingManager(embedder)
        plain.load(tmp_path / "e.safetensors")
        assert len(plain.word("*")) == 2
        with pytest.raises(ValueError, match="progressive_steps must be at least 1, got 0"):
            EmbeddingManager(embedder, progressive_steps=0)


class TestPerImageTokens:
    def test_are_learned_beside_the_word_and_not_saved(self, embedder, tmp_path):
        manager = EmbeddingManager(embedder, ["*"], ["cat"], per_image_tokens=True)
        assert manager.placeholders == ["*", *PER_IMAGE_PLACEHOLDERS]
        assert len(list(manager.embedding_parameters())) == 23
        encode(manager, "a * of א").square().sum().backward()
        assert (manager.word("א").grad != 0).all()
        manager.save(tmp_path / "e.pt")
        assert list(read_words(tmp_path / "e.pt").words) == ["*"]
        assert not any(p in key for key in manager.norms() for p in PER_IMAGE_PLACEHOLDERS)
        manager.load(tmp_path / "e.pt")
        assert set(manager.placeholders) == {"*", *PER_IMAGE_PLACEHOLDERS}

    def test_may_have_other_names(self, embedder):
        manager = EmbeddingManager(
            embedder, ["*"], ["cat"], per_image_tokens=True, per_image_placeholders=["@", "#"]
        )
        assert manager.placeholders == ["*", "@", "#"]
        assert manager.per_image_placeholders == ("@", "#")

    def test_are_added_tokens_if_the_vocabulary_lacks_the_letters(self, embedder):
        embedder.pieces[embedder.pieces.index("ק")] = "x"
        manager = EmbeddingManager(embedder, ["*"], ["cat"], per_image_tokens=True)
        assert manager.token_id("ק") == embedder.vocab_size


class TestRegularisation:
    def test_is_the_squared_distance_to_the_first_word(self, embedder):
        manager = EmbeddingManager(embedder, ["*"], ["polarbear"], num_vectors_per_token=2)
        assert manager.distance_to_initializers().item() == 0
        with torch.no_grad():
            manager.word("*")[1] += 2.0
        loss = manager.embedding_to_coarse_loss()
        torch.testing.assert_close(loss, torch.tensor(6 * 4.0))
        (gradient,) = torch.autograd.grad(loss, manager.word("*"))
        assert gradient[0].abs().max() == 0
        torch.testing.assert_close(gradient[1], torch.full((6,), 4.0))

    def test_needs_a_first_word(self, embedder):
        with pytest.raises(UserError, match="initializer_words"):
            EmbeddingManager(embedder, ["*"]).distance_to_initializers()


def test_norms_are_held_against_the_vocabularys(embedder):
    manager = EmbeddingManager(embedder, ["*"], ["cat"])
    with torch.no_grad():
        manager.word("*").fill_(2.0)
    norms = manager.norms()
    table = embedder.vocab_table.norm(dim=-1)
    assert norms["norm/*"] == pytest.approx(24**0.5)
    assert norms["vocabulary/mean"] == pytest.approx(table.mean().item())
    assert norms["vocabulary/p05"] < norms["vocabulary/p50"] < norms["vocabulary/p95"]
    assert norms["norm_ratio/*"] == pytest.approx(24**0.5 / table.mean().item())


class TestFiles:
    def test_bring_their_own_number_of_vectors(self, embedder, tmp_path):
        vectors = torch.randn(4, 6)
        write_words(tmp_path / "e.pt", {"*": vectors}, {"*": 4})
        manager = EmbeddingManager(embedder, ["*"], ["cat"], num_vectors_per_token=1)
        assert manager.load(tmp_path / "e.pt") == ["*"]
        torch.testing.assert_close(manager.word("*").data, vectors)
        assert next(manager.embedding_parameters()).requires_grad
        manager.initialize()
        torch.testing.assert_close(manager.word("*").data, vectors)

    def test_gather_and_are_renamed(self, embedder, tmp_path):
        write_words(tmp_path / "a.pt", {"*": torch.ones(1, 6)}, {"*": 4})
        write_words(tmp_path / "b.safetensors", {"*": torch.zeros(2, 6)})
        manager = EmbeddingManager(embedder, ["#"], ["cat"])
        manager.load(tmp_path / "a.pt")
        assert manager.placeholders == ["*"]  # the configuration's own word is gone
        with pytest.raises(UserError, match="loaded already: rename"):
            manager.load(tmp_path / "b.safetensors")
        manager.load(tmp_path / "b.safetensors", rename={"*": "@"})
        assert manager.placeholders == ["*", "@"]
        assert [len(manager.word(p)) for p in manager.placeholders] == [1, 2]
        assert manager.token_id("@") == 5
        manager.save(tmp_path / "both.pt")
        other = EmbeddingManager(embedder, [])
        assert other.load(tmp_path / "both.pt") == ["*", "@"]
        other.clear()
        assert other.placeholders == []
        assert other.load(tmp_path / "a.pt") == ["*"]

    def test_keep_the_first_word_for_regularisation(self, embedder, tmp_path):
        write_words(tmp_path / "a.pt", {"*": row(embedder, "cat") + 1}, {"*": 4})
        manager = EmbeddingManager(embedder, ["*"], ["cat"])
        manager.load(tmp_path / "a.pt")
        torch.testing.assert_close(manager.distance_to_initializers(), torch.tensor(6.0))

    def test_of_bad_content_change_nothing(self, embedder, tmp_path):
        manager = EmbeddingManager(embedder, ["*"], ["cat"])
        before = manager.word("*").clone()
        write_words(tmp_path / "wide.safetensors", {"*": torch.ones(1, 1280)})
        write_words(tmp_path / "name.safetensors", {"a b": torch.ones(1, 6)})
        write_words(tmp_path / "same.safetensors", {n: torch.ones(1, 6) for n in ("cat", "Cat")})
        for name, message in [
            ("wide", "width 1280.*ldm-bert, width 6"),
            ("name", "has a space"),
            ("same", "same token"),
        ]:
            with pytest.raises(UserError, match=message):
                manager.load(tmp_path / f"{name}.safetensors")
        torch.testing.assert_close(manager.word("*"), before)

    def test_say_where_the_word_comes_from(self, embedder, tmp_path):
        manager = EmbeddingManager(embedder, ["*"], ["cat"], seed=7)
        manager.metadata["base_checkpoint"] = "abc"
        manager.set_step(30)
        for name in ("e.pt", "e.safetensors"):
            manager.save(tmp_path / name, {"config_hash": "def"})
            facts = read_words(tmp_path / name).metadata
            assert json.loads(facts["placeholders"]) == ["*"]
            assert json.loads(facts["first_words"]) == {"*": "cat"}
            kept = ("base_checkpoint", "config_hash", "step", "seed", "encoder_family")
            assert [facts[k] for k in kept] == ["abc", "def", "30", "7", "ldm-bert"]
            assert facts["encoder_width"] == "6"

    def test_win_over_a_checkpoints_words(self, embedder, tmp_path):
        manager = EmbeddingManager(embedder, ["*"], ["cat"])
        state = {k: v.clone() + 1 for k, v in manager.state_dict().items()}
        manager.load_state_dict(state)
        manager.initialize()
        torch.testing.assert_close(manager.word("*").data, row(embedder, "cat") + 1)
        write_words(tmp_path / "a.pt", {"*": torch.ones(2, 6)}, {"*": 4})
        manager.load(tmp_path / "a.pt")
        torch.testing.assert_close(manager.word("*").data, torch.ones(2, 6))


def test_state_dict_names_are_the_originals(embedder):
    manager = EmbeddingManager(embedder, ["*", "@"], ["cat"])
    names = {"string_to_param_dict.*", "string_to_param_dict.@", "optimizer_step"}
    assert set(manager.state_dict()) == names


def test_asking_for_a_word_that_is_not_there(embedder):
    with pytest.raises(UserError, match=r"no word '@' is loaded; there are \['\*'\]"):
        EmbeddingManager(embedder).word("@")


def test_a_copy_stands_alone(embedder):
    manager = EmbeddingManager(embedder, ["*"], ["cat"])
    other = copy.deepcopy(manager)
    with torch.no_grad():
        other.word("*").zero_()
    assert manager.word("*").abs().sum() > 0
