"""The learning rate's multipliers in closed form."""

import math

import pytest
import torch

from ldm.lr_scheduler import (
    LambdaLinearScheduler,
    LambdaWarmUpCosineScheduler,
    LambdaWarmUpCosineScheduler2,
    LambdaWarmUpStableDecayScheduler,
)


def test_warm_up_and_cosine():
    f = LambdaWarmUpCosineScheduler(10, 0.1, 1.0, 0.2, 110, verbosity_interval=0)
    assert [f(n) for n in (0, 5, 10)] == pytest.approx([0.2, 0.6, 1.0])
    assert f(60) == pytest.approx(0.55)
    assert f(35) == pytest.approx(0.1 + 0.45 * (1 + math.cos(math.pi / 4)))
    assert f(110) == f(1000) == f.schedule(200) == pytest.approx(0.1)
    assert LambdaWarmUpCosineScheduler(0, 0.0, 1.0, 0.5, 0)(0) == 1.0


def test_cycles():
    f = LambdaWarmUpCosineScheduler2([2, 1], [0.1, 0.2], [1.0, 0.5], [0.0, 0.3], [10, 5])
    assert [f(n) for n in (0, 1, 2, 6)] == pytest.approx([0.0, 0.5, 1.0, 0.55])
    assert f(10) == pytest.approx(0.1)  # the first cycle's end
    assert f(11) == pytest.approx(0.5)  # the second's top, after its one step of warm-up
    assert f(15) == f(99) == pytest.approx(0.2)
    with pytest.raises(ValueError, match="one entry a cycle"):
        LambdaWarmUpCosineScheduler2([1], [0.1], [1.0], [0.0], [10, 5])


def test_warm_up_constant_and_decay():
    f = LambdaWarmUpStableDecayScheduler(4, 10, 5, lr_min=0.1)
    assert [f(n) for n in (0, 1, 3, 4, 10)] == pytest.approx([0.25, 0.5, 1.0, 1.0, 1.0])
    assert [f(n) for n in (11, 12, 15, 99)] == pytest.approx([0.82, 0.64, 0.1, 0.1])
    with pytest.raises(ValueError, match="decay_steps must be at least 1, got 0"):
        LambdaWarmUpStableDecayScheduler(4, 10, 0)


def test_straight_lines():
    f = LambdaLinearScheduler([4], [0.5], [1.0], [0.0], [20])
    assert [f(n) for n in (0, 2)] == pytest.approx([0.0, 0.5])
    # As in the original, the line runs over the whole cycle, its warm-up included.
    assert [f(n) for n in (4, 10, 20, 30)] == pytest.approx([0.9, 0.75, 0.5, 0.5])


def test_torch_takes_them_and_keeps_their_state():
    weight = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([weight], lr=2.0)
    scheduler = torch.optim.lr_scheduler.LambdaLR(
        optimizer, LambdaWarmUpCosineScheduler(4, 0.0, 1.0, 0.0, 8)
    )
    rates = []
    for _ in range(3):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    assert rates == pytest.approx([0.0, 0.5, 1.0])
    assert "warm_up_steps" in scheduler.state_dict()["lr_lambdas"][0]
