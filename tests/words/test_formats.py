"""The forms of other tools, as their files are found in public."""

import base64
import json
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, PngImagePlugin
from safetensors.torch import save_file
from torch.testing import assert_close

from ldm.util import UserError
from ldm.words import hub
from ldm.words.containers import pseudo_random
from ldm.words.files import check_encoder, check_name, read_words, write_words


def vectors(k=2, width=768, seed=0):
    return torch.randn(k, width, generator=torch.Generator().manual_seed(seed))


def only(path, **options):
    """The one word of a file, as (name, vectors)."""
    ((name, word),) = read_words(path, **options).words.items()
    return name, word


def test_clip_l_alone_is_a_word_of_stable_diffusion_1(tmp_path):
    path = tmp_path / "cat.safetensors"
    save_file({"clip_l": vectors()}, path)
    name, word = only(path)
    assert name == "cat"
    assert_close(word, vectors())
    check_encoder(read_words(path), "clip", 768, path)
    assert read_words(path).second == {}


@pytest.mark.parametrize("suffix", ["safetensors", "pti"])
@pytest.mark.parametrize("keys", [("clip_l", "clip_g"), ("text_encoders_0", "text_encoders_1")])
def test_a_tensor_for_each_encoder_is_a_word_of_sdxl(tmp_path, keys, suffix):
    path = tmp_path / f"cat.{suffix}"
    first, second = vectors(), vectors(width=1280, seed=1)
    save_file({keys[0]: first, keys[1]: second, "clip_l_out": vectors(seed=2)}, path)
    file = read_words(path)
    assert_close(file.words, {"cat": first})
    assert_close(file.second, {"cat": second})
    check_encoder(file, "sdxl", 768, path)
    with pytest.raises(UserError, match=r"SDXL's two text encoders.*is clip, width 768"):
        check_encoder(file, "clip", 768, path)


def test_the_output_embedding_of_onetrainer_is_no_second_word(tmp_path):
    path = tmp_path / "cat.safetensors"
    save_file({"emp_params_out": vectors(seed=1), "emp_params": vectors()}, path)
    assert_close(read_words(path).words, {"cat": vectors()})


class TestWidth1280:
    """LDM-BERT and SDXL's second encoder have one width: it decides nothing."""

    def pair(self, folder, step=""):
        paths = [folder / f"learned_embeds{n}{step}.safetensors" for n in ("", "_2")]
        save_file({"<cat>": vectors()}, paths[0])
        save_file({"<cat>": vectors(width=1280, seed=1)}, paths[1])
        return paths

    @pytest.mark.parametrize("step", ["", "-steps-500"])
    def test_the_companion_file_decides(self, tmp_path, step):
        for path in self.pair(tmp_path, step):
            file = read_words(path)
            assert_close(file.words, {"<cat>": vectors()})
            assert_close(file.second, {"<cat>": vectors(width=1280, seed=1)})
            assert file.metadata["encoder_family"] == "sdxl"

    def test_alone_it_is_refused_and_the_ways_out_are_named(self, tmp_path):
        first, second = self.pair(tmp_path)
        first.unlink()
        with pytest.raises(UserError, match=r"LDM-BERT or SDXL's second.*--encoder ldm-bert"):
            check_encoder(read_words(second), "ldm-bert", 1280, second)

    def test_our_header_decides(self, tmp_path):
        path = tmp_path / "learned_embeds_2.safetensors"
        write_words(path, {"*": vectors(width=1280)}, metadata={"encoder_family": "ldm-bert"})
        check_encoder(read_words(path), "ldm-bert", 1280, path)

    def test_the_original_form_is_of_ldm_bert(self, tmp_path):
        path = tmp_path / "embeddings.pt"
        content = {"*": vectors(width=1280)}
        torch.save({"string_to_token": {"*": 1008}, "string_to_param": content}, path)
        check_encoder(read_words(path), "ldm-bert", 1280, path)

    def test_two_files_of_different_words_are_no_pair(self, tmp_path):
        first, _ = self.pair(tmp_path)
        save_file({"<dog>": vectors()}, first)
        with pytest.raises(UserError, match="hold different words"):
            read_words(first)


LORA = {"lora_unet_mid_block_attentions_0_proj_in.lora_up.weight": torch.ones(4, 8)}


