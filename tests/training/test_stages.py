"""Pivotal tuning by the real command line: what moves in each stage, what is left, resuming."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf
from torch import Tensor

import main
from ldm.checkpoint.loading import read_state_dict
from ldm.inference import load_model
from ldm.training import class_images
from ldm.training import run as run_module
from ldm.training.callbacks import CUDACallback
from ldm.training.run import Run
from ldm.util import UserError
from ldm.words.files import read_words
from tests.training.conftest import Outcome

Learn = Callable[..., Outcome]
# Rates at which two steps are seen.
PIVOTAL = (
    *("--variant", "pivotal", "second_stage.lightning.trainer.max_steps=3"),
    *("second_stage.model.params.model_lr=1e-3", "second_stage.model.base_learning_rate=1e-2"),
)
DREAMBOOTH = (
    *("--variant", "pivotal_dreambooth", "--max_steps", "2"),
    *("second_stage.lightning.trainer.max_steps=2", "second_stage.model.params.model_lr=1e-3"),
    "second_stage.data.params.train.params.class_pictures=3",
)


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> list[Run]:
    """The runs that were set up, in order."""
    made: list[Run] = []
    original = run_module.set_up

    def set_up(*args: object) -> Run:
        made.append(original(*args))  # type: ignore[arg-type]
        return made[-1]

    monkeypatch.setattr(run_module, "set_up", set_up)
    return made


def moved(base: Path, state: dict[str, Tensor]) -> set[str]:
    """Name the weights that are not the base's."""
    before = read_state_dict(base)
    return {n for n in before if n in state and not torch.equal(before[n], state[n])}


