#!/usr/bin/env python
"""Draw images from text with Stable Diffusion 1: `--help` has examples."""

from ldm.cli.txt2img import main
from ldm.cli.txt2img_options import STABLE_DIFFUSION
from ldm.util import cli_main

if __name__ == "__main__":
    cli_main(lambda: main(STABLE_DIFFUSION))