class TestBundles:
    def test_words_are_taken_out_of_a_lora_by_name(self, tmp_path):
        path = tmp_path / "style.safetensors"
        words = {
            "bundle_emb.cat.clip_l": vectors(),
            "bundle_emb.dog.string_to_param.*": vectors(1, seed=1),
            "bundle_emb.a.b.emb_params": vectors(1, seed=2),
        }
        save_file(LORA | words, path, {"name": "style"})
        found = read_words(path)
        assert_close(found.words, dict(zip(("cat", "dog", "a.b"), words.values(), strict=True)))

    def test_both_encoders_of_sdxl(self, tmp_path):
        path = tmp_path / "style.safetensors"
        second = vectors(width=1280)
        words = {"bundle_emb.cat.clip_l": vectors(), "bundle_emb.cat.clip_g": second}
        save_file(LORA | words, path)
        assert_close(read_words(path).second, {"cat": second})

    @pytest.mark.parametrize("key", ["t5", "else"])
    def test_a_bundle_of_another_model_is_named(self, tmp_path, key):
        path = tmp_path / "style.safetensors"
        save_file({f"bundle_emb.cat.{key}": torch.ones(1, 8), **LORA}, path)
        with pytest.raises(UserError, match=r"FLUX|unknown form"):
            read_words(path)


def test_lora_pivotal_tuning_holds_words_beside_weights(tmp_path):
    path = tmp_path / "final_lora.safetensors"
    word = vectors(1)[0]
    save_file({"<s1>": word, "unet:0:up": torch.ones(4, 2)}, path, {"<s1>": "<embed>"})
    assert_close(read_words(path).words, {"<s1>": word[None]})


def test_a_bare_tensor_takes_the_given_name(tmp_path):
    torch.save(vectors(), tmp_path / "cat.pt")
    assert only(tmp_path / "cat.pt")[0] == "cat"
    assert only(tmp_path / "cat.pt", placeholder="@")[0] == "@"


def test_a_list_of_dictionaries(tmp_path):
    torch.save([{"<a>": vectors()}, {"<b>": vectors(1)}], tmp_path / "e.bin")
    assert_close(read_words(tmp_path / "e.bin").words, {"<a>": vectors(), "<b>": vectors(1)})


@pytest.mark.parametrize(
    ("metadata", "name"),
    [({"name": "mycat"}, "mycat"), ({"placeholders": '["*"]'}, "*"), ({}, "w")],
)
def test_the_header_names_a_nameless_word(tmp_path, metadata, name):
    save_file({"emb_params": vectors()}, tmp_path / "w.safetensors", metadata)
    assert only(tmp_path / "w.safetensors")[0] == name


CARD = {
    "string_to_token": {"*": 265},
    "string_to_param": {"*": {"TORCHTENSOR": vectors(2, 24).tolist()}},
    "name": "mycat",
    "step": 7,
}


