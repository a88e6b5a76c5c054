#!/usr/bin/env python
"""Generate images from an image and a prompt: `--help` has examples."""

from ldm.cli.commands import img2img

if __name__ == "__main__":
    img2img()
