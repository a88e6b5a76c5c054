"""Flags and files become one configuration; what does not fit is refused in one line."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf

from ldm.training import run as run_module
from ldm.training.checks import Captioned, check_captions
from ldm.training.config import load
from ldm.training.folder import working_folder
from ldm.training.run import set_up
from ldm.training.trainer import (
    accumulation,
    check_machine,
    device_count,
    saving_options,
    trainer_settings,
)
from ldm.training.validate import check_trainer
from ldm.util import UserError
from ldm.words import manager as embedding_manager
from ldm.words.manager import EmbeddingManager
from tests.words.word_doubles import FakeEmbedder

Arguments = list[str]


def test_files_merge_and_overrides_win(arguments: Arguments, tmp_path: Path) -> None:
    extra = tmp_path / "extra.yaml"
    extra.write_text("data: {params: {batch_size: 7}}\nlightning: {trainer: {max_steps: 9}}\n")
    arguments.insert(3, str(extra))
    config = load([*arguments, "lightning.trainer.max_steps=11"])
    assert config.data.params.batch_size == 7
    assert config.lightning.trainer.max_steps == 11
    assert load([*arguments, "--max_steps", "12"]).lightning.trainer.max_steps == 12


def test_the_placeholder_reaches_captions_and_manager(arguments: Arguments) -> None:
    this = set_up(load([*arguments, "--placeholder_string", "@"]))
    assert this.model.embedding_manager.placeholders == ["@"]
    for dataset in this.data.datasets.values():
        assert all("@" in dataset[i]["caption"] for i in range(20))
        assert all("*" not in text for text in dataset.texts())


def test_a_placeholder_of_the_file_reaches_captions_too(arguments: Arguments) -> None:
    words = "model.params.personalization_config.params.placeholder_strings=['@']"
    config = load([*arguments, words])
    assert config.data.params.train.params.placeholder_token == "@"
    clash = "data.params.train.params.placeholder_token=a"
    with pytest.raises(UserError, match=r"captions say 'a', but the words to learn are \['@'\]"):
        load([*arguments, words, clash])


DROPPED = {
    "learn_logvar": ("false", "true"),
    "logvar_init": ("0.", "0.5"),
    "original_elbo_weight": ("0", "0.001"),
    "l_simple_weight": ("1.", "0.5"),
    "given_betas": ("null", "[0.1,0.2]"),
    "v_posterior": ("0.", "1.0"),
    "cosine_s": ("8e-3", "0.1"),
}


def test_dropped_options_of_the_original_are_accepted_where_they_do_nothing(
    arguments: Arguments,
) -> None:
    given = [f"model.params.{name}={usual}" for name, (usual, _) in DROPPED.items()]
    assert set_up(load([*arguments, *given])).model.embedding_manager.placeholders == ["*"]


@pytest.mark.parametrize("name", DROPPED)
def test_a_dropped_option_that_asks_for_something_is_one_clear_line(
    arguments: Arguments, name: str
) -> None:
    with pytest.raises(UserError, match=rf"^model: {name}=.* is not supported: leave it out"):
        load([*arguments, f"model.params.{name}={DROPPED[name][1]}"])


def test_data_flags_reach_every_set(arguments: Arguments, tmp_path: Path) -> None:
    lines = tmp_path / "templates.txt"
    lines.write_text("my {}\n")
    flags = ["--templates", str(lines), "--center_crop", "--captions", "--seed", "5"]
    config = load([*arguments, *flags, "--num_workers", "0"])
    for name in ("train", "validation"):
        params = config.data.params[name].params
        assert (params.templates, params.center_crop, params.captions) == (str(lines), True, True)
        assert params.seed == 5
        assert params.first_word == "dog"
    assert config.data.params.num_workers == 0


@pytest.mark.parametrize(
    ("text", "devices"), [("0", [0]), ("0,", [0]), ("0,1", [0, 1]), ("2", [2]), ("-1", -1)]
)
def test_gpus_with_or_without_a_comma(
    arguments: Arguments, text: str, devices: list[int] | int
) -> None:
    trainer = load([*arguments, "--gpus", text]).lightning.trainer
    assert trainer.accelerator == "gpu"
    assert trainer.devices == devices


def test_gpus_of_an_old_file(arguments: Arguments) -> None:
    trainer = load([*arguments, "lightning.trainer.gpus='0,1'"]).lightning.trainer
    assert trainer.devices == [0, 1]
    assert "gpus" not in trainer
    with pytest.raises(UserError, match="expected numbers, such as 0 or 0,1"):
        load([*arguments, "--gpus", "all"])


@pytest.mark.parametrize(
    ("override", "named"),
    [
        (
            "model.params.unet_config.params.chanel_mult=[1]",
            "chanel_mult: did you mean 'channel_mu",
        ),
        ("data.params.train.params.repeat=3", "data.params.train.params.repeat: did you mean 'rep"),
        ("data.params.bach_size=3", "data.params.bach_size: did you mean 'batch_size'"),
        ("lightning.trainr.max_steps=3", "lightning.trainr: did you mean 'trainer'"),
        (
            "lightning.callbacks.image_logger.params.max_image=3",
            "lightning.callbacks.image_logger.params.max_image: did you mean 'max_images'",
        ),
        (
            "lightning.latent_cache.enable=false",
            "lightning.latent_cache.enable: did you mean 'enab",
        ),
        (
            "model.params.first_stage_config.params.monitr=x",
            "first_stage_config.params.monitr: did you mean 'monitor'",
        ),
        (
            "model.params.first_stage_config.params.ddconfig.z_chanels=2",
            "first_stage_config.params.ddconfig.z_chanels: did you mean 'z_channels'",
        ),
        ("run.sed=3", "run.sed: did you mean 'seed'"),
        ("model.learning_rate=3", "model.learning_rate"),
        ("modle.params=3", "unknown configuration key 'modle'"),
    ],
)
def test_an_unknown_key_is_named(arguments: Arguments, override: str, named: str) -> None:
    with pytest.raises(UserError, match=named.replace("[", r"\[")):
        load([*arguments, override])


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("data.params.batch_size=two", "data.params.batch_size: expected int, got 'two'"),
        ("data.params.wrap=maybe", "data.params.wrap: expected bool, got 'maybe'"),
        ("model.base_learning_rate=fast", "model.base_learning_rate: expected float, got 'fast'"),
        ("model.params.scale_factor=[1]", "model.params.scale_factor: expected float"),
        ("lightning.trainer=3", "lightning.trainer: expected a mapping, got 3"),
        ("lightning=3", "lightning: expected a mapping, got 3"),
        ("data.params.train=3", "data.params.train: expected a mapping, got 3"),
        ("model.params.personalization_config=3", "personalization_config: expected a mapping"),
        (
            "model.params.personalization_config.params.placeholder_strings=3",
            "placeholder_strings: expected a list, got 3",
        ),
        (
            "model.params.unet_config.params.channel_mult=3",
            "unet_config.params.channel_mult: expected Sequence, got 3",
        ),
        (
            "model.params.first_stage_config.params.ddconfig=3",
            "first_stage_config.params.ddconfig: expected Mapping, got 3",
        ),
        ("run.seed=-1", "--seed -1: expected a number from 0 to 4294967295"),
        ("run.threads=0", "--threads 0: expected a number of at least 1"),
        ("run.seed=now", "run.seed: expected int, got 'now'"),
        ("model.params.unet_config.params=3", "model.params.unet_config: expected target, a class"),
        ("model.target=ldm.util.ALLOWED_PREFIXES", "model: expected target, a class"),
        ("model.params.timesteps=${nowhere}", "does not fit together: .*nowhere"),
        ("model.params.ckpt_path=???", "leaves model.params.ckpt_path open"),
        (
            "model.params.personalization_config.params.per_image_tokens=true",
            "no caption would name these words: set data.params.train.params.per_image_tokens",
        ),
        ("data.params.train.params.per_image_tokens=true", "set model.params.personalization_conf"),
    ],
)
def test_a_value_that_cannot_be(arguments: Arguments, override: str, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        load([*arguments, override])
    assert "\n" not in str(caught.value)


def test_words_may_have_a_class_of_their_own(
    arguments: Arguments, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Words(embedding_manager.EmbeddingManager):
        pass

    monkeypatch.setattr(embedding_manager, "Words", Words, raising=False)
    own = "model.params.personalization_config.target=ldm.words.manager.Words"
    load([*arguments, own, "--embedding_manager_ckpt", "words.pt"])


def test_the_seed_reaches_words_without_a_first_one(arguments: Arguments) -> None:
    def seed(*more: str) -> int:
        config = load([*arguments, "--seed", "5", *more])
        return int(config.model.params.personalization_config.params.seed)

    assert seed() == 5
    assert seed("model.params.personalization_config.params.seed=7") == 7


def test_an_override_that_is_no_yaml(arguments: Arguments) -> None:
    with pytest.raises(UserError, match=r"cannot read the override 'data\.x=\[@\]'"):
        load([*arguments, "data.x=[@]"])


@pytest.mark.parametrize("content", [b"model: \xff\n", b"- 1\n", b"model: [\n", b"a: ${\n"])
def test_a_file_that_is_no_configuration(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "bad.yaml"
    path.write_bytes(content)
    with pytest.raises(UserError) as caught:
        load(["-t", "--base", str(path)])
    assert "\n" not in str(caught.value)


def test_an_unknown_trainer_option_is_named() -> None:
    with pytest.raises(UserError, match=r"lightning\.trainer\.max_step: did you mean 'max_steps'"):
        trainer_settings(OmegaConf.create({"max_step": 3}))


def test_options_of_old_trainers() -> None:
    old = {"accelerator": "ddp", "replace_sampler_ddp": False, "benchmark": True}
    assert trainer_settings(OmegaConf.create(old)) == {
        "strategy": "ddp", "benchmark": True, "devices": 1,
    }  # fmt: skip
    section = OmegaConf.create({"modelcheckpoint": {"params": {"save_top_k": 3}}})
    assert saving_options(section) == {}
    section.modelcheckpoint.params = {"every": 3}
    with pytest.raises(UserError, match="every_n_train_steps"):
        saving_options(section)


def test_torchrun_says_how_many_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    monkeypatch.setenv("WORLD_SIZE", "6")
    assert trainer_settings(OmegaConf.create({})) == {"devices": 2, "num_nodes": 3}


def test_devices_are_counted() -> None:
    assert device_count({"devices": [0, 1], "num_nodes": 2}) == 4
    assert device_count({"devices": "0,1"}) == 2
    assert device_count({"devices": "auto", "accelerator": "cpu"}) == 1
    assert device_count({"devices": 3, "accelerator": "cpu"}) == 3


def test_images_per_step() -> None:
    config = OmegaConf.create({"images_per_step": 8})
    assert accumulation(config, {}, batch=4, devices=1) == 2
    assert accumulation(config, {}, batch=4, devices=2) == 1
    assert accumulation(config, {"accumulate_grad_batches": 3}, batch=4, devices=2) == 3
    with pytest.raises(UserError, match=r"images_per_step 8 is no multiple of 3 \(batch_size\)"):
        accumulation(config, {}, batch=3, devices=1)


def test_a_gpu_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    with pytest.raises(UserError, match="torch finds none: use --accelerator cpu"):
        check_machine(OmegaConf.create({"accelerator": "gpu", "devices": [0]}))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(UserError, match="GPU 1 is asked for"):
        check_machine(OmegaConf.create({"accelerator": "gpu", "devices": [0, 1]}))
    check_machine(OmegaConf.create({"accelerator": "gpu", "devices": [0]}))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"accelerator": "gpu", "devices": 2}, "--devices 2: torch finds only 1 GPU"),
        ({"accelerator": "auto", "devices": "2"}, "--devices 2: torch finds only 1 GPU"),
        ({"devices": 0}, "--devices 0: expected a number of at least 1"),
        ({"devices": "x"}, "--devices x: expected a number of at least 1"),
        ({"devices": [], "accelerator": "gpu"}, "expected a number of at least 1"),
        ({"devices": "0,1", "accelerator": "cpu"}, "for the CPU give a number of processes"),
        ({"devices": [-3], "accelerator": "gpu"}, "GPU -3 is asked for"),
        ({"precision": "foo"}, "--precision foo: expected one of 16,"),
        ({"accelerator": "foo"}, "--accelerator foo: expected one of auto,"),
        ({"strategy": "foo"}, "--strategy foo: expected one of auto,"),
        ({"max_steps": 0}, "--max_steps 0: expected a number of at least 1, or -1"),
        ({"max_steps": -2}, "--max_steps -2: expected"),
        ({"max_steps": "many"}, "--max_steps many: expected"),
        ({"max_epochs": 0}, "--max_epochs 0: expected"),
        ({"accumulate_grad_batches": 0}, "--accumulate_grad_batches 0: expected"),
    ],
)
def test_a_trainer_that_cannot_be(
    options: dict[str, object], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)

    def check() -> None:
        settings = trainer_settings(OmegaConf.create(options))
        check_trainer(settings)
        check_machine(settings)

    with pytest.raises(UserError, match=message) as caught:
        check()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "options",
    [
        {"accelerator": "gpu", "devices": [0], "precision": 16, "max_steps": -1},
        {"accelerator": "gpu", "devices": -1, "precision": "bf16-mixed", "max_epochs": None},
        {"accelerator": "cpu", "devices": "2", "strategy": "ddp", "max_steps": None},
        {"accelerator": "ddp", "devices": "auto"},
        {"accelerator": "cpu", "devices": [0, 1]},
    ],
)
def test_trainers_that_can_be(options: dict[str, object], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    check_trainer(trainer_settings(OmegaConf.create(options)))


def test_the_rate_follows_the_images_a_step(arguments: Arguments) -> None:
    this = set_up(load([*arguments, "--accumulate_grad_batches", "4"]))
    assert this.model.learning_rate == pytest.approx(0.005 * 4 * 2)
    this = set_up(load([*arguments, "--scale_lr", "false"]))
    assert this.model.learning_rate == pytest.approx(0.005)


def test_a_run_without_steps_takes_the_papers(arguments: Arguments) -> None:
    this = set_up(load([*arguments, "lightning.trainer.max_steps=-1"]))
    assert this.trainer.max_steps == 5000
    flags = ["lightning.trainer.max_steps=-1", "--max_epochs", "2"]
    this = set_up(load([*arguments, *flags]))
    assert this.trainer.max_steps == 300  # 3 images x 100 repeats x 2 / 2 a step


def test_names_of_log_folders(arguments: Arguments, tmp_path: Path) -> None:
    def name(*flags: str) -> str:
        return str(load([*arguments, *flags]).folder.relative_to(tmp_path / "logs"))

    assert name("-n", "x", "-f", "_y").startswith("mugs2")
    assert name("-n", "x", "-f", "_y").endswith("_x_y")
    assert name("--datadir_in_name", "false").startswith("2")
    assert name().endswith("_tiny")
    assert name("-p", "project").startswith("project/mugs")


def test_two_runs_of_one_second_have_two_folders(tmp_path: Path) -> None:
    wanted = tmp_path / "logs" / "now"
    with working_folder(wanted, exclusive=True) as first:
        (first / "configs").mkdir()
        with working_folder(wanted, exclusive=True) as second:
            assert (first.name, second.name) == ("now", "now-2")


Change = Callable[[Arguments, Path], Arguments]


def _flag(name: str, value: str) -> Change:
    return lambda arguments, _: [*arguments, name, value]


def _override(text: str) -> Change:
    return lambda arguments, _: [*arguments, text]


def _empty_folder(arguments: Arguments, folder: Path) -> Arguments:
    return [*arguments, "--data_root", str(folder)]


def _without(name: str) -> Change:
    def change(arguments: Arguments, _: Path) -> Arguments:
        place = arguments.index(name)
        return arguments[:place] + arguments[place + 2 :]

    return change


def _not_weights(arguments: Arguments, folder: Path) -> Arguments:
    path = folder / "model.ckpt"
    torch.save({"state_dict": {"weight": torch.zeros(2)}}, path)
    return [*arguments, "--actual_resume", str(path)]


def _not_a_run(arguments: Arguments, folder: Path) -> Arguments:
    path = folder / "weights.ckpt"
    torch.save({"state_dict": {"weight": torch.zeros(2)}}, path)
    return [*arguments, "--resume", str(path)]


def _blocked(arguments: Arguments, folder: Path) -> Arguments:
    (folder / "file").touch()
    return [*arguments, "-l", str(folder / "file" / "logs")]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_flag("--data_root", "/nowhere"), "/nowhere"),
        (_empty_folder, "no "),
        (_without("--data_root"), "give their folder, --data_root DIR"),
        (_flag("--actual_resume", "/nowhere.ckpt"), "/nowhere.ckpt does not exist"),
        (_without("--actual_resume"), "name it with --model MODEL"),
        (_not_weights, "model.ckpt"),
        (_flag("--init_word", "xylophone"), "xylophone"),
        (_flag("--placeholder_string", "photo"), "photo"),
        (_flag("--templates", "/nowhere.txt"), "/nowhere.txt"),
        (_flag("--base", "/nowhere.yaml"), "no configuration at /nowhere.yaml"),
        (_flag("--resume", "/nowhere"), "no such log folder or checkpoint"),
        (_not_a_run, "not a checkpoint of a run of main.py"),
        (_override("lightning.callbacks.image_logger.params.batch_frequency=0"), "batch_frequency"),
        (_override("data.params.train.params.flip_p=2"), r"flip_p must lie in \[0, 1\], got 2"),
        (_override("lightning.modelcheckpoint.params.every_n_train_steps=0"), "at least 1, got 0"),
        (_override("data.params.batch_size=0"), "batch_size must be at least 1, got 0"),
        (_blocked, "log folder .*file is a file"),
        (_flag("--val_check_interval", "0"), "val_check_interval is a number of steps"),
        (_flag("--devices", "2"), "images_per_step 6 is no multiple"),
        (_override("lightning.latent_cache.batch_size=0"), "latent_cache.batch_size must be at"),
        (_flag("--devices", "x"), "--devices x: expected a number"),
        (_flag("--max_steps", "0"), "--max_steps 0: expected a number of at least 1"),
        (_flag("--limit_val_batches", "-3"), "lightning.trainer: .*limit_val_batches"),
    ],
)
def test_bad_input_is_one_line(
    arguments: Arguments, tmp_path: Path, change: Change, message: str
) -> None:
    more = ["lightning.images_per_step=6"] if "images_per_step" in message else []
    with pytest.raises(UserError, match=message) as caught:
        set_up(load([*change(arguments, tmp_path), *more]))
    assert "\n" not in str(caught.value)
    assert not list((tmp_path / "logs").glob("*/checkpoints/*"))


def test_captions_must_name_the_word(arguments: Arguments, monkeypatch: pytest.MonkeyPatch) -> None:
    from ldm.data.personalized import PersonalizedBase

    monkeypatch.setattr(PersonalizedBase, "texts", lambda self: ["a photo of a cat"])
    with pytest.raises(UserError, match="'a photo of a cat' names no word to learn"):
        set_up(load(arguments))


def test_captions_are_looked_at_before_weights(
    arguments: Arguments, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def unexpected(_: object) -> None:
        raise AssertionError("the model is built")

    monkeypatch.setattr(run_module, "build_model", unexpected)
    long = f"data.params.train.params.templates=['{'a ' * 20}{{}}']"
    with pytest.raises(UserError, match="16"):
        set_up(load([*arguments, long]))
    with pytest.raises(UserError, match="xylophone"):
        set_up(load([*arguments, "--init_word", "xylophone"]))


def test_every_word_must_be_named(arguments: Arguments) -> None:
    two = [
        "model.params.personalization_config.params.placeholder_strings=['*','@']",
        *("--init_word", "dog", "cat"),
    ]
    with pytest.raises(UserError, match="no training caption names @, which would stay untrained"):
        set_up(load([*arguments, *two]))
    both = "data.params.train.params.templates=['a photo of a {} in the style of @']"
    set_up(load([*arguments, *two, both]))


def test_each_word_has_a_flag_of_its_own(arguments: Arguments) -> None:
    names = ["--placeholder_string", "@", "*"]
    params = load([*arguments, *names, "--init_word", "dog", "cat"]).model.params
    words = params.personalization_config.params
    assert (list(words.placeholder_strings), list(words.initializer_words)) == (
        ["@", "*"],
        ["dog", "cat"],
    )
    with pytest.raises(
        UserError, match=r"--init_word dog: give one for each word of \['@', '\*'\]"
    ):
        load([*arguments, *names])
    left = load([*arguments, "--init_word", "", "--placeholder_string", ""])
    assert list(left.model.params.personalization_config.params.initializer_words) == ["cat"]


def test_captions_name_words_by_their_tokens() -> None:
    manager = EmbeddingManager(FakeEmbedder(), ["polar"], ["cat"])
    model = Captioned(manager, manager.embedder, "caption")
    check_captions(model, {"train": [{"caption": "a photo of a polar"}]})
    check_captions(model, {"train": [{"caption": "a photo of a polarbear"}]})
    with pytest.raises(UserError, match="'a photo of a sculpture' names no word"):
        check_captions(model, {"train": [{"caption": "a photo of a sculpture"}]})
    with pytest.raises(UserError, match="the validation caption 'a cat' names no word"):
        check_captions(model, {"validation": [{"caption": "a cat"}]})


def test_captions_of_a_model_without_words_are_checked_for_their_length(
    caplog: pytest.LogCaptureFixture,
) -> None:
    model = Captioned(None, FakeEmbedder(), "caption")
    check_captions(model, {"train": [{"caption": "a photo of the cat on the moon " * 2}]})
    assert "Its end is cut off: 'a photo of the cat on the moon'" in caplog.text


def test_a_large_set_that_cannot_list_its_captions_is_only_warned_of(
    caplog: pytest.LogCaptureFixture,
) -> None:
    manager = EmbeddingManager(FakeEmbedder(), ["*", "@"], ["cat", "cat"])
    model = Captioned(manager, manager.embedder, "caption")

    check_captions(model, {"train": [{"caption": "a *"}] * 65})
    assert "the first 64 captions do not name ['@']" in caplog.text
    with pytest.raises(UserError, match="names @"):
        check_captions(model, {"train": [{"caption": "a *"}] * 64})


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["second_stage=3"], "second_stage: expected a mapping, got 3"),
        (["model.params.scale_factor=${nothing.there}"], "the configuration does not fit together"),
        (["second_stage.modle.params.a=1"], "unknown configuration key 'second_stage.modle'"),
        (["--gpus", "first"], "--gpus first: expected numbers, such as 0 or 0,1"),
        (["--second_root", "/images"], "--second_root: no set of this configuration's data takes"),
        (["model.params.text_lr=???"], r"leaves model.params.text_lr open \(\?\?\?\): give"),
        (["--placeholder_string", "*", "@"], r"--init_word dog: give one for each word of"),
        (
            ["data.params.train.params.placeholder_token='@'"],
            r"its captions say '@', but the words to learn are \['\*'\]: set placeholder_token",
        ),
        (["~model.params.personalization_config"], "cannot read the override|unknown"),
    ],
)
def test_what_does_not_fit_together_is_one_line(
    arguments: Arguments, more: list[str], message: str
) -> None:
    with pytest.raises(UserError, match=message) as caught:
        load([*arguments, *more])
    assert "\n" not in str(caught.value)


def test_flags_of_words_need_a_model_that_learns_words(arguments: Arguments) -> None:
    with pytest.raises(UserError, match="--init_word: this model learns no word"):
        load([*arguments, "model.params.personalization_config=null"])


def test_a_log_folder_without_a_checkpoint(tmp_path: Path) -> None:
    (tmp_path / "checkpoints").mkdir()
    with pytest.raises(UserError, match=r"it has no checkpoints/last.ckpt to resume from"):
        load(["-t", "--resume", str(tmp_path)])


def test_a_model_folder_as_the_weights_of_a_part(
    arguments: Arguments, base: Path, tmp_path: Path
) -> None:
    """`ckpt_path` names the file in a folder, as the flags do."""
    (tmp_path / "weights").mkdir()
    (tmp_path / "weights" / "model.ckpt").write_bytes(base.read_bytes())
    config = load([*arguments, f"model.params.ckpt_path={tmp_path / 'weights'}"])
    assert config.model.params.ckpt_path == str(tmp_path / "weights" / "model.ckpt")


def test_images_without_a_section_get_previews_with_the_runs_seed(arguments: Arguments) -> None:
    config = load([*arguments, "--seed", "7", "lightning.callbacks.image_logger=null"])
    assert config.lightning.callbacks.image_logger.params.seed == 7
