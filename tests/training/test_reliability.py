"""Nothing is lost and nothing is silently wrong: numbers, resuming, folders, signals."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image

import main
from ldm.training.callbacks import CUDACallback
from ldm.training.config import load
from ldm.training.folder import working_folder
from ldm.training.resume import read_checkpoint
from ldm.util import UserError
from ldm.words.files import read_words
from tests.training.conftest import Outcome

Learn = Callable[..., Outcome]
ROOT = Path(__file__).parents[2]
WORDS = "model.params.personalization_config.params"
PREVIEWS = "lightning.callbacks.image_logger.params"


def files(folder: Path) -> dict[str, bytes]:
    """Every file of a log folder with its content, but for the lock."""
    found = (p for p in sorted(folder.rglob("*")) if p.is_file() and p.name != ".lock")
    return {str(p.relative_to(folder)): p.read_bytes() for p in found}


# -- numbers --------------------------------------------------------------------------------------


@pytest.mark.parametrize("where", ["loss", "word"])
def test_a_run_stops_at_the_first_number_that_is_not_finite(
    learn: Learn, where: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The word of step 3, before the damage, is kept; the checkpoint is that of the last save."""

    def damage(self: object, trainer: object, module: object, batch: object, i: int) -> None:
        if i == 3:
            word = module.embedding_manager.string_to_param_dict["*"]  # type: ignore[attr-defined]
            if where == "word":
                word.register_hook(lambda grad: grad * float("nan"))
            else:
                scale = module.scale_factor * float("nan")  # type: ignore[attr-defined]
                module.scale_factor = scale  # type: ignore[attr-defined]

    whole = learn("whole", "--max_steps", "3")
    monkeypatch.setattr(CUDACallback, "on_train_batch_start", damage, raising=False)
    with pytest.raises(UserError, match=r"stopped at step 4: .* is not finite") as caught:
        learn("broken", "--max_steps", "6")
    assert "learning rate (0.01) is probably too high" in str(caught.value)
    assert "recision" not in str(caught.value)
    (folder,) = (tmp_path / "logs").glob("*_broken")
    word = read_words(folder / "checkpoints" / "embeddings.safetensors")
    assert torch.equal(word.words["*"], whole.word())
    assert word.metadata["step"] == "3"
    assert read_checkpoint(folder / "checkpoints" / "last.ckpt").step == 2


def test_half_precision_is_blamed_only_in_half_precision(
    learn: Learn, monkeypatch: pytest.MonkeyPatch
) -> None:
    def damage(self: object, trainer: object, module: object, batch: object, i: int) -> None:
        module.scale_factor = float("nan")  # type: ignore[attr-defined]

    monkeypatch.setattr(CUDACallback, "on_train_batch_start", damage, raising=False)
    with pytest.raises(UserError, match=r"Half precision \(bf16-mixed\) is the likely cause"):
        learn("half", "--precision", "bf16-mixed")


def test_a_word_far_outside_the_vocabulary_is_warned_of(
    learn: Learn, caplog: pytest.LogCaptureFixture
) -> None:
    learn("far", "model.base_learning_rate=50", "--no-test")
    assert caplog.text.count("times the vocabulary's mean norm (more than 10)") == 1
    assert "lower model.base_learning_rate" in caplog.text


