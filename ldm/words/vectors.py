"""The learned words' vectors by placeholder, which may be any text."""

from __future__ import annotations

from torch import nn

# PyTorch keeps dots for the levels of a name. They are stored as a private-use character.
DOT = "\ue000"
# The prefix of a name that the class uses itself, such as "keys" or "train".
RESERVED = "\ue001"
TAKEN = frozenset(dir(nn.ParameterDict()))


def stored_name(placeholder: str) -> str:
    """Return a placeholder's name in the state dict: itself, if PyTorch accepts it."""
    return (RESERVED if placeholder in TAKEN else "") + placeholder.replace(".", DOT)


def placeholder_of(name: str) -> str:
    """Return the placeholder that `stored_name` gave a name."""
    return name.removeprefix(RESERVED).replace(DOT, ".")


class WordVectors(nn.ParameterDict):
    """Placeholder → vectors [k, d]; a `ParameterDict` whose keys may be any text."""

    def _key_to_attr(self, key: str) -> str:
        return stored_name(key)
