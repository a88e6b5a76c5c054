"""merge_embeddings.py --blend: one word between two, and one clear line for what has no blend."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.testing import assert_close

from ldm.cli.merge import main, read_blend
from ldm.util import UserError
from ldm.words.files import read_words, write_words
from ldm.words.sphere import angles, blend, directions

ROOT = Path(__file__).parents[2]


def write(path: Path, name: str, vectors: torch.Tensor, **metadata: str) -> str:
    write_words(path, {name: vectors}, {name: 1000 + ord(name[0])}, metadata)
    return str(path)


@pytest.fixture
def files(tmp_path: Path) -> list[str]:
    """Two words of two vectors, both learned as "*": along the axes, of norms 2 and 4."""
    first, second = torch.zeros(2, 8), torch.zeros(2, 8)
    first[0, 0] = first[1, 1] = 2.0
    second[0, 2] = second[1, 3] = 4.0
    return [write(tmp_path / "a.pt", "*", first), write(tmp_path / "b.pt", "*", second)]


def run(files: list[str], output: Path, *arguments: str) -> torch.Tensor:
    renamed = ["--rename", "*=@", "--output_path", str(output), "--force"]
    assert main(["--manager_ckpts", *files, *renamed, *arguments]) == 0
    (vectors,) = read_words(output).words.values()
    return vectors


def test_half_of_each_lies_between(files: list[str], tmp_path: Path) -> None:
    mixed = run(files, tmp_path / "out.safetensors", "--blend", "*=0.5", "@=0.5")
    expected = torch.zeros(2, 8)
    expected[0, [0, 2]] = expected[1, [1, 3]] = 3 / 2**0.5
    assert_close(mixed, expected)


@pytest.mark.parametrize("share", [0.0, 0.2, 0.75, 1.0])
def test_shares_turn_and_lengthen_in_proportion(
    files: list[str], tmp_path: Path, share: float
) -> None:
    output = tmp_path / "out.safetensors"
    mixed = run(files, output, "--blend", f"*={1 - share}", f"@={share}")
    first, second = (read_words(path).words["*"] for path in files)
    assert_close(mixed, blend(first, second, share))
    turned = angles(directions(first), directions(mixed))
    assert_close(turned, torch.full((2,), share * torch.pi / 2), atol=1e-4, rtol=0)
    assert_close(mixed.norm(dim=-1), torch.full((2,), 2 + 2 * share))
    assert_close(run(files, output, "--blend", f"@={share}", f"*={1 - share}"), mixed)


def test_the_file_holds_one_word_and_says_what_it_is(
    files: list[str], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    output = tmp_path / "out.pt"
    with caplog.at_level(logging.INFO):
        run(files, output, "--blend", "*=0.25", "@=0.75")
    file = read_words(output)
    assert list(file.words) == ["*"]
    assert file.token_ids == {"*": 1000 + ord("*")}
    assert json.loads(file.metadata["blended_from"]) == {"*": 0.25, "@": 0.75}
    assert json.loads(file.metadata["placeholders"]) == ["*"]
    assert json.loads(file.metadata["merged_from"]) == files
    assert "*: 0.25 * + 0.75 @, norms 2.000, 4.000, 3.500" in caplog.messages
    named = tmp_path / "named.safetensors"
    run(files, named, "--blend", "*=0.5", "@=0.5", "--blend_name", "&")
    assert list(read_words(named).words) == ["&"]


def test_further_words_are_left_out(files: list[str], tmp_path: Path) -> None:
    third = write(tmp_path / "c.pt", "#", torch.ones(1, 8))
    mixed = run([*files, third], tmp_path / "out.safetensors", "--blend", "*=0.5", "@=0.5")
    assert mixed.shape == (2, 8)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--blend", "*=1"], "takes two words"),
        (["--blend", "*=0.2", "@=0.3", "#=0.5"], "takes two words"),
        (["--blend", "*=0.5", "*=0.5"], r"names '\*' twice"),
        (["--blend", "*=0.5", "@=0.6"], r"must sum to 1, not to 1\.1"),
        (["--blend", "*=1.5", "@=-0.5"], r"share of 0 to 1, got '\*=1.5'"),
        (["--blend", "*=nan", "@=0.5"], r"share of 0 to 1, got '\*=nan'"),
        (["--blend", "*", "@=0.5"], r"takes WORD=SHARE.*got '\*'"),
        (["--blend", "=0.5", "@=0.5"], "takes WORD=SHARE.*got '=0.5'"),
        (
            ["--blend", "*=0.5", "cat=0.5"],
            r"no word 'cat'; the files bring '\*', '@', '#', '~', '0'",
        ),
        (["--blend", "*=0.5", "#=0.5"], r"'\*' has 2 vectors and '#' 1"),
        (["--blend", "*=0.5", "~=0.5"], "have no blend: a and b must not be opposite"),
        (["--blend", "*=0.5", "0=0.5"], "have no blend: .*row of zeros"),
        (["--blend_name", "&"], "--blend_name names a blended word"),
    ],
)
def test_mistakes_are_one_line_and_write_nothing(
    files: list[str], tmp_path: Path, arguments: list[str], message: str
) -> None:
    first = read_words(files[0]).words["*"]
    more = [
        write(tmp_path / "one.pt", "#", torch.ones(1, 8)),
        write(tmp_path / "opposite.pt", "~", -3 * first),
        write(tmp_path / "zero.pt", "0", 0 * first),
    ]
    with pytest.raises(UserError, match=message) as caught:
        run([*files, *more], tmp_path / "out.safetensors", *arguments)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out.safetensors").exists()


def test_words_of_two_text_encoders_are_refused(files: list[str], tmp_path: Path) -> None:
    wide = write(tmp_path / "wide.pt", "#", torch.ones(2, 16))
    with pytest.raises(UserError, match="cannot be used together"):
        run([*files, wide], tmp_path / "out.safetensors", "--blend", "*=0.5", "#=0.5")
    pair = [
        write(tmp_path / f"{family}.pt", name, torch.ones(2, 8), encoder_family=family)
        for name, family in (("*", "one"), ("^", "other"))
    ]
    with pytest.raises(UserError, match="for different text encoders"):
        main(["--manager_ckpts", *pair, "--output_path", str(tmp_path / "out.safetensors"),
              "--blend", "*=0.5", "^=0.5"])  # fmt: skip


def test_a_placeholder_may_be_the_sign_itself() -> None:
    wanted = read_blend(["==0.5", "@=0.5"], None)
    assert wanted == ({"=": 0.5, "@": 0.5}, "=")


def test_the_command_itself(files: list[str], tmp_path: Path) -> None:
    output = tmp_path / "out.safetensors"
    done = subprocess.run(
        [sys.executable, str(ROOT / "merge_embeddings.py"), "--manager_ckpts", *files,
         "--rename", "*=@", "--blend", "*=0.5", "@=0.5", "--output_path", str(output)],
        capture_output=True, text=True, timeout=120, check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert list(read_words(output).words) == ["*"]
