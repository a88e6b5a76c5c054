"""The overlays of configs/variants: each fits every base and changes what it says, no more."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import DictConfig, OmegaConf

from ldm.training import config as configuration
from ldm.training.config import RunConfig
from ldm.training.trainer import accumulation
from ldm.training.variants import find_variant, variant_names
from ldm.util import UserError, instantiate_from_config
from tests.training.conftest import Outcome

ROOT = Path(__file__).parents[2]
BASES = ("configs/finetune.yaml", "configs/miniature/paper.yaml")
# The released code's letters, so that per-image words find them.
LETTERS = tuple("אבגדהוזחטיכלמנסעפצקרשת")
LEARNED = [name for name in variant_names() if find_variant(name).source == "learned"]
REFERENCES = {"human_captions": "captions", "image_only": "images", "prompt_only": "prompts"}
WORDS = "model.params.personalization_config.params"


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a vocabulary for the 1.4B model and the name of a checkpoint."""
    folder = tmp_path_factory.mktemp("files")
    words = "[PAD] [UNK] [CLS] [SEP] [MASK] * @ sculpture painting"
    text = "\n".join([*words.split(), *LETTERS])
    (folder / "vocab.txt").write_text(text, encoding="utf-8")
    (folder / "model.ckpt").touch()
    return folder


def load(files: Path, base: str, *more: str) -> RunConfig:
    """Read a base with more arguments, as main.py does."""
    words = ["--base", str(ROOT / base), "-t", "--data_root", str(files)]
    command = [*words, "--actual_resume", str(files / "model.ckpt"), *more]
    return configuration.load(command)


def plain(config: RunConfig, *sections: str) -> Any:
    """Parts of a configuration as plain dicts."""
    return {name: OmegaConf.to_container(config.sections[name]) for name in sections}


def build(config: RunConfig, files: Path) -> Any:
    """Build the model on the meta device, with the small vocabulary where the hub's is named."""
    model = OmegaConf.create(OmegaConf.to_container(config.model))
    assert isinstance(model, DictConfig)
    words = model.params.personalization_config.params
    words.initializer_words = ["painting"] * len(words.placeholder_strings)  # known to both
    encoder = model.params.cond_stage_config.params
    encoder.tokenizer = str(ROOT / encoder.tokenizer) if "tokenizer" in encoder else str(files)
    with torch.device("meta"):
        return instantiate_from_config(model)


@pytest.mark.parametrize("base", BASES)
@pytest.mark.parametrize("name", LEARNED)
def test_each_lies_over_each_base(name: str, base: str, files: Path) -> None:
    config = load(files, base, "--variant", name)
    assert config.sections.variant is not None
    assert config.sections.variant.name == name
    assert config.sections.variant.about == find_variant(name).about
    model = build(config, files)
    assert not model.trains_model
    second = config.second
    if second is not None:
        assert build(second, files).trains_model


@pytest.mark.parametrize("base", BASES)
@pytest.mark.parametrize(("name", "rate"), [("high_lr", 0.16), ("low_lr", 8e-4), ("style", 0.04)])
def test_rates_are_scaled_alike(name: str, rate: float, base: str, files: Path) -> None:
    config = load(files, base, "--variant", name)
    batch = config.data.params.batch_size
    images = batch * accumulation(config.lightning, {}, batch, 1)
    assert images == 8
    assert config.model.base_learning_rate * images == pytest.approx(rate)


@pytest.mark.parametrize("base", BASES)
@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("two_words", {f"{WORDS}.num_vectors_per_token": 2}),
        ("three_words", {f"{WORDS}.num_vectors_per_token": 3}),
        (
            "progressive",
            {
                f"{WORDS}.num_vectors_per_token": 3,
                f"{WORDS}.progressive_words": True,
                f"{WORDS}.progressive_steps": 2000,
            },
        ),
        ("regularized", {"model.params.embedding_reg_weight": 1e-3}),
        (
            "per_image_tokens",
            {
                f"{WORDS}.per_image_tokens": True,
                "data.params.train.params.per_image_tokens": True,
            },
        ),
    ],
)
def test_nothing_else_changes(name: str, changes: dict[str, Any], base: str, files: Path) -> None:
    with_variant, without = load(files, base, "--variant", name), load(files, base)
    by_hand = OmegaConf.create(plain(without, "model", "data", "lightning", "run"))
    for key, value in changes.items():
        OmegaConf.update(by_hand, key, value, force_add=True)
    assert OmegaConf.to_container(by_hand) == plain(
        with_variant, "model", "data", "lightning", "run"
    )


