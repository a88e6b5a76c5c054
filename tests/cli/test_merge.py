"""merge_embeddings.py: no word is lost or overwritten, and the result works in a prompt."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.testing import assert_close

from ldm.cli.merge import main
from ldm.inference import load_model, load_words
from ldm.util import UserError
from ldm.words.files import read_words, write_words

ROOT = Path(__file__).parents[2]


def word_file(path, *names, width=1280, value=1.0, ids=True):
    vectors = {n: torch.full((i + 1, width), value + i) for i, n in enumerate(names)}
    write_words(path, vectors, {n: 1000 + ord(n[0]) for n in names} if ids else None)
    return str(path)


def xl(path, name, value=1.0):
    """A word of SDXL, with vectors for both text encoders."""
    first, second = ({name: torch.full((2, width), value)} for width in (768, 1280))
    write_words(path, first, second=second)
    return path


def merge(*arguments):
    assert main(["--manager_ckpts", *map(str, arguments)]) == 0


def test_words_of_two_files_stand_in_one(tmp_path):
    cat = word_file(tmp_path / "cat.pt", "*", "^", value=1)
    style = word_file(tmp_path / "style.pt", "@", value=5)
    merge(cat, style, "--output_path", tmp_path / "out" / "both.pt")
    both = read_words(tmp_path / "out" / "both.pt")
    assert set(both.words) == {"*", "^", "@"}
    assert both.words["^"].shape == (2, 1280)
    assert_close(both.words["@"], torch.full((1, 1280), 5.0))
    assert both.token_ids == {"*": 1000 + ord("*"), "^": 1000 + ord("^"), "@": 1000 + ord("@")}
    stored = torch.load(tmp_path / "out" / "both.pt", weights_only=False)
    assert set(stored["string_to_param"].keys()) == {"*", "^", "@"}


def test_words_of_one_name_are_never_overwritten(tmp_path):
    files = [word_file(tmp_path / f"{n}.pt", "*") for n in "ab"]
    with pytest.raises(UserError, match=r"both bring the word '\*': rename one with --rename"):
        merge(*files, "--output_path", tmp_path / "out.pt")
    assert not (tmp_path / "out.pt").exists()


def test_renaming_in_the_files_order(tmp_path):
    files = [word_file(tmp_path / f"{n}.pt", "*", value=i) for i, n in enumerate("abc")]
    out = tmp_path / "out.safetensors"
    merge(*files, "--output_path", out, "--rename", "*=@", "*=#")
    words = read_words(out).words
    assert {name: v[0, 0].item() for name, v in words.items()} == {"*": 0.0, "@": 1.0, "#": 2.0}
    facts = read_words(out).metadata
    assert json.loads(facts["merged_from"]) == files
    merge(*files, "--output_path", out, "--force", "--rename", "*=&", "*=@", "*=#")
    assert set(read_words(out).words) == {"&", "@", "#"}


def test_a_single_file_may_be_renamed(tmp_path):
    out = tmp_path / "out.safetensors"
    merge(word_file(tmp_path / "a.pt", "*"), "--output_path", out, "--rename", "*=@")
    assert list(read_words(out).words) == ["@"]


def test_the_width_tells_that_words_are_for_stable_diffusion(tmp_path):
    files = [word_file(tmp_path / f"{n}.pt", n, width=768) for n in "ab"]
    for flags in ([], ["-sd"]):
        merge(*files, "--output_path", tmp_path / "both.pt", "--force", *flags)
        assert set(read_words(tmp_path / "both.pt").words) == {"a", "b"}


@pytest.mark.parametrize("options", [[], ["--blend", "a=0.5", "b=0.5"]])
def test_words_of_sdxl_keep_their_second_encoder(tmp_path, options):
    files = [xl(tmp_path / f"{n}.safetensors", n, 1.0 + i) for i, n in enumerate("ab")]
    merge(*files, "--output_path", tmp_path / "both.safetensors", *options)
    file = read_words(tmp_path / "both.safetensors")
    value = 1.5 if options else 1.0
    assert list(file.words) == list(file.second) == (["a"] if options else ["a", "b"])
    assert_close(file.second["a"], torch.full((2, 1280), value))
    assert_close(file.words["a"], torch.full((2, 768), value))


@pytest.mark.parametrize("make", [word_file, lambda path, *names: xl(path, names[0])])
def test_a_file_of_several_words_is_split(tmp_path, make):
    both, out = make(tmp_path / "both.safetensors", "*", "<cat>"), tmp_path / "words"
    held = read_words(both)
    merge(both, "--split", "--output_path", out)
    found = [read_words(path) for path in sorted(out.iterdir())]
    assert {n: v.tolist() for f in found for n, v in f.words.items()} == {
        n: v.tolist() for n, v in held.words.items()
    }
    assert [len(f.words) for f in found] == [1] * len(held.words)
    assert sum(len(f.second) for f in found) == len(held.second)
    with pytest.raises(UserError, match=r"exists: give another --output_path"):
        merge(both, "--split", "--output_path", out)
    merge(both, "--split", "--output_path", out, "--force")


def test_the_merged_file_generates(tiny, tmp_path):
    out = tmp_path / "both.pt"
    vocabulary = tiny.folder / "tokenizer"
    merge(
        tiny.word, tiny.other_word, "--output_path", out, "--rename", "*=@",
        "--tokenizer", vocabulary,
    )  # fmt: skip
    assert read_words(out).token_ids == {"*": 5, "@": 6}
    model = load_model(tiny.config, tiny.checkpoint)
    assert load_words(model, out) == ["*", "@"]
    assert model.embedding_manager.word("*").shape == (2, 32)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["a.pt", "--output_path", "out.bin"], r"must end in \.pt or \.safetensors"),
        (["a.pt", "--output_path", "a.pt"], "a.pt exists: give another"),
        (["absent.pt", "--output_path", "out.pt"], "absent.pt' does not exist"),
        (["a.pt", "--output_path", "out.pt", "--rename", "x"], "takes OLD=NEW, got 'x'"),
        (["a.pt", "--output_path", "out.pt", "--rename", "@=#"], "1 renamings for 0 words"),
        (["a.pt", "small.pt", "--output_path", "out.pt"], "width 1280 and small.pt for one of 768"),
        (["-sd", "a.pt", "--output_path", "out.pt"], "-sd is for words of width 768"),
        (["a.pt", "--output_path", "o.safetensors", "--rename", "*=a b"], "be the name of a word"),
        (["a.pt", "--split", "--output_path", "o.pt"], "must be a folder with --split"),
        (["xl.safetensors", "small.pt", "--output_path", "out.pt"], "is a word for SDXL and '#'"),
        (["odd.pt", "--output_path", "out.pt", "--rename", "*=#"], "--tokenizer FOLDER"),
        (["a.pt", "b.pt", "--output_path", "out.pt", "--rename", "*=@"], "both bring .* '@'"),
    ],
)
def test_mistakes_are_one_line_and_write_nothing(tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    word_file(Path("a.pt"), "*")
    word_file(Path("b.pt"), "@")
    word_file(Path("small.pt"), "#", width=768)
    word_file(Path("odd.pt"), "*", width=32)
    xl(Path("xl.safetensors"), "&")
    before = {p: p.read_bytes() for p in Path().iterdir()}
    flags = [arguments[0]] if arguments[0] == "-sd" else []
    with pytest.raises(UserError, match=message) as caught:
        main([*flags, "--manager_ckpts", *arguments[len(flags) :]])
    assert "\n" not in str(caught.value)
    assert {p: p.read_bytes() for p in Path().iterdir()} == before


@pytest.mark.parametrize(
    ("name", "message"), [("zebra", "unknown to the vocabulary"), ("cat@", "2 tokens of")]
)
def test_new_names_must_be_one_known_token(tiny, tmp_path, name, message):
    with pytest.raises(UserError, match=message):
        merge(
            tiny.word, "--output_path", tmp_path / "out.pt", "--rename", f"*={name}",
            "--tokenizer", tiny.folder / "tokenizer",
        )  # fmt: skip


def test_two_names_of_one_token_are_refused(tiny, tmp_path):
    files = [word_file(tmp_path / f"{n}.pt", n, width=32) for n in ("A", "a")]
    arguments = ["--rename", "A=cat", "a=CAT", "--tokenizer", tiny.folder / "tokenizer"]
    with pytest.raises(UserError, match="'cat' and 'CAT' are the same token"):
        merge(*files, "--output_path", tmp_path / "out.pt", *arguments)


def test_the_command_itself(tmp_path):
    cat = word_file(tmp_path / "cat.pt", "*")
    result = subprocess.run(
        [sys.executable, str(ROOT / "merge_embeddings.py"), "--manager_ckpts", cat, cat,
         "--output_path", str(tmp_path / "out.pt")],
        capture_output=True, text=True, timeout=120, check=False,
        env={"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "PATH": ""},
    )  # fmt: skip
    assert result.returncode == 2
    assert result.stderr.count("\n") == 1
    assert "both bring the word '*'" in result.stderr
