"""Options and checks that the commands share."""

from __future__ import annotations

import argparse

import pytest

from ldm.cli import common
from ldm.sampling import Sampling
from ldm.util import UserError


def parser(**defaults: object) -> common.Parser:
    made = common.Parser(prog="test")
    common.add_options(made, **defaults)
    return made


def test_shared_options_have_their_names_and_say_their_defaults() -> None:
    made = parser(
        **{name: None for name in common.SHARED if name not in ("ddim_steps", "ddim_eta")}
    )
    assert set(vars(made.parse_args([]))) == set(common.SHARED) - {"ddim_steps", "ddim_eta"}
    text = parser(steps=50, karras=False, negative_prompt="").format_help()
    assert "1..1000 (50)" in text
    assert "(False)" not in text
    assert "()" not in text


def test_other_spellings_reach_the_same_setting() -> None:
    options = parser(steps=50, eta=0.0, scale=5.0).parse_args(["--ddim_steps", "7"])
    assert common.sampling_of(options) == Sampling(steps=7)


def test_a_setting_out_of_range_names_its_option() -> None:
    options = parser(ddim_steps=50).parse_args(["--ddim_steps", "0"])
    with pytest.raises(UserError, match=r"^--ddim_steps must lie in 1\.\.1000, got 0$"):
        common.sampling_of(options, steps="ddim_steps")
    given = argparse.Namespace(images=0, rounds=None)
    common.check_least(given, 1, "rounds")
    with pytest.raises(UserError, match=r"^--images must be at least 1, got 0$"):
        common.check_least(given, 1, "rounds", "images")


def test_pairs_are_split_at_the_first_sign() -> None:
    assert common.split_pairs("--rename takes OLD=NEW", ["*=a=b"]) == [("*", "a=b")]
    for item in ("a", "=a", "a="):
        with pytest.raises(UserError, match=r"^--rename takes OLD=NEW, got "):
            common.split_pairs("--rename takes OLD=NEW", [item])


def test_an_options_type_and_help_follow_from_its_default() -> None:
    made = common.Parser(prog="test", description="Does it.\n\nExamples:\n  do it")
    common.option(made, "given IN", "a file")
    common.option(made, "--count --number N", "how many", 3)
    common.option(made, "--share", "of all (half)", 0.5)
    common.option(made, "--quiet", "say nothing", False)
    common.option(made, "--names NAME", "of words", [])
    options = made.parse_args(["x", "--number", "7", "--names", "a", "b", "--names", "c"])
    wanted = {"given": "x", "count": 7, "share": 0.5, "quiet": False, "names": ["a", "b", "c"]}
    assert vars(options) == wanted
    with pytest.raises(UserError, match="argument --share: invalid float value: 'x'"):
        made.parse_args(["x", "--share", "x"])
    text = made.format_help()
    for part in (
        "IN ",
        "--count N, --number N",
        "how many (3)",
        "of all (half)\n",
        "say nothing\n",
    ):
        assert part in text
    assert text.startswith("usage:")
    assert text.endswith("Examples:\n  do it\n")
