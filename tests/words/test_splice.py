"""Splicing against a row-by-row reference."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ldm.words.vectors import splice


def by_rows(ids, vectors, token_ids, words):
    """Build each row as a list: the word's vectors where its token stands, cut at n."""
    rows = []
    for row_ids, row in zip(ids.tolist(), vectors, strict=True):
        out = []
        for token, vector in zip(row_ids, row, strict=True):
            out += list(words[token_ids.index(token)]) if token in token_ids else [vector]
        rows.append(torch.stack(out[: ids.shape[1]]))
    return torch.stack(rows)


@st.composite
def texts(draw):
    b, n, w = draw(st.integers(1, 3)), draw(st.integers(1, 9)), draw(st.integers(1, 3))
    ids = draw(
        st.lists(st.lists(st.integers(0, 5), min_size=n, max_size=n), min_size=b, max_size=b)
    )
    token_ids = draw(st.permutations(range(6)))[:w]
    counts = draw(st.lists(st.integers(1, 4), min_size=w, max_size=w))
    return torch.tensor(ids), list(token_ids), counts


@settings(max_examples=200, deadline=None)
@given(texts(), st.integers(0, 2**31))
def test_equals_the_row_by_row_reference_in_value_and_gradient(text, seed):
    ids, token_ids, counts = text
    rng = torch.Generator().manual_seed(seed)
    vectors = torch.randn(*ids.shape, 4, generator=rng, dtype=torch.float64, requires_grad=True)
    words = [
        torch.randn(k, 4, generator=rng, dtype=torch.float64, requires_grad=True) for k in counts
    ]
    got = splice(ids, vectors, torch.tensor(token_ids), words)
    want = by_rows(ids, vectors, token_ids, words)
    torch.testing.assert_close(got, want, rtol=0, atol=0)
    weight = torch.randn(want.shape, generator=rng, dtype=torch.float64)
    inputs = [vectors, *words]
    got_grads = torch.autograd.grad((got * weight).sum(), inputs)
    want_grads = torch.autograd.grad((want * weight).sum(), inputs, materialize_grads=True)
    torch.testing.assert_close(got_grads, want_grads)


def test_leaves_its_input_alone_and_keeps_its_type():
    vectors = torch.zeros(1, 3, 2, dtype=torch.bfloat16)
    ids = torch.tensor([[7, 1, 2]])
    out = splice(ids, vectors, torch.tensor([7]), [torch.ones(2, 2)])
    assert out.dtype == torch.bfloat16
    assert out[0, :, 0].tolist() == [1, 1, 0]
    assert vectors.sum() == 0
    assert ids.tolist() == [[7, 1, 2]]


@pytest.mark.gpu
def test_runs_where_the_text_is():
    ids = torch.randint(0, 5, (2, 8))
    vectors, words = torch.randn(2, 8, 4), [torch.randn(3, 4), torch.randn(1, 4)]
    want = splice(ids, vectors, torch.tensor([1, 3]), words)
    got = splice(ids.cuda(), vectors.cuda(), torch.tensor([1, 3]).cuda(), [w.cuda() for w in words])
    torch.testing.assert_close(got.cpu(), want)
