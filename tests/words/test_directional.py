"""Directional words: the step against numpy, what it may never do, what is saved and refused."""

import copy
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.testing import assert_close

from ldm.util import UserError
from ldm.words.directional import (
    DirectionalDescent,
    DirectionalEmbeddingManager,
    spherical_step,
)
from ldm.words.files import read_words, write_words
from ldm.words.manager import EmbeddingManager
from ldm.words.sphere import angles, directions
from tests.words.word_doubles import FakeEmbedder

SEEDS = st.integers(0, 2**31)
RATES = st.floats(1e-4, 1.0)
RADII = st.floats(0.05, 20)


def draw(seed, k=2, d=8):
    return torch.randn(k, d, generator=torch.Generator().manual_seed(seed))


def unit(seed, k=2):
    return directions(draw(seed, k))


def numpy_step(word, gradient, mean, radius, kappa, rate):
    """The paper's update, a row at a time, in double precision."""
    new = []
    for e, d_loss, mu in zip(word, gradient, mean, strict=True):
        u = e / np.sqrt(np.sum(e**2))
        g = radius * d_loss - kappa * mu
        g = g - np.dot(g, u) * u
        g = g / np.sqrt(np.sum(g**2))
        u = u - rate * g
        new.append(radius * u / np.sqrt(np.sum(u**2)))
    return np.stack(new)


@given(SEEDS, RADII, RATES, st.floats(0, 10))
def test_a_step_equals_the_papers_formula(seed, radius, rate, kappa):
    word, gradient, mean = radius * unit(seed), draw(seed + 1), unit(seed + 2)
    got = spherical_step(word, gradient, mean, radius, kappa, rate)
    arrays = [t.double().numpy() for t in (word, gradient, mean)]
    want = torch.from_numpy(numpy_step(*arrays, radius, kappa, rate)).float()
    assert_close(got, want, atol=1e-4 * radius, rtol=1e-4)


@given(SEEDS, RADII, RATES)
def test_a_step_turns_each_vector_by_the_rates_angle_and_keeps_its_norm(seed, radius, rate):
    word = radius * unit(seed)
    stepped = spherical_step(word, 100 * draw(seed + 1), unit(seed + 2), radius, 1e-4, rate)
    assert_close(stepped.norm(dim=-1), torch.full((2,), radius))
    turned = angles(directions(word), directions(stepped))
    assert_close(turned, torch.full((2,), math.atan(rate)), atol=1e-5, rtol=1e-3)


@given(SEEDS)
def test_a_small_step_goes_downhill(seed):
    word, target = unit(seed), unit(seed + 1)
    gradient = word - target  # of half the square distance
    stepped = spherical_step(word, gradient, word, 1.0, 0.0, 1e-3)
    assert ((stepped - target).norm(dim=-1) < (word - target).norm(dim=-1)).all()


@given(SEEDS)
def test_no_gradient_moves_nothing(seed):
    word, mean = 3 * unit(seed), unit(seed + 1)
    assert torch.equal(spherical_step(word, torch.zeros_like(word), mean, 3.0, 1e-4, 0.1), word)
    # Nor do a gradient away from the centre, whose rest along the sphere is rounding, and nan.
    assert torch.equal(spherical_step(word, 5 * word, mean, 3.0, 0.0, 0.1), word)
    assert torch.equal(spherical_step(word, word * math.nan, mean, 3.0, 1e-4, 0.1), word)


def test_a_vector_that_no_caption_names_stays_while_others_move():
    word, gradient = unit(0), draw(1)
    gradient[0] = 0
    stepped = spherical_step(word, gradient, unit(2), 1.0, 1e-4, 0.1)
    assert torch.equal(stepped[0], word[0])
    assert not torch.equal(stepped[1], word[1])


def test_a_strong_prior_leads_to_the_first_word():
    word, mean = nn.Parameter(2 * unit(0)), unit(1)
    optimizer = DirectionalDescent([word], [mean], lr=0.02, radius=2.0, kappa=1e6)
    apart = []
    for step in range(300):
        word.grad = draw(step + 2)
        optimizer.step()
        apart.append(float(angles(directions(word.detach()), mean).max()))
    assert apart[0] > 0.5
    assert max(apart[-50:]) < 0.02  # within a step of it


