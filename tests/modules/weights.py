"""Weights for tests: every tensor is random, so that no branch starts as nothing."""

import torch


def randomize(module, seed=0):
    """Fill a module's weights with noise that keeps activations near 1; return the module."""
    rng = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in module.named_parameters():
            spread = 0.2 if weight.ndim < 2 else weight[0].numel() ** -0.5
            weight.copy_(torch.randn(weight.shape, generator=rng) * spread)
            if weight.ndim == 1 and name.endswith("weight"):
                weight.add_(1)
    return module
