"""scripts/txt2img.py and scripts/stable_txt2img.py, most of them without a new process."""

from __future__ import annotations

import io
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ldm.cli.common import check_output_folder, find_model
from ldm.cli.txt2img import LATENT_DIFFUSION, STABLE_DIFFUSION, main, parse
from ldm.image_io import read_settings
from ldm.modules.encoders.modules import TextEncoder
from ldm.sampling import Sampling
from ldm.util import UserError

ROOT = Path(__file__).parents[2]


def command(script, *arguments, cwd):
    return subprocess.run(
        [sys.executable, str(ROOT / "scripts" / script), *map(str, arguments)],
        capture_output=True, text=True, timeout=300, check=False, cwd=cwd,
        env={"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PATH": ""},
    )  # fmt: skip


def run(tiny, out, *arguments, defaults=LATENT_DIFFUSION, steps=2):
    fixed = ["--ckpt_path", tiny.checkpoint, "--outdir", out, "--ddim_steps", steps]
    return main(defaults, [str(a) for a in (*fixed, "--device", "cpu", *arguments)])


def pngs(folder):
    return sorted(str(p.relative_to(folder)) for p in Path(folder).rglob("*") if p.is_file())


def test_the_command_line_generates_with_a_word(tiny, tmp_path):
    result = command(
        "txt2img.py", "--ckpt_path", tiny.folder, "--prompt", "a photo of * on the beach",
        "--embedding_path", tiny.word, "--ddim_steps", 2, "--n_samples", 2, "--n_iter", 2,
        "--outdir", "out", "--device", "cpu", cwd=tmp_path,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    name = "a-photo-of-on-the-beach"
    assert pngs(tmp_path / "out") == [
        f"{name}.png",
        *(f"samples/{name}_{seed}.png" for seed in (42, 43, 44, 45)),
    ]
    single = tmp_path / "out" / "samples" / f"{name}_43.png"
    with Image.open(single) as image:
        assert image.size == (16, 16)
    settings = read_settings(single)
    assert settings["prompt"] == "a photo of * on the beach"
    assert settings["seed"] == 43
    assert settings["steps"] == 2
    assert settings["embeddings"] == [str(tiny.word)]
    assert len(settings["checkpoint_hash"]) == 16


def test_prompts_come_through_a_pipe(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.StringIO("a red cat\n\na blue dog\n"))
    fixed = ["--ckpt", tiny.ckpt, "--config", tiny.config, "--outdir", tmp_path, "--device", "cpu"]
    few = ["--from-file", "-", "--ddim_steps", 1, "--n_samples", 1, "--n_iter", 1]
    main(STABLE_DIFFUSION, [str(a) for a in (*fixed, *few)])
    assert pngs(tmp_path) == [
        "a-blue-dog.png", "a-red-cat.png", "samples/a-blue-dog_43.png", "samples/a-red-cat_42.png",
    ]  # fmt: skip
    assert read_settings(tmp_path / "a-red-cat.png")["precision"] == "autocast"


@pytest.mark.parametrize("script", ["txt2img.py", "stable_txt2img.py"])
def test_an_error_is_one_line_and_a_status(tmp_path, script):
    result = command(script, "--prompt", "a cat", "--ckpt_path", "absent.ckpt", cwd=tmp_path)
    assert result.returncode == 2
    assert result.stdout == ""
    assert result.stderr.count("\n") == 1
    assert result.stderr.startswith("error: checkpoint absent.ckpt does not exist: get the")
    assert not (tmp_path / "outputs").exists()


def test_nothing_is_overwritten_and_seeds_repeat(tiny, tmp_path):
    for _ in range(2):
        run(tiny, tmp_path, "--prompt", "a cat/../dog", "--n_samples", 1)
    assert pngs(tmp_path) == [
        "a-cat-dog-1.png", "a-cat-dog.png",
        "samples/a-cat-dog_42-1.png", "samples/a-cat-dog_42.png",
    ]  # fmt: skip
    first, again = (np.asarray(Image.open(tmp_path / n)) for n in pngs(tmp_path)[2:])
    assert (first == again).all()


def test_files_of_prompts_and_fixed_seeds(tiny, tmp_path):
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("\ufeffa cat\r\n # a note\n  \n a dog \n", encoding="utf-8")
    out = tmp_path / "out"
    run(tiny, out, "--from-file", prompts, "--n_samples", 1, "--fixed_code", "--skip_grid")
    assert pngs(out) == ["samples/a-cat_42.png", "samples/a-dog_42.png"]


def test_sizes_grids_and_plms(tiny, tmp_path):
    run(
        tiny, tmp_path, "--prompt", "a cat", "--H", 24, "--W", 32, "--plms", "--n_samples", 3,
        "--n_rows", 2, "--skip_save", "--C", 4, "--f", 2, "--seed", 7,
    )  # fmt: skip
    assert pngs(tmp_path) == ["a-cat.png"]
    with Image.open(tmp_path / "a-cat.png") as image:
        assert image.size == (2 * 34 + 2, 2 * 26 + 2)
    settings = read_settings(tmp_path / "a-cat.png")
    assert (settings["sampler"], settings["images"], settings["seed"]) == ("plms", 3, 7)


def test_two_words_of_one_name_compose_under_two(tiny, tmp_path):
    files = ["--embedding_path", tiny.word, f"@={tiny.other_word}"]
    run(tiny, tmp_path, *files, "--prompt", "a * on @", "--n_samples", 1, "--skip_grid")
    with pytest.raises(UserError, match="loaded already"):
        run(tiny, tmp_path, "--embedding_path", tiny.word, "--embedding_path", tiny.other_word,
             "--prompt", "a *")  # fmt: skip


def test_the_prompt_is_repeatable(tiny, tmp_path):
    two = ["--prompt", "a cat", "--prompt", "a dog", "--n_samples", 1, "--skip_grid"]
    run(tiny, tmp_path, *two, "--sampler", "dpmpp_2m", "--karras")
    assert pngs(tmp_path) == ["samples/a-cat_42.png", "samples/a-dog_43.png"]
    settings = read_settings(tmp_path / "samples/a-dog_43.png")
    assert Sampling.from_metadata(settings) == Sampling(
        "dpmpp_2m", steps=2, height=16, width=16, seed=43, karras=True
    )


def test_a_word_that_no_prompt_names_is_told(tiny, tmp_path, caplog):
    run(tiny, tmp_path, "--prompt", "a cat", "--embedding_path", tiny.word, "--n_samples", 1)
    assert "no prompt names the loaded word *: no effect" in caplog.text


def test_the_end_of_a_prompt_that_is_cut_off_is_told_once(tiny, tmp_path, caplog):
    run(tiny, tmp_path, "--prompt", "a cat " * 6 + "on the night of the moon", "--n_samples", 1)
    (record,) = [r for r in caplog.records if r.levelname == "WARNING"]
    assert "has 18 tokens" in record.message
    assert record.message.endswith("of the moon'")


def test_prompts_that_are_not_utf8_are_one_line(tiny, tmp_path):
    for given, text in (("-", b"a \xff cat\n"), (str(tmp_path / "p.txt"), b"a cat\n\xff\xfe\n")):
        (tmp_path / "p.txt").write_bytes(text)
        command = [sys.executable, str(ROOT / "scripts/txt2img.py"), "--from-file", given]
        for locale in ({"LC_ALL": "C"}, {"PYTHONUTF8": "1"}, {}):
            done = subprocess.run(
                [*command, "--ckpt_path", tiny.checkpoint],
                input=text, capture_output=True, env={**os.environ, **locale}, cwd=tmp_path,
            )  # fmt: skip
            assert done.returncode == 2, done.stderr
            assert done.stderr.count(b"\n") == 1
            assert b"not UTF-8 text" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "give either --prompt TEXT or --from-file FILE"),
        (["--prompt", "a", "--from-file", "b"], "give either"),
        (["--from-file", "absent.txt"], "absent.txt: No such file"),
        (["--prompt", "a", "--promt", "b"], "unrecognized arguments: --promt b"),
        (["--prompt", "a", "--ddim_steps", "x"], "invalid int value: 'x'"),
        (["--prompt", "a", "--ddim_steps", "0"], r"--ddim_steps must lie in 1\.\.1000, got 0"),
        (["--prompt", "a", "--H", "20"], "--H must be a multiple of 8, got 20"),
        (["--prompt", "a", "--n_samples", "0"], "--n_samples must be at least 1"),
        (["--prompt", "a", "--n_rows", "-1"], "--n_rows must be at least 0"),
        (["--prompt", "a", "--scale", "nan"], "--scale must be"),
        (["--prompt", "a", "--ddim_eta", "2"], "--ddim_eta must lie"),
        (["--prompt", "a", "--ddim_eta", "1", "--plms"], "--ddim_eta must be 0 with plms"),
        (["--prompt", "a", "--seed", "-1"], "--seed must lie"),
        (["--prompt", "a", "--skip_grid", "--skip_save"], "leave nothing to write"),
        (["--prompt", "a", "--config", "absent.yaml"], "absent.yaml does not exist"),
        (["--prompt", "a", "--embedding_path", "absent.pt"], "absent.pt' does not exist"),
        (["--prompt", "a", "--C", "16"], "--C 16 does not fit the model, which has 4"),
        (["--prompt", "a", "--f", "8"], "--f 8 does not fit the model, which has 2"),
        (["--prompt", "a *"], "names '\\*', but no word is loaded"),
        (["--prompt", "a *" + "!" * 21000], r"prompt 'a \*!+'… \(21003 characters\) names"),
        (["--embedding_path", "\udcff.pt"], "is not UTF-8 text"),
        (["--prompt", "a \udcff"], "is not UTF-8 text"),
        (["--prompt", "a", "--negative_prompt", "\udcff"], "is not UTF-8 text"),
        (["--prompt", "a", "--karras"], "--karras needs one of dpmpp_2m, euler, euler_a, got ddim"),
        (["--prompt", "a", "--device", "tpu"], "device 'tpu' is unknown"),
    ],
)
def test_mistakes_are_one_line_and_leave_no_files(tiny, tmp_path, arguments, message, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=message) as caught:
        main(LATENT_DIFFUSION, ["--ckpt_path", str(tiny.checkpoint), *arguments])
    assert "\n" not in str(caught.value)
    assert pngs(tmp_path) == []


