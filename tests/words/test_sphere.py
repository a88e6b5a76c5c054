"""Directions and the shortest way between two: closed forms, and what must always hold."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.testing import assert_close

from ldm.words.sphere import angles, blend, directions, slerp, tangent

SEEDS = st.integers(0, 2**31)


def unit(seed, k=2, d=5, dtype=torch.float32):
    rng = torch.Generator().manual_seed(seed)
    return directions(torch.randn(k, d, generator=rng, dtype=dtype))


@given(SEEDS, SEEDS)
def test_the_way_begins_at_one_and_ends_at_the_other(one, other):
    a, b = unit(one), unit(other)
    assert_close(slerp(a, b, 0.0), a)
    assert_close(slerp(a, b, 1.0), b)


def test_halfway_between_orthogonal_vectors_is_the_diagonal():
    a, b = torch.eye(3)[:1], torch.eye(3)[1:2]
    assert_close(slerp(a, b, 0.5), torch.tensor([[1.0, 1.0, 0.0]]) / math.sqrt(2))
    third = torch.tensor([[math.cos(math.pi / 6), math.sin(math.pi / 6), 0.0]])
    assert_close(slerp(a, b, 1 / 3), third)


@given(SEEDS, SEEDS, st.floats(0, 1))
def test_it_stays_on_the_sphere_and_turns_evenly(one, other, t):
    a, b = unit(one).double(), unit(other).double()
    between = slerp(a, b, t)
    assert_close(between.norm(dim=-1), torch.ones(2, dtype=torch.float64))
    assert_close(angles(a, between), t * angles(a, b), atol=1e-7, rtol=1e-6)
    assert_close(between, slerp(b, a, 1 - t))


def test_one_direction_stays_where_it_is():
    a = unit(0)
    assert_close(slerp(a, a, 0.3), a)
    near = directions(a + 1e-7)
    assert_close(slerp(a, near, 0.5), a, atol=1e-6, rtol=0)


def test_opposite_directions_are_refused():
    a = unit(0)
    with pytest.raises(ValueError, match="must not be opposite"):
        slerp(a, torch.cat([a[:1], -a[1:]]), 0.5)


@pytest.mark.parametrize("t", [-0.1, 1.1, math.nan])
def test_a_share_out_of_range_is_refused(t):
    with pytest.raises(ValueError, match=r"t must lie in \[0, 1\]"):
        slerp(unit(0), unit(1), t)


def test_a_row_of_zeros_has_no_direction():
    with pytest.raises(ValueError, match="row of zeros"):
        directions(torch.tensor([[1.0, 0.0], [0.0, 0.0]]))


@given(SEEDS, SEEDS)
def test_what_lies_along_the_sphere_is_orthogonal_to_its_point(one, other):
    u, g = unit(one, dtype=torch.float64), 7 * unit(other, dtype=torch.float64)
    along = tangent(g, u)
    assert_close((along * u).sum(-1), torch.zeros(2, dtype=torch.float64), atol=1e-12, rtol=0)
    assert_close(tangent(along, u), along)


@given(SEEDS, SEEDS, st.floats(0, 1), st.floats(0.1, 10), st.floats(0.1, 10))
def test_a_blend_has_the_directions_between_and_the_norms_between(one, other, t, long, longer):
    a, b = unit(one), unit(other)
    mixed = blend(long * a, longer * b, t)
    assert_close(mixed.norm(dim=-1), torch.full((2,), (1 - t) * long + t * longer))
    assert_close(directions(mixed), slerp(a, b, t), atol=1e-5, rtol=1e-5)


def test_a_blend_needs_one_shape():
    with pytest.raises(ValueError, match=r"one shape, got \(2, 5\) and \(3, 5\)"):
        blend(unit(0), unit(1, k=3), 0.5)