def test_the_norm_stays_over_many_noisy_steps():
    word = nn.Parameter(0.4 * unit(0))
    optimizer = DirectionalDescent([word], [unit(1)], lr=0.04, radius=0.4, kappa=1e-4)
    for step in range(400):
        word.grad = draw(step)
        optimizer.step()
    assert_close(word.detach().norm(dim=-1), torch.full((2,), 0.4))


def test_the_optimizer_finds_the_direction_of_a_target():
    target = unit(5)
    word = nn.Parameter(1.5 * unit(0))
    optimizer = DirectionalDescent([word], [unit(0)], lr=0.05, radius=1.5, kappa=1e-4)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda n: 1 - n / 300)
    for _ in range(300):

        def closure():
            optimizer.zero_grad()
            loss = (word / 1.5 - target).square().sum()
            loss.backward()
            return loss

        loss = optimizer.step(closure)
        schedule.step()
    assert loss.item() < 1e-4
    assert_close(directions(word.detach()), target, atol=1e-2, rtol=0)


def test_a_stored_optimizer_goes_on_bit_for_bit():
    def make(vectors):
        word = nn.Parameter(vectors)
        return word, DirectionalDescent([word], [unit(9)], lr=0.1, radius=2.0, kappa=0.5)

    word, optimizer = make(2 * unit(0))
    word.grad = draw(1)
    optimizer.step()
    again, resumed = make(word.detach().clone())
    # Another first word's mean, were it not stored.
    resumed.state[again]["mean"] = unit(3)
    resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for seed in range(2, 9):
        for parameter, one in ((word, optimizer), (again, resumed)):
            parameter.grad = draw(seed)
            one.step()
    assert torch.equal(word, again)


def test_words_without_a_gradient_are_passed_over():
    moved, idle = nn.Parameter(unit(0)), nn.Parameter(unit(1))
    before = idle.detach().clone()
    optimizer = DirectionalDescent([moved, idle], [unit(2)] * 2, lr=0.1, radius=1, kappa=1)
    moved.grad = draw(3)
    optimizer.step()
    assert torch.equal(idle, before)


@pytest.mark.parametrize("value", [{"lr": 0.0}, {"radius": 0.0}, {"kappa": -1.0}, {"lr": math.nan}])
def test_values_out_of_range_are_refused(value):
    (name,) = value
    options = {"lr": 0.1, "radius": 1.0, "kappa": 0.0, **value}
    with pytest.raises(ValueError, match=f"{name} must be"):
        DirectionalDescent([nn.Parameter(unit(0))], [unit(1)], **options)


@pytest.fixture
def embedder():
    return FakeEmbedder()


def mean_norm(embedder):
    return embedder.vocab_table.norm(dim=-1).mean()


def make(embedder, k=2, first=("cat",), placeholders=("*",), **options):
    return DirectionalEmbeddingManager(
        embedder,
        placeholder_strings=list(placeholders),
        initializer_words=list(first),
        num_vectors_per_token=k,
        **options,
    )


