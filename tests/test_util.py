"""Objects from configuration, and errors as one line."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import ClassVar

import pytest
import torch
from safetensors import SafetensorError

from ldm.models.autoencoder import AutoencoderKL
from ldm.util import (
    ParameterError,
    UserError,
    at_least,
    cli_main,
    first_line,
    instantiate_from_config,
    one_of,
    parameters,
    read_text,
    without_dropped,
    write_whole,
)

DDCONFIG = {
    **{"double_z": True, "z_channels": 2, "resolution": 8, "in_channels": 3, "out_ch": 3, "ch": 32},
    **{"ch_mult": [1, 1], "num_res_blocks": 1, "attn_resolutions": []},
}


def autoencoder(**changes: object) -> dict[str, object]:
    params = {"embed_dim": 2, "ddconfig": DDCONFIG, "lossconfig": {"target": "torch.nn.Identity"}}
    return {"target": "ldm.models.autoencoder.AutoencoderKL", "params": params | changes}


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"target": "torch.nn.Linear", "params": {"in_features": 1, "outs": 2}}, "Linear .*'outs'"),
        ({"target": "torch.nn.Linear", "params": {"in_features": 1}}, "Linear: .*'out_features'"),
        (autoencoder(imge_key="x"), "AutoencoderKL takes no parameter 'imge_key'"),
        (autoencoder(ddconfig={**DDCONFIG, "depth": 3}), "ddconfig takes no parameter 'depth'"),
        (autoencoder(ddconfig={"ch": 3}), "ddconfig: missing .*argument"),
    ],
)
def test_a_parameter_that_does_not_fit_is_named(config: dict[str, object], message: str) -> None:
    with pytest.raises(ParameterError, match=message) as caught:
        instantiate_from_config(config)
    assert isinstance(caught.value, UserError)
    assert isinstance(caught.value, TypeError)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "config",
    [
        {"target": 3},
        {"params": {}},
        "torch.nn.Linear",
        {"target": "torch.nn.Linear", "params": 3},
        {"target": "os.system", "params": {"command": "true"}},
    ],
)
def test_what_is_no_target_with_params(config: object) -> None:
    with pytest.raises(UserError, match="target"):
        instantiate_from_config(config)  # type: ignore[arg-type]


def test_what_the_code_gives_is_not_the_files() -> None:
    config = {"target": "torch.nn.Linear", "params": {"in_features": 1, "out_features": 2}}
    with pytest.raises(ParameterError, match="'in_features' is given by the code"):
        instantiate_from_config(config, in_features=3)


def test_a_type_error_inside_stays_one() -> None:
    config = {"target": "torch.nn.Linear", "params": {"in_features": "x", "out_features": 2}}
    with pytest.raises(TypeError) as caught:
        instantiate_from_config(config)
    assert not isinstance(caught.value, UserError)


def test_options_handed_on_are_the_parents() -> None:
    known, complete = parameters(AutoencoderKL)
    assert complete
    assert {"ddconfig", "embed_dim", "monitor", "ckpt_path", "betas"} <= set(known)
    assert not set(known) & {"self", "options"}
    assert not parameters(torch.nn.Identity)[1]  # takes, and ignores, whatever it is given


class Parent:
    def __init__(self, size: int, name: str = "") -> None: ...


class Child(Parent):
    def __init__(self, *, name: str = "child", more: bool = False, **options: int) -> None:
        super().__init__(name=name, **options)


def test_a_childs_own_parameters_come_before_its_parents() -> None:
    found, complete = parameters(Child)
    assert complete
    assert {n: str(p.annotation) for n, p in found.items()} == {
        "size": "int", "name": "str", "more": "bool"
    }  # fmt: skip
    assert found["name"].default == "child"


def test_what_takes_anything_still_tells_the_names_it_has() -> None:
    def anything(root: str, **_: int) -> None: ...

    found, complete = parameters(anything)
    assert list(found) == ["root"]
    assert not complete


def raising(error: BaseException) -> Callable[[], int]:
    def run() -> int:
        raise error

    return run


@pytest.mark.parametrize(
    ("error", "line", "status"),
    [
        (UserError("no\nsuch  thing"), "error: no such thing\n", 2),
        (OSError(errno.ENOSPC, "No space left", "a.pt"), "error: a.pt: No space left\n", 1),
        (
            torch.OutOfMemoryError("GPU full."),
            "error: GPU full. Take a smaller batch or size.\n",
            1,
        ),
        (KeyboardInterrupt(), "interrupted\n", 130),
    ],
)
def test_one_line_for_what_is_no_bug(
    error: BaseException, line: str, status: int, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        cli_main(raising(error))
    assert stopped.value.code == status
    assert capsys.readouterr().err == line


@pytest.mark.parametrize("error", [TypeError("x"), ValueError("x"), RuntimeError("x"), OSError()])
def test_bugs_keep_their_traceback(error: Exception) -> None:
    with pytest.raises(type(error)) as caught:
        cli_main(raising(error))
    assert caught.value is error


def test_a_file_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "folder" / "word.pt"
    write_whole(path, b"old")
    path.chmod(0o640)

    def fail(part: Path) -> None:
        part.write_bytes(b"half")
        raise RuntimeError("stopped")

    with pytest.raises(RuntimeError, match="stopped"):
        write_whole(path, fail)
    assert path.read_bytes() == b"old"
    with pytest.raises(FileExistsError):
        write_whole(path, "new", replace=False)
    write_whole(path, lambda part: part.write_text("new"))
    assert path.read_text() == "new"
    write_whole(path.with_name("free"), "text", replace=False)
    assert sorted(p.name for p in path.parent.iterdir()) == ["free", "word.pt"]


def test_a_link_is_written_through(tmp_path: Path) -> None:
    (tmp_path / "far").mkdir()
    link = tmp_path / "link"
    link.symlink_to(tmp_path / "far" / "file")
    write_whole(link, "text")
    assert link.is_symlink()
    assert (tmp_path / "far" / "file").read_text() == "text"


def test_what_cannot_be_written_is_one_line_with_the_path(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "file" / "x.pt", tmp_path / "pipe", tmp_path):
        for replace in (True, False):
            with pytest.raises((UserError, FileExistsError), match=path.name):
                write_whole(path, b"x", replace=replace)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "pipe"]


@pytest.mark.parametrize("writer", ["bytes", "torch", "safetensors"])
def test_a_full_disk_is_one_line_with_the_path(
    writer: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`/dev/full` is a device on which every write fails as on a full disk."""
    if not Path("/dev/full").exists():
        pytest.skip("no /dev/full")

    def full(part: Path) -> None:
        part.unlink()
        part.symlink_to("/dev/full")
        if writer == "bytes":
            part.write_bytes(b"x" * 10)
        elif writer == "torch":
            torch.save({"x": torch.zeros(10_000)}, part)
        else:
            raise SafetensorError("Error while serializing: No space left on device")

    usage = SimpleNamespace(free=0)
    monkeypatch.setattr("shutil.disk_usage", lambda _: usage)
    path = tmp_path / "word.pt"
    with pytest.raises(UserError, match=r"cannot write '.*word\.pt': No space left on device"):
        write_whole(path, full)
    assert not list(tmp_path.iterdir())


