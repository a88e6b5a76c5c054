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
