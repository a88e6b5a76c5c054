"""The command line of main.py: overrides stand anywhere, mistakes are one line."""

from __future__ import annotations

import shlex

import pytest

from ldm.training.arguments import EXAMPLES, parse
from ldm.util import UserError


@pytest.mark.parametrize(
    "line",
    [line for line in EXAMPLES.replace("\\\n", " ").splitlines() if "main.py" in line],
)
def test_every_example_is_understood(line: str) -> None:
    options = parse(shlex.split(line)[2:])
    assert options.train is True
    assert options.base or options.resume or options.actual_resume
    assert all("=" in text for text in options.overrides)


@pytest.mark.parametrize(
    "before", [["-t"], ["--no-test"], ["-d"], ["--scale_lr"], ["--base", "x.yaml"], ["--captions"]]
)
def test_an_override_may_follow_any_flag(before: list[str]) -> None:
    options = parse([*before, "a.b=1", "--c.d=2", "-t"])
    assert options.overrides == ["a.b=1", "c.d=2"]
    assert options.train is True
    assert options.base in ([], ["x.yaml"])


def test_the_value_of_an_option_is_no_override() -> None:
    options = parse(["-t", "-n", "a.b=1", "--data_root", "x.y=z/pictures", "c.d=2"])
    assert (options.name, options.data_root) == ("a.b=1", "x.y=z/pictures")
    assert options.overrides == ["c.d=2"]
    assert parse(["-t", "no", "--base", "x=1.yaml", "y.yaml"]).base == ["x=1.yaml", "y.yaml"]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("--bse x.yaml", "unknown argument '--bse'"),
        ("--max_step=3", "unknown argument '--max_step=3'"),
        ("-t maybe", "expected true or false, got 'maybe'"),
        ("--max_steps many", "argument --max_steps: invalid int value: 'many'"),
        ("-n", "argument -n/--name: expected one argument"),
    ],
)
def test_a_mistake_is_one_line(line: str, message: str) -> None:
    with pytest.raises(UserError) as caught:
        parse(line.split())
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