def test_style_over_the_base_is_the_style_configuration(files: Path) -> None:
    laid = load(files, "configs/finetune.yaml", "--variant", "style")
    assert plain(laid, "model", "data", "lightning") == plain(
        load(files, "configs/finetune_style.yaml"), "model", "data", "lightning"
    )


def test_pivotal_tuning_has_the_published_values(files: Path) -> None:
    for base in BASES:
        second = load(files, base, "--variant", "pivotal").second_after(Path("first"))
        assert second.model.base_learning_rate == 5e-5
        assert second.model.params.model_lr == 1e-7
        assert (second.data.params.batch_size, second.lightning.images_per_step) == (1, 1)
        assert second.lightning.trainer.max_steps == 4200
        words = second.model.params.personalization_config.params
        assert words.embedding_manager_ckpt == "first/checkpoints/embeddings.safetensors"
    both = load(files, BASES[0], "--variant", "pivotal_dreambooth")
    second = both.second
    assert second is not None
    assert (both.lightning.trainer.max_steps, second.lightning.trainer.max_steps) == (2000, 500)
    assert second.model.params.prior_weight == 1.0


def test_variants_add_up_and_overrides_reach_both_stages(files: Path) -> None:
    more = ("--variant", "two_words", "pivotal", "second_stage.lightning.trainer.max_steps=7")
    config = load(files, BASES[1], *more, "--max_steps", "9")
    second = config.second
    assert second is not None
    assert (config.lightning.trainer.max_steps, second.lightning.trainer.max_steps) == (9, 7)
    assert config.model.params.personalization_config.params.num_vectors_per_token == 2
    progressive = load(files, BASES[1], "--variant", "progressive", "pivotal").second
    assert progressive is not None
    assert not progressive.model.params.personalization_config.params.progressive_words


@pytest.mark.parametrize("base", BASES)
@pytest.mark.parametrize("name", REFERENCES)
def test_references_are_not_trained(name: str, base: str, files: Path) -> None:
    assert find_variant(name).source == REFERENCES[name]
    with pytest.raises(UserError, match=f"variant {name} learns nothing.*evaluate_model.py"):
        load(files, base, "--variant", name)
    with pytest.raises(UserError, match=f"variant {name} learns nothing.*evaluate_model.py"):
        load(files, base, "--base", str(ROOT / base), f"configs/variants/{name}.yaml")


def test_an_unknown_name_is_met_with_the_nearest() -> None:
    with pytest.raises(UserError, match=r"no variant 'two_word': there are two_words, three_words"):
        find_variant("two_word")
    with pytest.raises(UserError, match=r"no variant '../finetune'"):
        find_variant("../finetune")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("model: {}", "expected variant: {about"),
        ("variant: {source: learned}", "variant.about must be one sentence, got None"),
        ("variant: {about: x, source: dreams}", "variant.source must be one of learned, captions"),
        ("variant: {about: x, source: learned, of: y}", "unknown key variant.of"),
        ("variant: {", "cannot read variant"),
        ("- 1", "expected variant: {about"),
    ],
)
def test_a_file_that_does_not_say_what_it_is(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text(text)
    with pytest.raises(UserError, match=message):
        find_variant("mine", tmp_path)


def test_a_variant_of_ones_own(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("variant: {about: Mine., source: learned}")
    found = find_variant("mine", tmp_path)
    assert (found.name, found.path, found.source) == ("mine", tmp_path / "mine.yaml", "learned")


def test_a_second_stage_may_not_change_the_run(files: Path) -> None:
    with pytest.raises(UserError, match=r"unknown configuration key 'second_stage\.run'"):
        load(files, BASES[1], "second_stage.run.seed=3")


def test_the_fast_variant_decays_to_its_own_last_step(
    learn: Callable[..., Outcome],
) -> None:
    """Learning rate and steps go together, whatever --max_steps says."""
    outcome = learn("fast", "--variant", "fast", "--max_steps", "4")
    assert outcome.status == 0
    config = load_stored(outcome.folder)
    assert config.model.params.scheduler_config.params.max_decay_steps == 4
    assert config.model.params.timestep_strata == 8


def load_stored(folder: Path) -> Any:
    """The configuration that a run stored."""
    return OmegaConf.load(next((folder / "configs").glob("*-project.yaml")))