def test_each_stage_moves_what_it_should(
    learn: Learn, base: Path, runs: list[Run], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("INFO"):
        outcome = learn("pivotal", "--max_steps", "2", *PIVOTAL)
    assert outcome.status == 0
    first, second = runs
    second_folder = outcome.folder / "second_stage"
    assert (first.config.folder, second.config.folder) == (outcome.folder, second_folder)

    assert not moved(base, first.model.state_dict())
    assert [p is first.model.embedding_manager.string_to_param_dict["*"]
            for p in first.model.trainable_parameters()] == [True]  # fmt: skip
    after = moved(base, second.model.state_dict())
    assert {name.split(".")[0] for name in after} == {"model", "cond_stage_model"}
    # Adam moves whatever has a gradient; keys' biases and the like may have none.
    network = {n for n in read_state_dict(base) if n.startswith("model.diffusion_model.")}
    assert len(after & network) > 0.9 * len(network)
    groups = second.trainer.optimizers[0].param_groups
    assert [group["lr"] for group in groups] == [1e-2, 1e-3]

    # The word continues from where it was, and both are saved.
    words = Outcome(0, second_folder).word()
    assert not torch.equal(words, outcome.word())
    torch.testing.assert_close(words, outcome.word(), atol=0.05, rtol=0)
    assert "effective learning rate 0.01 (0.005 x 1 accumulated x 1 devices x 2 in a batch)" in (
        caplog.text
    )
    assert "effective learning rate 0.01 (0.01 x 1 accumulated x 1 devices x 1" in caplog.text
    assert "U-Net's learning rate 0.001, text encoder's 0.001 (not scaled)" in caplog.text
    assert not (outcome.folder / "checkpoints" / "weight_delta.safetensors").exists()
    project = OmegaConf.load(next((outcome.folder / "configs").glob("*-project.yaml")))
    assert project.variant.name == "pivotal"
    assert project.second_stage.lightning.trainer.max_steps == 3


@pytest.mark.parametrize("half", [True, False])
def test_base_and_weight_delta_are_the_tuned_model(
    learn: Learn, base: Path, runs: list[Run], half: bool
) -> None:
    outcome = learn("tuned", "--max_steps", "1", *PIVOTAL, f"run.half_difference={half}")
    this = runs[-1]
    path = this.config.folder / "checkpoints" / "weight_delta.safetensors"
    tuned = {n: p.detach() for n, p in this.model.named_parameters()}
    again = load_model(OmegaConf.create({"model": this.config.model}), base, weight_delta=path)
    before = read_state_dict(base)
    for name, weight in again.named_parameters():
        if name.startswith("embedding_manager."):
            continue
        change = (tuned[name] - before[name]).abs()
        # float16 keeps 11 bits of the difference; float32 rounds the difference and the sum.
        bound = (tuned[name].abs() + before[name].abs()) * 2**-23
        if half:
            bound += change * 2**-11 + 2**-25
        assert ((weight - tuned[name]).abs() <= bound).all(), name
    facts = tuning_facts(path)
    assert facts["step"] == "3"
    words = read_words(this.config.folder / "checkpoints" / "embeddings.safetensors").metadata
    assert facts["config_hash"] == words["config_hash"]
    assert facts["base_checkpoint_hash"] == words["base_checkpoint_hash"]
    full = sum(4 * p.numel() for n, p in tuned.items() if n.startswith(("model.", "cond_stage")))
    assert path.stat().st_size < (0.55 if half else 1.05) * full + 40_000
    assert outcome.status == 0


def tuning_facts(path: Path) -> dict[str, str]:
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        facts: dict[str, str] = file.metadata()
    return facts


@pytest.mark.parametrize("stage", ["first", "second"])
def test_an_interrupted_run_resumes_exactly_in_its_stage(
    learn: Learn, stage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = ("--max_steps", "3")
    whole = learn("whole", *steps, *PIVOTAL)
    with monkeypatch.context() as patch:
        stages: list[int] = []

        def start(*_: object) -> None:
            stages.append(0)

        def interrupt(self: object, trainer: object, module: object, batch: object, i: int) -> None:
            if i == 1 and len(stages) == (1 if stage == "first" else 2):
                os.kill(os.getpid(), signal.SIGTERM)

        patch.setattr(CUDACallback, "on_train_start", start)
        patch.setattr(CUDACallback, "on_train_end", lambda *_: None)
        patch.setattr(CUDACallback, "on_train_batch_start", interrupt, raising=False)
        part = learn("part", *steps, *PIVOTAL)
    assert part.status == 128 + signal.SIGTERM
    later = part.folder / "second_stage"
    assert later.exists() == (stage == "second")

    assert main.main(["-t", "--resume", str(part.folder)]) == 0
    assert torch.equal(part.word(), whole.word())
    assert torch.equal(Outcome(0, later).word(), Outcome(0, whole.folder / "second_stage").word())
    states = [
        torch.load(f / "second_stage/checkpoints/last.ckpt", weights_only=True)["state_dict"]
        for f in (part.folder, whole.folder)
    ]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[1])


def test_a_finished_first_stage_is_not_run_again(learn: Learn, runs: list[Run]) -> None:
    """As after a crash between the stages, or within the second before it saved."""
    outcome = learn("crash", "--max_steps", "2", *PIVOTAL)
    word, second = outcome.word(), Outcome(0, outcome.folder / "second_stage").word()
    for name in ("last.ckpt", "previous.ckpt"):
        (outcome.folder / "second_stage" / "checkpoints" / name).unlink()
    del runs[:]
    assert main.main(["-t", "--resume", str(outcome.folder)]) == 0
    assert torch.equal(outcome.word(), word)
    assert torch.equal(Outcome(0, outcome.folder / "second_stage").word(), second)
    assert len(runs) == 2


def test_dreambooth_generates_its_class_images_first(
    learn: Learn, base: Path, runs: list[Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(class_images, "STEPS", 2)
    outcome = learn("booth", *DREAMBOOTH)
    second = runs[-1]
    folder = outcome.folder / "second_stage" / "class"
    names = sorted(p.name for p in folder.iterdir())
    assert names == [f"{seed:010}.png" for seed in (23, 24, 25)]
    sample = second.data.datasets["train"][0]
    assert sample["prior"]["caption"] == "a photo of a dog"
    assert "*" in sample["caption"]
    rows = Outcome(0, second.config.folder).table()
    assert all(float(row["train/loss_prior"]) > 0 for row in rows)
    for row in rows:
        total = float(row["train/loss_simple"]) + float(row["train/loss_prior"])
        assert float(row["train/loss"]) == pytest.approx(total, rel=1e-4)
    assert moved(base, second.model.state_dict())

    # Images of one's own are taken as they are; those generated before are not generated again.
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("generated")

    monkeypatch.setattr(class_images, "generate", refuse)
    root = f"second_stage.data.params.train.params.class_root={folder}"
    assert learn("given", *DREAMBOOTH, root).status == 0
    for name in ("last.ckpt", "previous.ckpt"):
        (second.config.folder / "checkpoints" / name).unlink(missing_ok=True)
    assert main.main(["-t", "--resume", str(outcome.folder)]) == 0
    assert second.model.text_lr is None


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (
            ("model.params.personalization_config.params.initializer_words=null",),
            "second stage: prior preservation needs a class",
        ),
        (("second_stage.data.params.train.params.class_pictures=0",), "class_pictures must be at"),
    ],
)
def test_class_images_that_cannot_be_generated_are_an_error_before_the_first_stage(
    arguments: list[str], runs: list[Run], more: tuple[str, ...], message: str
) -> None:
    place = arguments.index("--init_word")
    del arguments[place : place + 2]
    with pytest.raises(UserError, match=message):
        main.main([*arguments, *DREAMBOOTH, *more])
    assert not runs


def test_any_run_that_tunes_networks_saves_a_weight_delta(learn: Learn, base: Path) -> None:
    """As configs/stable-diffusion/v1-finetune_unfrozen.yaml: one stage, from a word of a file."""
    word = learn("word").folder / "checkpoints" / "embeddings.safetensors"
    unfrozen = ("model.params.unfreeze_model=true", "model.params.model_lr=1e-3")
    outcome = learn("unfrozen", *unfrozen, "--embedding_manager_ckpt", str(word))
    facts = tuning_facts(outcome.folder / "checkpoints" / "weight_delta.safetensors")
    assert facts["step"] == "2"
    assert facts["base_checkpoint"] == base.name
    torch.testing.assert_close(outcome.word(), read_words(word).words["*"], atol=0.05, rtol=0)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (
            ("lightning.images_per_step=3", "data.params.batch_size=2"),
            r"second stage: lightning\.images_per_step 3 is no multiple of 2",
        ),
        (("model.params.modle_lr=1",), "second stage: unknown .*did you mean 'model_lr'"),
        (("lightning.trainer.max_stepss=1",), "second stage: .*did you mean 'max_steps'"),
        (("data=3",), r"second_stage\.data: expected a mapping, got 3"),
    ],
)
def test_the_second_stages_mistakes_show_before_the_first(
    learn: Learn, runs: list[Run], more: tuple[str, ...], message: str, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=message):
        learn("wrong", *PIVOTAL, *(f"second_stage.{text}" for text in more))
    assert not runs
    assert not (tmp_path / "logs").exists()
