#!/usr/bin/env python
"""Generate images from text with Stable Diffusion 1: `--help` has examples."""

from ldm.cli.commands import stable_txt2img

if __name__ == "__main__":
    stable_txt2img()