def test_checks_name_the_value_that_is_out_of_range() -> None:
    at_least(1, steps=1, threads=None)
    with pytest.raises(ValueError, match=r"^steps must be at least 1, got 0$"):
        at_least(1, threads=2, steps=0)
    with pytest.raises(ValueError, match=r"^scale must be at least 0, got nan$"):
        at_least(0, scale=float("nan"))
    one_of(("a", "b"), mode="b")
    with pytest.raises(ValueError, match=r"^mode must be one of a, b, got 'c'$"):
        one_of(("a", "b"), mode="c")


def test_the_first_line_of_an_error_says_something() -> None:
    assert first_line(ValueError("\n  one\ntwo")) == "one"
    assert first_line(KeyError()) == "KeyError"
    assert len(first_line(ValueError("x" * 999))) == 160


def test_a_text_is_read_without_its_mark(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes("\ufeffein Bild".encode())
    assert read_text(path, "caption") == "ein Bild"
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(UserError, match=r"^caption .*a\.txt: not UTF-8 text$"):
        read_text(path, "caption")
    with pytest.raises(UserError, match=r"^prompts .*none\.txt: No such file"):
        read_text(tmp_path / "none.txt", "prompts")


class Former:
    dropped: ClassVar[dict[str, float]] = {"weight": 1.0}

    def __init__(self, size: int = 1) -> None:
        self.size = size


def test_a_dropped_parameter_is_read_where_it_does_nothing() -> None:
    assert without_dropped("model", Former, {"weight": 1, "size": 3}) == {"size": 3}
    with pytest.raises(UserError, match=r"^model: weight=0\.5 is not supported: leave it out, or"):
        without_dropped("model", Former, {"weight": 0.5})