def test_a_word_that_did_not_move_is_warned_of(
    learn: Learn, caplog: pytest.LogCaptureFixture
) -> None:
    learn("still", "model.base_learning_rate=1e-30", "--no-test")
    assert "nothing was learned: no word moved in 2 steps" in caplog.text
    caplog.clear()
    learn("moved", "--no-test")
    assert "nothing was learned" not in caplog.text


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (["model.base_learning_rate=0"], "base_learning_rate is 0: nothing would be learned"),
        (["model.base_learning_rate=-1"], "base_learning_rate: expected 0 to 1000, got -1"),
        (["model.base_learning_rate=1e38"], "expected 0 to 1000, got 1e[+]38"),
        (["model.params.model_lr=-1"], "model.params.model_lr: expected 0 to 1000, got -1"),
        (["data.params.train.params.size=7"], "train.params.size: expected a multiple of 2"),
        (["data.params.train.params.size=0"], "train.params.size: expected a multiple of 2"),
        (["lightning.callbacks.image_logger.params.ddim_steps=2000"], "expected 1 to 1000, got 2"),
        (["lightning.callbacks.image_logger.params.max_images=0"], "max_images.* at least 1"),
        (
            [f"{PREVIEWS}.log_images_kwargs.ddim_steps=2000"],
            "log_images_kwargs.ddim_steps: expected 1 to 1000, got 2000",
        ),
        (
            [f"{PREVIEWS}.log_images_kwargs.ddim_steps=many"],
            "log_images_kwargs.ddim_steps: expected int, got 'many'",
        ),
        ([f"{PREVIEWS}.log_images_kwargs.N=0"], "image_logger.params: log_images_kwargs.N must be"),
        (
            [f"{PREVIEWS}.log_images_kwargs.N=all"],
            "log_images_kwargs.N must be a number, got 'all'",
        ),
        (
            [f"{PREVIEWS}.guidance=-1"],
            "image_logger.params: guidance must be at least 0, got -1",
        ),
        ([f"{PREVIEWS}.ddim_eta=2"], r"image_logger.params: ddim_eta must lie in 0..1, got 2"),
        (
            ["model.params.timesteps=2000", f"{PREVIEWS}.ddim_steps=1500"],
            "image_logger.params.ddim_steps: expected 1 to 1000, got 1500",
        ),
        (
            ["model.params.scale_factor=.nan"],
            "params.scale_factor: expected a finite number, got n",
        ),
        (["model.params.linear_end=.inf"], "params.linear_end: expected a finite number, got inf"),
        (["model.params.scale_factor=0"], "scale_factor must be above 0, got 0"),
        (
            ["model.params.embedding_reg_weight=-1"],
            "embedding_reg_weight must be at least 0, got -1",
        ),
        (
            ["lightning.modelcheckpoint.params.every_n_train_steps=often"],
            "modelcheckpoint.params.every_n_train_steps: expected int, got 'often'",
        ),
        (["lightning.latent_cache.batch_size=all"], "cache.batch_size: expected int, got 'all'"),
        (["lightning.latent_cache.enabled=maybe"], "cache.enabled: expected bool, got 'maybe'"),
        (["lightning.trainer.gradient_clip_val=-1"], "clip_val: expected at least 0, got -1"),
        (["lightning.trainer.gradient_clip_val=low"], "clip_val: expected float, got 'low'"),
        (["-n", "a/../../b"], "--name 'a/../../b': no / may be in it; --logdir names a folder"),
        (["-n", "n" * 300], "the log folder's name .* is too long: give a shorter --name"),
        (
            ["model.params.unet_config.params.channel_mult=[]"],
            r"channel_mult must hold whole numbers of at least 1, got \[\]",
        ),
        (
            ["model.params.first_stage_config.params.ddconfig.ch_mult=3"],
            "ddconfig.ch_mult: expected Sequence, got 3",
        ),
    ],
)
def test_values_are_checked_before_the_model_is_read(
    arguments: list[str], change: list[str], message: str, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=message) as caught:
        main.main([*arguments, *change])
    assert "\n" not in str(caught.value)
    assert not list((tmp_path / "logs").glob("*"))


def test_a_run_that_takes_no_step_is_an_error(learn: Learn) -> None:
    with pytest.raises(UserError, match="no step was trained: check limit_train_batches"):
        learn("nothing", "lightning.trainer.limit_train_batches=0")


def test_a_word_file_with_another_name_is_told(learn: Learn) -> None:
    outcome = learn("first", "--no-test")
    words = str(outcome.folder / "checkpoints" / "embeddings.safetensors")
    with pytest.raises(UserError, match=r"--embedding_manager_ckpt holds \*: give --placeholder"):
        learn("second", "--embedding_manager_ckpt", words, "--placeholder_string", "@")


def test_empty_flags_say_what_is_used(
    arguments: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    load([*arguments, "--init_word", "", "--placeholder_string", ""])
    assert "--init_word is empty: the configuration's ['cat'] stay" in caplog.text
    assert "--placeholder_string is empty: the configuration's ['*'] stay" in caplog.text


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["polar", "bear"], r'--init_word polar bear: 2 words .* as --init_word "polar bear"'),
        (["star", "a=b"], "--init_word: 'a=b' is no word; an override names an entry in full"),
        (["star", "max_steps=3"], "'max_steps=3' is no word"),
        (["sta\udcffr"], "argument 'sta.udcffr' is not UTF-8 text"),
    ],
)
def test_what_is_no_initializer_word_is_told(
    arguments: list[str], given: list[str], message: str
) -> None:
    with pytest.raises(UserError, match=message) as caught:
        main.main([*arguments, "--init_word", *given])
    assert "\n" not in str(caught.value)


