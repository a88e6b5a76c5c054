"""scripts/convert_embedding.py: round trips, splitting, inspection, and mistakes."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.testing import assert_close

from ldm.cli.convert_embedding import FORMS, main
from ldm.util import UserError
from ldm.words.files import check_encoder, read_words, write_words
from ldm.words.travel import SEVERAL, SINGLE

WORD = torch.arange(2 * 768).reshape(2, 768) / 1000


@pytest.fixture
def source(tmp_path):
    path = tmp_path / "in.pt"
    write_words(path, {"*": WORD}, {"*": 265}, {"encoder_family": "clip", "step": "7"})
    return path


def test_the_command_offers_every_form():
    assert set(FORMS) == {*SINGLE, *SEVERAL}


@pytest.mark.parametrize("form", sorted(set(FORMS) - {"sdxl"}))
def test_there_and_back(source, tmp_path, form):
    suffix = {**SEVERAL, **{name: row[0] for name, row in SINGLE.items()}}[form]
    there, back = tmp_path / f"there{suffix}", tmp_path / "back.safetensors"
    assert main([str(source), str(there), "--to", form]) == 0
    assert main([str(there), str(back)]) == 0
    assert_close(read_words(back).words, {"*": WORD}, rtol=0, atol=0)
    facts = read_words(back).metadata
    assert (facts["encoder_family"], facts["step"]) == ("clip", "7")


@pytest.mark.parametrize("form", sorted(set(FORMS) - {"sdxl", "original"}))
def test_a_new_name(source, tmp_path, form):
    folder = tmp_path / "out"
    suffix = {**SEVERAL, **{name: row[0] for name, row in SINGLE.items()}}[form]
    main([str(source), str(folder / f"x{suffix}"), "--to", form, "--placeholder", "<cat>"])
    assert_close(read_words(folder / f"x{suffix}").words, {"<cat>": WORD})


def test_a_word_of_sdxl(tmp_path):
    save_file({"clip_l": WORD, "clip_g": torch.ones(2, 1280)}, tmp_path / "in.safetensors")
    for form in ("sdxl", "kohya", "onetrainer"):
        main(
            [str(tmp_path / "in.safetensors"), str(tmp_path / f"{form}.safetensors"), "--to", form]
        )
        assert set(load_file(tmp_path / f"{form}.safetensors")) == {"clip_l", "clip_g"}
    pair = tmp_path / "pair" / "learned_embeds.safetensors"
    main([str(tmp_path / "in.safetensors"), str(pair), "--to", "diffusers"])
    assert_close(read_words(pair).second, {"in": torch.ones(2, 1280)})
    with pytest.raises(UserError, match="exists"):
        main([str(tmp_path / "in.safetensors"), str(pair), "--to", "diffusers"])


def test_a_file_of_several_words_is_split(tmp_path, capsys):
    path = tmp_path / "both.pt"
    write_words(path, {"*": WORD, "@": WORD + 1}, {"*": 265, "@": 31})
    main([str(path), str(tmp_path / "words")])
    names = ["word-asterisk.safetensors", "word-commercial-at.safetensors"]
    assert sorted(p.name for p in (tmp_path / "words").iterdir()) == names
    assert_close(read_words(tmp_path / "words" / names[1]).words, {"@": WORD + 1})
    assert names[0] in capsys.readouterr().out
    with pytest.raises(UserError, match="exists: give another OUT, or --force"):
        main([str(path), str(tmp_path / "words")])
    main([str(path), str(tmp_path / "words"), "--force"])


def test_the_user_says_which_encoder_of_width_1280(tmp_path):
    path, out = tmp_path / "learned_embeds_2.safetensors", tmp_path / "word.safetensors"
    save_file({"<cat>": torch.ones(1, 1280)}, path)
    main([str(path), str(out), "--encoder", "ldm-bert"])
    check_encoder(read_words(out), "ldm-bert", 1280, out)


@pytest.mark.parametrize(
    ("width", "encoder"), [(768, "clip"), (1024, "openclip-h"), (1280, "ldm-bert")]
)
def test_the_user_says_for_which_encoder_a_bare_tensor_is(tmp_path, width, encoder):
    path, out = tmp_path / "cat.pt", tmp_path / "word.safetensors"
    torch.save(torch.ones(2, width), path)
    main([str(path), str(out), "--encoder", encoder])
    assert read_words(out).metadata["encoder_family"] == encoder
    check_encoder(read_words(out), encoder, width, out)
    for other, wide in {"clip": 768, "openclip-h": 1024}.items():
        if wide != width:
            with pytest.raises(UserError, match=f"^--encoder {other}: .* have width {width}, "):
                main([str(path), str(tmp_path / "no.safetensors"), "--encoder", other])


@pytest.mark.parametrize("name", ["w.safetensors", "folder", "kohya.safetensors", "w.pt"])
def test_a_word_of_an_unknown_encoder_of_width_1280_stays_unknown(tmp_path, name, monkeypatch):
    """It may be SDXL's second: converting it does not make it a word of the 1.4B model."""
    path, out = tmp_path / "bare.pt", tmp_path / name
    torch.save(torch.ones(2, 1280), path)
    arguments = [str(path), str(out), "--placeholder", "*"]
    if name == "w.pt":
        monkeypatch.setattr("ldm.cli.merge.token_ids", lambda *_: {"*": 1008})
    main([*arguments, *(["--to", "kohya"] if name.startswith("kohya") else [])])
    out = next(iter(out.iterdir())) if out.is_dir() else out
    with pytest.raises(UserError, match="does not say which text encoder of width 1280"):
        check_encoder(read_words(out), "ldm-bert", 1280, out)


def test_inspect(source, capsys):
    main([str(source), "--inspect"])
    text = capsys.readouterr().out
    assert "form original" in text
    assert "text encoder: clip; width 768" in text
    assert "word *: 2 vectors of width 768" in text
    assert "token id 265" in text
    assert "step: 7" in text
    assert f"{WORD.norm(dim=1)[1]:.4g}" in text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["in.pt"], "give IN and OUT"),
        (["in.pt", "out.pt", "--inspect"], "give IN and OUT"),
        (["absent.pt", "out.pt"], "does not exist"),
        (["in.pt", "out.bin"], "OUT must end in"),
        (["in.pt", "in.pt"], "exists: give another OUT"),
        (["in.pt", "out.pt", "--to", "png"], r"must end in \.png"),
        (["in.pt", "o.safetensors", "--to", "sdxl"], "vectors for one text encoder"),
        (["in.pt", "o.safetensors", "--encoder", "ldm-bert"], "states that it is for clip"),
        (["in.pt", "o.safetensors", "--placeholder", "a b"], "cannot be the name of a word"),
        (["two.safetensors", "o.png", "--placeholder", "a"], "names one word"),
        (["two.safetensors", "o.png"], "give a folder as OUT"),
    ],
)
def test_mistakes_are_one_line_and_write_nothing(source, monkeypatch, arguments, message):
    monkeypatch.chdir(source.parent)
    write_words("two.safetensors", {"a": WORD, "b": WORD})
    before = {p: p.read_bytes() for p in source.parent.iterdir()}
    with pytest.raises(UserError, match=message) as caught:
        main(arguments)
    assert "\n" not in str(caught.value)
    assert {p: p.read_bytes() for p in source.parent.iterdir()} == before