class TestWords:
    def test_start_in_the_first_words_direction_at_the_vocabularys_norm(self, embedder):
        word = make(embedder).word("*").detach()
        cat = embedder.vocab_table[embedder.word_ids("cat")]
        assert_close(directions(word), directions(cat).expand(2, -1))
        assert_close(word.norm(dim=-1), mean_norm(embedder).expand(2))

    def test_are_plain_vectors_in_their_file(self, embedder, tmp_path):
        manager = make(embedder, kappa=1e-3)
        for suffix in (".pt", ".safetensors"):
            path = tmp_path / f"word{suffix}"
            manager.save(path, {"step": "7"})
            file = read_words(path)
            assert torch.equal(file.words["*"], manager.word("*"))
            facts = file.metadata
            assert (facts["parameterization"], facts["kappa"]) == ("directional", "0.001")
            assert float(facts["norm"]) == pytest.approx(float(mean_norm(embedder)), rel=1e-5)
            assert facts["step"] == "7"
            plain = EmbeddingManager(embedder, [])
            plain.load(path)
            assert torch.equal(plain.word("*"), manager.word("*"))

    def test_each_have_their_sphere_and_their_first_word(self, embedder):
        manager = make(embedder, first=("cat", "moon"), placeholders=("*", "@"))
        optimizer = manager.make_optimizer([{"params": list(manager.parameters())}], 0.1)
        (group,) = optimizer.param_groups
        assert [id(p) for p in group["params"]] == [id(manager.word(p)) for p in ("*", "@")]
        for word, first in (("*", "cat"), ("@", "moon")):
            mean = directions(embedder.vocab_table[embedder.word_ids(first)]).expand(2, -1)
            assert_close(optimizer.state[manager.word(word)]["mean"], mean)
        manager.word("*").grad = draw(0, 2, 6)
        manager.word("@").grad = draw(1, 2, 6)
        optimizer.step()
        for word in ("*", "@"):
            assert_close(manager.word(word).detach().norm(dim=-1), mean_norm(embedder).expand(2))

    def test_from_elsewhere_are_drawn_as_they_are_and_put_on_the_sphere_to_train(
        self, embedder, tmp_path
    ):
        path = tmp_path / "far.safetensors"
        far = 30 * draw(0, 2, 6)
        write_words(path, {"*": far})
        manager = make(embedder)
        manager.load(path)
        assert torch.equal(manager.word("*"), far)
        manager.make_optimizer([{"params": list(manager.parameters())}], 0.1)
        placed = manager.word("*").detach().clone()
        assert_close(directions(placed), directions(far))
        assert_close(placed.norm(dim=-1), mean_norm(embedder).expand(2))
        manager.make_optimizer([{"params": list(manager.parameters())}], 0.1)
        assert torch.equal(manager.word("*"), placed)

    @pytest.mark.parametrize("norm", ["median", 0.25])
    def test_may_keep_another_norm(self, embedder, norm):
        embedder.vocab_table[:3] *= 100
        wanted = (
            embedder.vocab_table.norm(dim=-1).median() if norm == "median" else torch.tensor(norm)
        )
        manager = make(embedder, norm=norm)
        assert_close(manager.word("*").detach().norm(dim=-1), wanted.expand(2))
        optimizer = manager.make_optimizer([{"params": list(manager.parameters())}], 0.1)
        manager.word("*").grad = draw(0, 2, 6)
        optimizer.step()
        assert_close(manager.word("*").detach().norm(dim=-1), wanted.expand(2))

    def test_regularisation_measures_from_the_sphere(self, embedder):
        assert make(embedder).distance_to_initializers().item() == 0


class TestRefused:
    @pytest.mark.parametrize("first", [(), ("",)])
    def test_a_word_without_a_first_word(self, embedder, first):
        with pytest.raises(UserError, match=r"'\*' has none: give it in initializer_words"):
            make(embedder, first=first)

    def test_a_loaded_word_without_one(self, embedder, tmp_path):
        path = tmp_path / "other.safetensors"
        write_words(path, {"@": draw(0, 1, 6)})
        manager = make(embedder)
        manager.load(path)
        with pytest.raises(UserError, match="'@' has none"):
            manager.make_optimizer([{"params": list(manager.parameters())}], 0.1)

    def test_words_of_single_images(self, embedder):
        with pytest.raises(UserError, match="set per_image_tokens to false"):
            make(embedder, per_image_tokens=True)

    def test_networks_trained_beside_the_words(self, embedder):
        manager = make(embedder)
        groups = [{"params": list(manager.parameters())}, {"params": [nn.Parameter(draw(0))]}]
        with pytest.raises(UserError, match="set unfreeze_model to false"):
            manager.make_optimizer(groups, 0.1)

    def test_a_first_word_of_zeros(self, embedder):
        embedder.vocab_table[embedder.word_ids("cat")] = 0
        with pytest.raises(UserError, match="'cat' has a vector of zeros"):
            make(embedder)

    @pytest.mark.parametrize("norm", ["mode", 0.0, -1, math.nan, math.inf])
    def test_a_norm_that_is_none(self, embedder, norm):
        with pytest.raises(ValueError, match="norm must be 'mean', 'median' or a number above 0"):
            make(embedder, norm=norm)

    def test_a_negative_prior(self, embedder):
        with pytest.raises(ValueError, match="kappa must be at least 0, got -1"):
            make(embedder, kappa=-1)