def test_the_log_says_where_a_word_starts_from(
    learn: Learn, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("INFO"):
        learn("two", "--init_word", "cat dog", "--no-test")
    assert (
        "word '*': 1 vector of width 16, from the initializer word 'cat dog', which is 2 tokens: "
        "each vector starts from their mean" in caplog.text
    )


def test_bad_images_can_be_skipped(
    learn: Learn, pictures: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "mine"
    shutil.copytree(pictures, folder)
    (folder / "broken.png").write_bytes(b"no image")
    with pytest.raises(UserError, match=r"broken.png' cannot be read .* --skip_bad"):
        learn("stops", "--data_root", str(folder))
    outcome = learn("skips", "--data_root", str(folder), "--skip_bad", "--no-test")
    assert "skipped 1 of 4 images that cannot be read" in caplog.text
    facts = read_words(outcome.folder / "checkpoints" / "embeddings.safetensors").metadata
    assert len(json.loads(facts["pictures"])) == 3


def test_a_caption_whose_end_is_cut_off_is_warned_of_with_its_file(
    learn: Learn, pictures: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "mine"
    shutil.copytree(pictures, folder)
    (folder / "0.txt").write_text("a photo of * " + "in the dark " * 4 + "painting")
    learn("long", "--data_root", str(folder), "--captions", "--no-test")
    assert f"caption {str(folder / '0.txt')!r} has 17 tokens" in caplog.text
    assert "dark painting'" in caplog.text
    (folder / "1.txt").write_text("in the dark " * 30)  # the word is put at the end
    with pytest.raises(UserError, match=r"caption .*1.txt' has .* tokens: placeholder .* cut off"):
        learn("lost", "--data_root", str(folder), "--captions")


# -- resuming -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ([f"{WORDS}.num_vectors_per_token=2"], r"word '\*' has shape \[1, 16\] in the checkpoint"),
        (["--placeholder_string", "@"], "the checkpoint has no word '@'"),
        (["model.params.unfreeze_model=true"], "the checkpoint has no model.diffusion_model"),
        (["--embedding_manager_ckpt", "words.pt"], "takes its words from the checkpoint"),
        (["--precision", "17"], "--precision 17: expected one of"),
    ],
)
def test_a_checkpoint_that_does_not_fit_is_one_line_and_nothing_changes(
    learn: Learn, change: list[str], message: str
) -> None:
    outcome = learn("fits", "--no-test")
    before = files(outcome.folder)
    resume = ["-t", "--no-test", "--resume", str(outcome.folder), "--max_steps", "3"]
    with pytest.raises(UserError, match=message) as caught:
        main.main([*resume, *change])
    assert "\n" not in str(caught.value)
    assert files(outcome.folder) == before
    assert main.main(resume) == 0
    assert read_checkpoint(outcome.folder / "checkpoints" / "last.ckpt").step == 3


def test_a_finished_run_says_so_and_changes_nothing(
    learn: Learn, caplog: pytest.LogCaptureFixture
) -> None:
    outcome = learn("finished", "--no-test")
    before = files(outcome.folder)
    with caplog.at_level("INFO"):
        assert main.main(["-t", "--no-test", "--resume", str(outcome.folder)]) == 0
    assert "finished at step 2 of 2" in caplog.text
    assert files(outcome.folder) == before


def test_changed_images_are_warned_of(
    learn: Learn, pictures: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "mine"
    folder.mkdir()
    for path in pictures.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    outcome = learn("images", "--data_root", str(folder), "--no-test")
    (folder / "0.png").unlink()
    Image.new("RGB", (9, 9)).save(folder / "9.png")
    assert main.main(["-t", "--no-test", "--resume", str(outcome.folder), "--max_steps", "3"]) == 0
    assert "1 of 3 are missing or changed, 1 are new" in caplog.text


def _truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def _empty(path: Path) -> None:
    path.write_bytes(b"")


def _flip(path: Path) -> None:
    """Flip bits of a tensor's data, which torch does not notice."""
    content = torch.load(path, weights_only=True)
    word = content["state_dict"]["embedding_manager.string_to_param_dict.*"]
    data = bytearray(path.read_bytes())
    place = data.index(word.numpy().tobytes())
    data[place + 3] ^= 0x40
    path.write_bytes(data)


def _remove(path: Path) -> None:
    path.unlink()


@pytest.mark.parametrize("damage", [_truncate, _empty, _flip, _remove])
def test_a_damaged_checkpoint_falls_back_to_the_one_before(
    learn: Learn, damage: Callable[[Path], None], caplog: pytest.LogCaptureFixture
) -> None:
    whole = learn("whole", "--max_steps", "5", "--no-test")
    outcome = learn("damaged", "--max_steps", "5", "--no-test")
    damage(outcome.folder / "checkpoints" / "last.ckpt")  # of step 5; before it is that of step 4
    assert main.main(["-t", "--no-test", "--resume", str(outcome.folder)]) == 0
    assert "is damaged" in caplog.text
    assert "resuming from previous.ckpt, saved at step 4" in caplog.text
    assert torch.equal(outcome.word(), whole.word())


def test_a_whole_checkpoint_stays_until_there_is_a_new_one(
    learn: Learn, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A resumed run must not put the damaged checkpoint in place of the whole one before it."""
    outcome = learn("twice", "--max_steps", "5", "--no-test")
    checkpoints = outcome.folder / "checkpoints"
    _flip(checkpoints / "last.ckpt")

    def fail(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    resume = ["-t", "--no-test", "--resume", str(outcome.folder)]
    with monkeypatch.context() as patch:
        patch.setattr("pytorch_lightning.Trainer.save_checkpoint", fail)
        with pytest.raises(UserError, match="No space left on device"):
            main.main(resume)
    assert read_checkpoint(checkpoints / "last.ckpt").step == 4
    assert main.main(resume) == 0
    assert read_checkpoint(checkpoints / "last.ckpt").step == 5
    assert read_checkpoint(checkpoints / "previous.ckpt").step == 4


def test_two_damaged_checkpoints_are_one_line(learn: Learn) -> None:
    outcome = learn("both", "--no-test")
    checkpoints = outcome.folder / "checkpoints"
    _flip(checkpoints / "last.ckpt")
    (checkpoints / "previous.ckpt").write_bytes(b"")
    with pytest.raises(UserError, match=r"last.ckpt is damaged .* no earlier checkpoint can be"):
        main.main(["-t", "--resume", str(outcome.folder)])


def test_a_run_learns_and_resumes_from_any_folder(tmp_path: Path) -> None:
    """The miniature's tokenizer, images and weights lie in the project; a folder names weights."""
    command = [sys.executable, str(ROOT / "main.py"), "-t", "--no-test", "--threads", "1"]
    start = [
        *("--base", "configs/miniature/finetune.yaml", "--actual_resume", "models/miniature"),
        *(
            "--data_root",
            "examples/concepts/teal-star",
            "--max_steps",
            "1",
            "-n",
            "x",
            "-l",
            "mine",
        ),
    ]
    done = subprocess.run([*command, *start], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (folder,) = (tmp_path / "mine").iterdir()
    facts = read_words(folder / "checkpoints" / "embeddings.safetensors").metadata
    assert '"tokenizer": "models/miniature/tokenizer"' in facts["config"]
    assert str(ROOT) not in facts["config"]
    more = ["--resume", str(folder), "--max_steps", "2"]
    done = subprocess.run([*command, *more], cwd="/", capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert read_checkpoint(folder / "checkpoints" / "last.ckpt").step == 2


# -- folders and signals --------------------------------------------------------------------------


def test_a_folder_has_one_owner(tmp_path: Path) -> None:
    code = (
        "import sys, pathlib\n"
        "from ldm.training.folder import working_folder\n"
        "with working_folder(pathlib.Path(sys.argv[1]), False):\n"
        "    print('held', flush=True); sys.stdin.read()\n"
    )
    holder = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT,
    )  # fmt: skip
    assert holder.stdout is not None
    assert holder.stdout.readline() == "held\n"
    with (
        pytest.raises(UserError, match=f"in use by process {holder.pid} on "),
        working_folder(tmp_path, exclusive=False),
    ):
        pass
    holder.kill()
    holder.wait()
    with working_folder(tmp_path, exclusive=False) as folder:  # a killed process leaves no lock
        assert folder == tmp_path


def test_half_files_of_a_killed_run_are_removed(tmp_path: Path) -> None:
    left = [tmp_path / name / ".part-1a.csv" for name in ("checkpoints", "logger", "images/train")]
    for path in left:
        path.parent.mkdir(parents=True)
        path.touch()
    with working_folder(tmp_path, exclusive=False):
        assert not any(path.exists() for path in left)


def test_a_failed_run_leaves_no_empty_folder(learn: Learn, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="xylophone"):
        learn("none", "--init_word", "xylophone")
    assert not list((tmp_path / "logs").iterdir())


@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGHUP])
def test_signals_of_schedulers_and_terminals_save(
    learn: Learn, number: signal.Signals, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(self: object, trainer: object, module: object, batch: object, i: int) -> None:
        if i == 2:
            os.kill(os.getpid(), number)

    with monkeypatch.context() as patch:
        patch.setattr(CUDACallback, "on_train_batch_start", interrupt, raising=False)
        outcome = learn("asked", "--max_steps", "9", "--no-test")
    assert outcome.status == 128 + number
    assert read_checkpoint(outcome.folder / "checkpoints" / "last.ckpt").step == 3


@pytest.mark.parametrize("moment", ["start", "twice"])
def test_an_interrupt_says_so_and_exits_with_130(arguments: list[str], moment: str) -> None:
    command = [sys.executable, str(ROOT / "main.py"), *arguments, "--max_steps", "100000"]
    process = subprocess.Popen(
        command,
        cwd=ROOT,
        stderr=subprocess.PIPE,
        text=True,
        # A shell's background jobs ignore the signal, and their children with them.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    assert process.stderr is not None
    text = ""
    wanted = "effective learning rate" if moment == "start" else "step 1"
    while wanted not in text and process.poll() is None:
        text += process.stderr.readline()
    process.send_signal(signal.SIGINT)
    if moment == "twice":
        time.sleep(0.002)
        process.send_signal(signal.SIGINT)
    _, rest = process.communicate(timeout=60)
    assert "Traceback" not in rest
    assert process.returncode == 130
    if moment == "start":
        assert rest.endswith("interrupted\n")


@pytest.mark.parametrize(
    "table", [b"garbage\0\xff", b"loss\n0.5\n", b"step,loss\n1,2,3\n", b"step\nfirst\n"]
)
def test_a_damaged_table_of_metrics_is_one_line_and_stays(learn: Learn, table: bytes) -> None:
    outcome = learn("table", "--no-test")
    path = outcome.folder / "logger" / "metrics.csv"
    path.write_bytes(table)
    resume = ["-t", "--no-test", "--resume", str(outcome.folder), "--max_steps", "3"]
    with pytest.raises(UserError, match=r"metrics.csv is damaged \(.*\): move it away to resume"):
        main.main(resume)
    assert path.read_bytes() == table
    path.unlink()
    assert main.main(resume) == 0


@pytest.mark.parametrize("kind", ["project", "lightning"])
def test_a_run_whose_stored_configuration_is_lost(learn: Learn, kind: str) -> None:
    outcome = learn("stored", "--no-test")
    (stored,) = (outcome.folder / "configs").glob(f"*-{kind}.yaml")
    resume = ["-t", "--no-test", "--resume", str(outcome.folder), "--max_steps", "3"]
    stored.write_text("")
    with pytest.raises(UserError, match=rf"{kind}.yaml is empty"):
        main.main(resume)
    stored.unlink()
    with pytest.raises(UserError, match=rf"configs has no \*-{kind}.yaml, .* --base YAML"):
        main.main(resume)


def test_another_seed_on_resume_is_warned_of(
    learn: Learn, caplog: pytest.LogCaptureFixture
) -> None:
    outcome = learn("seed", "--no-test")
    resume = ["-t", "--no-test", "--resume", str(outcome.folder), "--max_steps", "3"]
    assert main.main([*resume, "--seed", "7"]) == 0
    assert "--seed 7: the run began with seed 23" in caplog.text


def test_a_checkpoint_that_lacks_its_step_is_damaged(learn: Learn) -> None:
    outcome = learn("step", "--no-test")
    last = outcome.folder / "checkpoints" / "last.ckpt"
    content = torch.load(last, weights_only=True)
    del content["global_step"]
    torch.save(content, last)
    (last.with_name("previous.ckpt")).unlink(missing_ok=True)
    with pytest.raises(UserError, match=r"last.ckpt is damaged \(it lacks its step or its state\)"):
        read_checkpoint(last)


def test_a_damaged_file_of_another_name_may_be_no_checkpoint(learn: Learn, tmp_path: Path) -> None:
    outcome = learn("named", "--no-test")
    path = outcome.folder / "checkpoints" / "mine.ckpt"
    path.write_bytes(b"no checkpoint")
    with pytest.raises(UserError, match=r"mine.ckpt is damaged .*, or not a checkpoint of a run"):
        main.main(["-t", "--resume", str(path)])


def test_renamed_images_are_warned_of(
    learn: Learn, pictures: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "mine"
    shutil.copytree(pictures, folder)
    outcome = learn("renamed", "--data_root", str(folder), "--no-test")
    (folder / "0.png").rename(folder / "9.png")
    assert main.main(["-t", "--no-test", "--resume", str(outcome.folder), "--max_steps", "3"]) == 0
    assert "renamed: the resumed run meets them in another order" in caplog.text


def test_a_resumed_run_without_its_word_file_still_resumes(
    learn: Learn, caplog: pytest.LogCaptureFixture
) -> None:
    """The word file holds the images' hashes; without it nothing can be said about them."""
    outcome = learn("bare", "--no-test")
    (outcome.folder / "checkpoints" / "embeddings.safetensors").unlink()
    assert main.main(["-t", "--no-test", "--resume", str(outcome.folder), "--max_steps", "3"]) == 0
    assert "images" not in " ".join(r.message for r in caplog.records if r.levelname == "WARNING")


def test_a_trained_network_in_the_checkpoint_and_a_frozen_one_in_the_configuration(
    learn: Learn,
) -> None:
    outcome = learn("tuned", "model.params.unfreeze_model=true", "--no-test")
    resume = ["-t", "--no-test", "--resume", str(outcome.folder), "--max_steps", "3"]
    with pytest.raises(UserError, match=r"holds a trained model.diffusion_model.* does not train"):
        main.main([*resume, "model.params.unfreeze_model=false"])


def test_a_checkpoint_on_a_file_system_without_links_keeps_the_one_before(
    learn: Learn, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(os, "link", refuse)
    outcome = learn("plain", "--max_steps", "5", "--no-test")
    checkpoints = outcome.folder / "checkpoints"
    assert read_checkpoint(checkpoints / "last.ckpt").step == 5
    assert read_checkpoint(checkpoints / "previous.ckpt").step == 4


def test_a_network_that_is_tuned_without_words_is_watched_too(
    arguments: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def damage(self: object, trainer: object, module: object, batch: object, i: int) -> None:
        module.scale_factor = float("nan")  # type: ignore[attr-defined]

    monkeypatch.setattr(CUDACallback, "on_train_batch_start", damage, raising=False)
    place = arguments.index("--init_word")
    bare = [*arguments[:place], *arguments[place + 2 :], "model.params.personalization_config=null"]
    with pytest.raises(UserError, match=r"the loss is not finite.* are those of the last save"):
        main.main([*bare, "model.params.unfreeze_model=true"])


def test_a_network_that_is_not_finite_is_not_saved(
    learn: Learn, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Neither the loss nor the word of the step shows it."""

    def damage(self: object, trainer: object, module: object, batch: object, i: int) -> None:
        if i == 3:
            weight = next(module.model.parameters())  # type: ignore[attr-defined]
            weight.register_hook(lambda grad: grad * float("nan"))

    monkeypatch.setattr(CUDACallback, "on_train_batch_start", damage, raising=False)
    message = (
        r"stopped at step 4: model\.diffusion_model\.\S+ is not finite. .* are of the last save"
    )
    with pytest.raises(UserError, match=message):
        learn("tuned", "model.params.unfreeze_model=true", "--max_steps", "4")
    (folder,) = (tmp_path / "logs").glob("*_tuned")
    saved = read_checkpoint(folder / "checkpoints" / "last.ckpt")
    assert saved.step == 2
    assert all(torch.isfinite(value).all() for value in saved.state.values())