def test_a_gpu_that_is_not_there_is_an_error(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(UserError, match="no usable CUDA GPU"):
        run(tiny, tmp_path, "--prompt", "a", "--device", "cuda")


def test_a_prompt_that_is_too_long_for_its_word_is_an_error(tiny, tmp_path):
    prompt = "a photo of " + "the red cat on " * 5 + "*"
    with pytest.raises(UserError, match="cut off"):
        run(tiny, tmp_path, "--prompt", prompt, "--embedding_path", tiny.word)


def test_a_placeholder_that_tokenises_to_something_else_is_an_error(tiny, tmp_path, monkeypatch):
    # BERT parts punctuation; CLIP has such prompts: "*," is one token there.
    whole = TextEncoder.word_ids
    monkeypatch.setattr(
        TextEncoder, "word_ids", lambda self, text: [1] if "*," in text else whole(self, text)
    )
    with pytest.raises(UserError, match="after tokenizing"):
        run(tiny, tmp_path, "--prompt", "a *, on", "--embedding_path", tiny.word)


def test_prompt_files_that_are_empty_or_binary_are_refused(tiny, tmp_path):
    (tmp_path / "empty.txt").write_text("\n \n")
    with pytest.raises(UserError, match="no prompts in it"):
        run(tiny, tmp_path, "--from-file", tmp_path / "empty.txt")
    (tmp_path / "binary.txt").write_bytes(b"\xff\xfe\x00\xd8")
    with pytest.raises(UserError, match="not UTF-8 text"):
        run(tiny, tmp_path, "--from-file", tmp_path / "binary.txt")


def test_output_folders_are_checked_before_the_model_is_read(tmp_path):
    (tmp_path / "file").touch()
    arguments = ["--prompt", "a", "--outdir", str(tmp_path / "file" / "out")]
    with pytest.raises(UserError, match="is a file"):
        main(LATENT_DIFFUSION, arguments)
    assert check_output_folder(tmp_path / "new" / "deeper") == tmp_path / "new" / "deeper"
    assert not (tmp_path / "new").exists()


def test_model_files_are_found(tiny, tmp_path, monkeypatch):
    assert find_model(str(tiny.folder), None) == (tiny.config, tiny.checkpoint)
    assert find_model(str(tiny.ckpt), None) == (tiny.config, tiny.ckpt)
    monkeypatch.chdir(tmp_path)
    shutil.copytree(tiny.folder, tmp_path / "models" / "little")
    found = Path("models/little/config.yaml"), Path("models/little/model.safetensors")
    assert find_model("little", None) == found
    Path("models/little/config.yaml").rename("models/little/model.yaml")
    assert find_model("models/little/model.ckpt", None)[0] == Path("models/little/model.yaml")
    Path("models/little/model.yaml").rename("own.yaml")
    assert find_model("little", None) == (None, found[1])
    assert find_model("little", "own.yaml") == (Path("own.yaml"), found[1])
    with pytest.raises(UserError, match=r"configuration absent\.yaml does not exist"):
        find_model("little", "absent.yaml")
    (tmp_path / "configs").mkdir()
    with pytest.raises(UserError, match=r"configs has no weights: expected a folder of diffusers"):
        find_model("configs", None)


def test_the_two_commands_have_the_originals_defaults():
    ours = parse(LATENT_DIFFUSION, [])
    assert (ours.ddim_steps, ours.scale, ours.n_samples, ours.n_iter) == (200, 5.0, 4, 1)
    assert (ours.sampler, ours.ddim_eta, ours.H, ours.W) == ("ddim", 0.0, None, None)
    stable = parse(STABLE_DIFFUSION, [])
    assert (stable.ddim_steps, stable.scale, stable.n_samples, stable.n_iter) == (50, 7.5, 3, 2)
    assert (stable.seed, stable.precision, stable.n_rows) == (42, "autocast", 0)


def test_a_tuned_model_generates_from_its_weight_delta(tiny, tmp_path):
    from ldm.checkpoint.loading import load_model
    from ldm.checkpoint.weight_delta import save_weight_delta

    tuned = load_model(tiny.config, tiny.checkpoint).requires_grad_(True)
    with torch.no_grad():
        for weight in tuned.model.parameters():
            weight *= 1.5
    path = tmp_path / "difference.safetensors"
    save_weight_delta(tuned, path, tiny.checkpoint)
    one = ("--prompt", "a red cat", "--n_samples", 1, "--skip_grid")
    run(tiny, tmp_path / "base", *one)
    run(tiny, tmp_path / "tuned", *one, "--difference", path)
    files = [tmp_path / name / "samples" / "a-red-cat_42.png" for name in ("base", "tuned")]
    before, after = (np.asarray(Image.open(file), dtype=int) for file in files)
    assert np.abs(before - after).max() > 10
    assert read_settings(files[1])["weight_delta"] == str(path)
    # The same weights in another file are another base: the hash decides.
    with pytest.raises(UserError, match=r"a weight delta of the base model model\.safetensors"):
        run(tiny, tmp_path / "no", *one, "--ckpt", tiny.ckpt, "--difference", path)
    assert not (tmp_path / "no").exists()
