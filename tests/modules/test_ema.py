"""The averaged copy of weights against its recursion."""

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from ldm.modules.ema import LitEma


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(2, 3), nn.Sequential(nn.Linear(3, 1)))


@pytest.mark.parametrize("warm_up", [True, False])
def test_recursion(warm_up):
    net = network()
    net[0].bias.requires_grad_(False)
    ema = LitEma(net, decay=0.6, use_num_upates=warm_up)
    names = {"decay", "num_updates", "0weight", "10weight", "10bias"}
    assert set(ema.state_dict()) == names
    expected = net[0].weight.detach().clone()
    for n in range(1, 12):
        with torch.no_grad():
            net[0].weight.add_(0.1 * n)
        ema(net)
        decay = min(0.6, (1 + n) / (10 + n)) if warm_up else 0.6
        expected = decay * expected + (1 - decay) * net[0].weight.detach()
        assert_close(getattr(ema, "0weight"), expected)
    assert int(ema.num_updates) == (11 if warm_up else -1)


def test_scope_gives_and_takes_back():
    net = network()
    ema = LitEma(net)
    first = {n: p.detach().clone() for n, p in net.named_parameters()}
    with torch.no_grad():
        for p in net.parameters():
            p.mul_(2)
    with ema.applied_to(net):
        assert_close({n: p.detach() for n, p in net.named_parameters()}, first)
    assert_close(
        {n: p.detach() for n, p in net.named_parameters()}, {n: 2 * v for n, v in first.items()}
    )


def test_a_resumed_copy_continues_where_it_was():
    net = network()
    ema, other = LitEma(net, 0.6), LitEma(network(), 0.9)
    for _ in range(4):
        with torch.no_grad():
            net[0].weight.add_(1.0)
        ema(net)
    other.load_state_dict(ema.state_dict())
    ema(net)
    other(net)
    assert_close(other.state_dict(), ema.state_dict())


def test_decay_is_checked():
    with pytest.raises(ValueError, match=r"decay must lie in \[0, 1\], got 1.5"):
        LitEma(network(), 1.5)
