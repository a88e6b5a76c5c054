#!/usr/bin/env python
"""Generate images from text with the 1.4B latent diffusion model: `--help` has examples."""

from ldm.cli.commands import txt2img

if __name__ == "__main__":
    txt2img()
