"""Learning a word by the real command line: what moves, what repeats, what is left behind."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf
from safetensors import safe_open

import main
from ldm.checkpoint.loading import checkpoint_hash, read_state_dict
from ldm.training import run as run_module
from ldm.training.callbacks import CUDACallback
from ldm.util import UserError
from ldm.words.files import read_words
from tests.training.conftest import Outcome

Learn = Callable[..., Outcome]
ROOT = Path(__file__).parents[2]


def test_only_the_word_moves(learn: Learn, base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = []

    def set_up(*args: object) -> object:
        made.append(original(*args))  # type: ignore[arg-type]
        return made[-1]

    original = run_module.set_up
    monkeypatch.setattr(run_module, "set_up", set_up)
    outcome = learn("two", "--max_steps", "2")

    model = made[0].model
    before, after = read_state_dict(base), model.state_dict()
    moved = [n for n in after if n not in before or not torch.equal(before[n], after[n])]
    words = "embedding_manager.string_to_param_dict.*"
    assert set(moved) == {words, "embedding_manager.optimizer_step"}
    assert model.trainable_parameters()[0] is model.embedding_manager.string_to_param_dict["*"]
    assert len(model.trainable_parameters()) == 1
    dog = model.cond_stage_model.vocab_table[model.cond_stage_model.word_ids("dog")]
    assert not torch.equal(outcome.word(), dog)
    torch.testing.assert_close(outcome.word(), dog, atol=0.05, rtol=0)  # two steps of 0.01
    assert not any(p.grad is not None for p in model.model.parameters())
    frozen = (model.model, model.first_stage_model, model.cond_stage_model)
    assert not any(part.training for part in frozen)


def test_log_folder(learn: Learn, base: Path) -> None:
    previews = "lightning.callbacks.image_logger.params.batch_frequency=2"
    outcome = learn("all", "--max_steps", "3", previews)
    assert outcome.status == 0
    assert outcome.folder.name.startswith("mugs20")
    names = {str(p.relative_to(outcome.folder)) for p in outcome.folder.rglob("*") if p.is_file()}
    for step in ("", "_gs-2", "_gs-3"):
        assert {
            f"checkpoints/embeddings{step}.pt",
            f"checkpoints/embeddings{step}.safetensors",
        } <= names
    assert "checkpoints/words/word-asterisk.safetensors" in names
    torch.testing.assert_close(outcome.word("words/word-asterisk.safetensors"), outcome.word())
    keys = ("inputs", "reconstruction", "conditioning", "samples", "samples_scaled")
    for split, batch in (("train", 1), ("val", 0)):
        for key in keys:
            assert f"images/{split}/{key}_gs-000002_e-000000_b-{batch:06}.jpg" in names
    assert sum(n.endswith(("-project.yaml", "-lightning.yaml")) for n in names) == 2
    assert any(n.startswith("logger/events.out.tfevents") for n in names)

    rows = outcome.table()
    assert [row["step"] for row in rows] == ["1", "2", "3"]
    for name in ("train/loss", "train/steps_per_second", "word/norm/*", "word/vocabulary/mean"):
        assert all(float(row[name]) > 0 for row in rows)
    assert rows[1]["val/loss_simple_ema"]
    assert rows[2]["test/loss_simple"]

    with safe_open(outcome.folder / "checkpoints/embeddings_gs-2.safetensors", "pt") as file:
        facts = file.metadata()
    assert facts["step"] == "2"
    assert facts["seed"] == "23"
    assert facts["first_words"] == '{"*": "dog"}'
    assert facts["base_checkpoint_hash"] == checkpoint_hash(base)
    assert facts["learning_rate"] == "0.01"
    config = json.loads(facts["config"])
    assert config["model"]["params"]["personalization_config"]["params"]["seed"] == 23
    assert config["data"]["params"]["train"]["params"]["size"] == 8
    assert facts["config_hash"] == hashlib.sha256(facts["config"].encode()).hexdigest()[:16]


def test_a_checkpoint_holds_what_is_trained_and_no_more(learn: Learn) -> None:
    outcome = learn("small")
    path = outcome.folder / "checkpoints" / "last.ckpt"
    content = torch.load(path, weights_only=True)
    assert all(name.startswith("embedding_manager.") for name in content["state_dict"])
    assert content["global_step"] == 2
    assert content["optimizer_states"][0]["state"]
    assert path.stat().st_size < 20_000


def test_nothing_but_seed_and_step_matters(learn: Learn) -> None:
    plain = learn("plain", "--max_steps", "4")
    often = "lightning.callbacks.image_logger.params.batch_frequency=1"
    logged = learn("logged", "--max_steps", "4", often, "--val_check_interval", "1", "--no-test")
    assert torch.equal(plain.word(), logged.word())
    # Encoding at every step differs from the cache by rounding only.
    encode = ("lightning.latent_cache.enabled=false", "--limit_val_batches", "0", "--no-test")
    other = learn("other", "--max_steps", "4", "--num_workers", "2", *encode)
    torch.testing.assert_close(plain.word(), other.word(), atol=1e-5, rtol=1e-4)
    alone = learn("alone", "--max_steps", "4", *encode)
    assert torch.equal(other.word(), alone.word())
    seeded = learn("seeded", "--max_steps", "4", "--seed", "24", "--no-test")
    assert not torch.allclose(plain.word(), seeded.word(), atol=1e-4)


def test_accumulation_is_a_larger_batch(learn: Learn) -> None:
    whole = learn("whole", "data.params.batch_size=4", "--max_steps", "3")
    parts = learn("parts", "--accumulate_grad_batches", "2", "--max_steps", "3")
    wanted = learn("wanted", "lightning.images_per_step=4", "--max_steps", "3")
    torch.testing.assert_close(whole.word(), parts.word(), atol=1e-5, rtol=1e-4)
    assert torch.equal(parts.word(), wanted.word())


@pytest.mark.parametrize(("accumulate", "number"), [(1, signal.SIGTERM), (2, signal.SIGINT)])
def test_an_interrupted_run_resumes_exactly(
    learn: Learn, accumulate: int, number: signal.Signals, monkeypatch: pytest.MonkeyPatch
) -> None:
    micro = ("--accumulate_grad_batches", str(accumulate))
    whole = learn("whole", "--max_steps", "5", *micro)

    def interrupt(self: object, trainer: object, module: object, batch: object, i: int) -> None:
        if i == 3 * accumulate:
            os.kill(os.getpid(), number)

    with monkeypatch.context() as patch:
        patch.setattr(CUDACallback, "on_train_batch_start", interrupt, raising=False)
        first = learn("part", "--max_steps", "5", *micro)
    assert first.status == 128 + number
    assert torch.load(first.folder / "checkpoints/last.ckpt")["global_step"] == 4
    assert not torch.equal(first.word(), whole.word())

    assert main.main(["-t", "--resume", str(first.folder)]) == 0
    resumed = Outcome(0, first.folder)
    assert torch.equal(resumed.word(), whole.word())
    assert [row["step"] for row in resumed.table()] == ["1", "2", "3", "4", "5"]
    for name in ("train/loss", "word/norm/*"):
        assert [r[name] for r in resumed.table()] == [r[name] for r in whole.table()]
    # Further than first planned, and from a checkpoint rather than a folder.
    checkpoint = first.folder / "checkpoints" / "last.ckpt"
    assert main.main(["-t", "--resume", str(checkpoint), "--max_steps", "6"]) == 0
    assert torch.equal(resumed.word(), learn("six", "--max_steps", "6", *micro).word())


@pytest.mark.parametrize("name", ["<my.cat>", "train"])
def test_a_word_with_a_name_that_pytorch_reserves_resumes(learn: Learn, name: str) -> None:
    named = ("--placeholder_string", name, "--no-test")
    whole = learn("whole", "--max_steps", "4", *named)
    part = learn("part", "--max_steps", "2", *named)
    assert main.main(["-t", "--resume", str(part.folder), "--max_steps", "4", "--no-test"]) == 0
    for suffix in (".pt", ".safetensors"):
        found, wanted = (
            read_words(outcome.folder / f"checkpoints/embeddings{suffix}").words
            for outcome in (part, whole)
        )
        assert list(found) == [name]
        assert torch.equal(found[name], wanted[name])
    assert f"word/norm/{name}" in part.table()[0]
    checkpoint = str(part.folder / "checkpoints/last.ckpt")
    vectors = "model.params.personalization_config.params.num_vectors_per_token=3"
    with pytest.raises(UserError, match=f"word '{name}' has shape"):
        main.main(["-t", "--resume", checkpoint, "--max_steps", "5", vectors])


def test_without_training_a_run_is_only_tested(
    learn: Learn, caplog: pytest.LogCaptureFixture
) -> None:
    outcome = learn("done")
    before = (outcome.folder / "checkpoints" / "last.ckpt").read_bytes()
    with caplog.at_level("INFO"):
        assert main.main(["--resume", str(outcome.folder)]) == 0
    tested = [m for m in caplog.messages if m.startswith("test/loss_simple")]
    assert tested == [f"test/loss_simple {float(outcome.table()[-1]['test/loss_simple']):.5f}"]
    assert (outcome.folder / "checkpoints" / "last.ckpt").read_bytes() == before
    with pytest.raises(UserError, match="nothing to do: give -t to train"):
        main.main(["--resume", str(outcome.folder), "--no-test"])


def test_an_unfrozen_model_moves_at_its_own_rate(learn: Learn) -> None:
    unfrozen = ("model.params.unfreeze_model=true", "model.params.model_lr=1.0e-4")
    outcome = learn("unfrozen", *unfrozen, "model.params.embedding_reg_weight=0.1")
    content = torch.load(outcome.folder / "checkpoints" / "last.ckpt", weights_only=True)
    assert [g["lr"] for g in content["optimizer_states"][0]["param_groups"]] == [0.01, 1e-4]
    parts = {name.split(".")[0] for name in content["state_dict"]}
    assert parts == {"embedding_manager", "model", "cond_stage_model"}


def test_progressive_words_resume_where_they_were(learn: Learn) -> None:
    words = "model.params.personalization_config.params"
    progressive = (f"{words}.progressive_words=true", f"{words}.num_vectors_per_token=2")
    outcome = learn("progressive", *progressive)
    facts = read_words(outcome.folder / "checkpoints" / "embeddings.safetensors").metadata
    assert (facts["step"], facts["progressive_words"]) == ("2", "true")
    # The second vector has no part in the image yet; only weight decay touches it.
    assert outcome.word().shape[0] == 2
    assert main.main(["-t", "--resume", str(outcome.folder), "--max_steps", "3"]) == 0
    content = torch.load(outcome.folder / "checkpoints" / "last.ckpt", weights_only=True)
    assert int(content["state_dict"]["embedding_manager.optimizer_step"]) == 3


def test_two_processes_learn_what_one_learns(arguments: list[str], learn: Learn) -> None:
    one = learn("one", "data.params.batch_size=4", "--max_steps", "3")
    more = ["-n", "both", "--devices", "2", "--strategy", "ddp", "--max_steps", "3", "--no-test"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, str(ROOT / "main.py"), *arguments, *more],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    (folder,) = one.folder.parent.glob("*_both")
    both = Outcome(0, folder)
    torch.testing.assert_close(one.word(), both.word(), atol=1e-5, rtol=1e-4)
    assert "4 images a step (1 accumulated x 2 devices x 2 in a batch)" in done.stderr
    assert "effective learning rate 0.02" in done.stderr


def test_averaged_weights_follow_steps_not_accumulated_batches(learn: Learn) -> None:
    trained = ("model.params.unfreeze_model=true", "model.params.model_lr=1e-3")
    outcome = learn(
        "averages",
        *trained,
        *("model.params.use_ema=true", "--accumulate_grad_batches", "2", "--max_steps", "3"),
    )
    state = torch.load(outcome.folder / "checkpoints" / "last.ckpt", weights_only=True)
    assert state["state_dict"]["model_ema.num_updates"] == 3


@pytest.mark.parametrize(
    ("key", "message"),
    [
        ("cond_stage_key=captions", "cond_stage_key is 'captions'.*hold .*caption"),
        ("first_stage_key=jpg", "first_stage_key is 'jpg'.*hold .*image"),
    ],
)
def test_a_key_that_samples_lack_is_named(learn: Learn, key: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        learn("keys", f"model.params.{key}", "--max_steps", "1")


def test_a_word_does_not_tell_where_its_maker_works(learn: Learn, pictures: Path) -> None:
    outcome = learn("portable", "--max_steps", "1")
    with safe_open(outcome.folder / "checkpoints" / "embeddings.safetensors", "pt") as file:
        config = json.loads(file.metadata()["config"])
    assert config["data"]["params"]["train"]["params"]["data_root"] == pictures.name
    assert str(pictures.parent) not in json.dumps(config)


def test_an_autoencoder_trains(tmp_path: Path, pictures: Path) -> None:
    tiny = OmegaConf.load(Path(__file__).parent / "tiny.yaml").model.params.first_stage_config
    tiny.params.lossconfig = {"target": "ldm.modules.losses.KLReconstruction"}
    tiny.base_learning_rate = 1e-4
    OmegaConf.save({"model": tiny}, tmp_path / "autoencoder.yaml")
    own = str(Path(__file__).parent / "personal.yaml")
    arguments = ["--base", str(tmp_path / "autoencoder.yaml"), own, "-t", "--no-test"]
    arguments += ["--data_root", str(pictures), "-l", str(tmp_path / "logs"), "-n", "ae"]
    assert main.main([*arguments, "data.params.validation=null"]) == 0
    (folder,) = (tmp_path / "logs").glob("*_ae")
    assert (folder / "checkpoints/last.ckpt").is_file()
