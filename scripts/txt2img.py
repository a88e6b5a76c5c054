#!/usr/bin/env python
"""Draw images from text with the 1.4B latent diffusion model: `--help` has examples."""

from ldm.cli.txt2img import main
from ldm.cli.txt2img_options import LATENT_DIFFUSION
from ldm.util import cli_main

if __name__ == "__main__":
    cli_main(lambda: main(LATENT_DIFFUSION))