class TestCards:
    """Images that carry a word; the text chunk comes first, then the pixels."""

    def pixels(self, height=64):
        """AUTOMATIC1111's second form: four bits a channel, low left and high right."""
        text = json.dumps(CARD).encode()
        stream = np.frombuffer(zlib.compress(text, 9), np.uint8)
        columns = -(-len(stream) // (height * 3))
        padded = np.resize(stream, height * columns * 3).reshape(height, columns, 3)
        noise = pseudo_random(padded.size).reshape(padded.shape) & 0x0F
        # The upper bits show a pattern there; any will do, but no pixel at the rim may be black.
        low, high = (((part ^ noise) | 0x40) for part in (padded & 0x0F, padded >> 4))
        black = np.zeros((height, 1, 3), np.uint8)
        image = np.full((height, 20, 3), 0x55, np.uint8)
        return Image.fromarray(np.concatenate([low, black, image, black, high], 1))

    def test_the_sequence_is_theirs(self):
        first = [253, 242, 127, 44, 157, 27, 239, 133, 38, 79, 167, 4, 177]
        assert pseudo_random(13).tolist() == first

    @pytest.mark.parametrize("suffix", ["png", "webp", "avif"])
    def test_a_word_in_pixels(self, tmp_path, suffix):
        path = tmp_path / f"card.{suffix}"
        if suffix == "avif":  # the same pixels; Pillow cannot write them without loss
            path = Path(__file__).parents[1] / "data/card.avif"
        else:
            self.pixels().save(path, **({"lossless": True} if suffix == "webp" else {}))
        file = read_words(path)
        assert_close(file.words, {"*": vectors(2, 24)})
        assert (file.metadata["name"], file.form) == ("mycat", "AUTOMATIC1111")

    def test_the_text_chunk_comes_first(self, tmp_path):
        other = {**CARD, "name": "other"}
        chunk = PngImagePlugin.PngInfo()
        chunk.add_text("sd-ti-embedding", base64.b64encode(json.dumps(other).encode()).decode())
        self.pixels().save(tmp_path / "card.png", pnginfo=chunk)
        assert read_words(tmp_path / "card.png").metadata["name"] == "other"

    @pytest.mark.parametrize("suffix", ["png", "webp", "jpg", "avif"])
    def test_an_ordinary_image_holds_no_word(self, tmp_path, suffix):
        path = tmp_path / f"photo.{suffix}"
        Image.effect_noise((40, 30), 60).convert("RGB").save(path)
        with pytest.raises(UserError, match="holds no word"):
            read_words(path)

    def test_damaged_pixels_are_one_line(self, tmp_path):
        image = np.array(self.pixels())
        image[20:40, 3:] = 0x57
        Image.fromarray(image).save(tmp_path / "card.png")
        with pytest.raises(UserError, match=r"damaged|holds no word"):
            read_words(tmp_path / "card.png")

    def test_jpeg_xl_is_named(self, tmp_path):
        (tmp_path / "card.jxl").write_bytes(b"\xff\x0a" + bytes(100))
        with pytest.raises(UserError, match="convert it to PNG"):
            read_words(tmp_path / "card.jxl")


class TestFolders:
    def concept(self, folder, content, identifier="<cat-toy>"):
        (folder / "concept_images").mkdir(parents=True)
        torch.save(content, folder / "learned_embeds.bin")
        (folder / "token_identifier.txt").write_text(identifier)

    def test_a_concept_of_the_hub(self, tmp_path):
        self.concept(tmp_path / "cat-toy", {"<cat-toy>": vectors(1)[0]})
        assert_close(read_words(tmp_path / "cat-toy").words, {"<cat-toy>": vectors(1)})

    def test_the_identifier_names_a_nameless_word(self, tmp_path):
        self.concept(tmp_path / "cat-toy", vectors(), "<cat-toy>\n")
        assert only(tmp_path / "cat-toy")[0] == "<cat-toy>"

    def test_the_folder_of_a_run(self, tmp_path):
        write_words(tmp_path / "checkpoints" / "embeddings.safetensors", {"*": vectors()})
        assert only(tmp_path)[0] == "*"

    def test_a_folder_without_a_word(self, tmp_path):
        with pytest.raises(UserError, match="give the file itself"):
            read_words(tmp_path)

    def cached(self, monkeypatch, cache, name, content):
        """A repository in a local cache of the Hub, with the network off."""
        from huggingface_hub import constants

        commit = "0" * 40
        repository = cache / f"models--{name.replace('/', '--')}"
        self.concept(repository / "snapshots" / commit, content)
        (repository / "refs").mkdir()
        (repository / "refs" / "main").write_text(commit)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)

    @pytest.mark.parametrize("name", ["{}", "hf:{}", "hf:{}@main"])
    def test_a_name_of_the_hub(self, tmp_path, monkeypatch, name):
        repository = "sd-concepts-library/cat-toy"
        self.cached(monkeypatch, tmp_path, repository, {"<cat-toy>": vectors(1)})
        assert only(name.format(repository))[0] == "<cat-toy>"

    def test_a_name_out_of_reach_is_one_line(self, tmp_path, monkeypatch):
        self.cached(monkeypatch, tmp_path, "sd-concepts-library/cat-toy", {"a": vectors()})
        with pytest.raises(UserError, match="not in the Hub's cache, and the Hub") as caught:
            read_words("sd-concepts-library/dog-toy")
        assert "\n" not in str(caught.value)

    @pytest.mark.parametrize(
        "path", ["absent.pt", "tests/absent", "a/b/c", "logs/word.safetensors"]
    )
    def test_a_mistyped_path_is_not_looked_up(self, monkeypatch, path):
        monkeypatch.setattr(hub, "snapshot", lambda *_: pytest.fail("asked the Hub"))
        with pytest.raises(UserError, match="does not exist"):
            read_words(path)


@settings(max_examples=30, deadline=None)
@given(k=st.integers(1, 3), names=st.sets(st.sampled_from("abcd@*"), min_size=1, max_size=3))
@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_words_of_two_encoders_come_back(tmp_path_factory, suffix, k, names):
    path = tmp_path_factory.mktemp("xl") / f"w{suffix}"
    first = {n: vectors(k, 6, i) for i, n in enumerate(sorted(names))}
    second = {n: vectors(k, 10, i + 9) for i, n in enumerate(sorted(names))}
    ids = {name: i for i, name in enumerate(first)}
    facts = {"encoder_family": "sdxl", "placeholders": json.dumps(sorted(names))}
    write_words(path, first, ids, facts, second)
    file = read_words(path)
    assert_close((file.words, file.second), (first, second))
    assert file.metadata["encoder_family"] == "sdxl"


