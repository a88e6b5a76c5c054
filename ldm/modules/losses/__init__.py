"""Losses that train an autoencoder."""

from ldm.modules.losses.adversarial import LPIPSWithDiscriminator
from ldm.modules.losses.reconstruction import KLReconstruction

__all__ = ["KLReconstruction", "LPIPSWithDiscriminator"]