@pytest.mark.parametrize("name", ["", " ", "a b", "a\nb", "\u200b"])
def test_names_that_nothing_can_load(name):
    with pytest.raises(UserError, match="cannot be the name of a word"):
        check_name(name)


@pytest.mark.parametrize("name", ["*", "<cat-toy>", "猫", "emb_1", "a.b", "train"])
def test_names_that_can_be_loaded(name):
    check_name(name)


class TestFilesThatAreSomethingElse:
    def test_an_image_of_too_many_pixels(self, tmp_path, monkeypatch):
        monkeypatch.setattr("ldm.words.containers.LARGEST_PIXELS", 15)
        Image.new("RGB", (4, 4)).save(tmp_path / "a.png")
        with pytest.raises(UserError, match="has 4 x 4 pixels: more than any image that carries"):
            read_words(tmp_path / "a.png")

    def test_a_decompression_bomb(self, tmp_path, monkeypatch):
        monkeypatch.setattr("PIL.Image.MAX_IMAGE_PIXELS", 4)
        Image.new("RGB", (9, 9)).save(tmp_path / "a.png")
        with pytest.raises(UserError, match="far too large an image to carry a word"):
            read_words(tmp_path / "a.png")

    def test_an_image_that_is_cut_off(self, tmp_path):
        noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)
        Image.fromarray(noise).save(tmp_path / "a.png")
        (tmp_path / "a.png").write_bytes((tmp_path / "a.png").read_bytes()[:3000])
        with pytest.raises(UserError, match=r"a.png' is not a readable image: "):
            read_words(tmp_path / "a.png")

    def test_a_text_chunk_that_is_damaged(self, tmp_path):
        chunk = PngImagePlugin.PngInfo()
        chunk.add_text("sd-ti-embedding", base64.b64encode(b'{"half": ').decode())
        Image.new("RGB", (8, 8)).save(tmp_path / "a.png", pnginfo=chunk)
        with pytest.raises(UserError, match=r"a.png': the word in this image is damaged: "):
            read_words(tmp_path / "a.png")

    def test_an_image_without_a_lit_pixel_or_with_uneven_blocks(self, tmp_path):
        Image.new("RGB", (8, 8)).save(tmp_path / "black.png")
        uneven = np.full((4, 9, 3), 255, np.uint8)
        uneven[:, (2, 5)] = 16  # two columns whose lower bits are black, unlike parts beside them
        Image.fromarray(uneven).save(tmp_path / "uneven.png")
        for name in ("black.png", "uneven.png"):
            with pytest.raises(UserError, match="holds no word: neither in a text chunk"):
                read_words(tmp_path / name)

    def test_a_file_that_may_not_be_read(self, tmp_path, monkeypatch):
        path = tmp_path / "a.pt"
        path.write_bytes(b"x")

        def locked(*_, **__):
            raise PermissionError(13, "Permission denied")

        monkeypatch.setattr(type(path), "open", locked)
        with pytest.raises(UserError, match=r"embedding file '.*a.pt': Permission denied"):
            read_words(path)

    def test_a_header_that_lists_no_names_is_passed_over(self, tmp_path):
        save_file(
            {"emb_params": vectors()},
            tmp_path / "a.safetensors",
            metadata={"placeholders": "[broken", "name": "cat-toy"},
        )
        assert only(tmp_path / "a.safetensors")[0] == "cat-toy"

    def test_a_file_of_no_words(self, tmp_path):
        torch.save({"string_to_param": {}, "string_to_token": {}}, tmp_path / "a.pt")
        with pytest.raises(UserError, match="holds no words"):
            read_words(tmp_path / "a.pt")

    def test_a_list_with_one_name_twice(self, tmp_path):
        torch.save([{"<cat>": vectors(1)[0]}, {"<cat>": vectors(1)[0]}], tmp_path / "a.bin")
        with pytest.raises(UserError, match="holds two words of one name: '<cat>'"):
            read_words(tmp_path / "a.bin")

    def test_a_folder_with_one_file_of_another_name(self, tmp_path):
        write_words(tmp_path / "mine.safetensors", {"*": vectors()})
        assert only(tmp_path)[0] == "*"
