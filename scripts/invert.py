#!/usr/bin/env python
"""Find an image's noise and draw it again under other prompts: `--help` has examples."""

from ldm.cli.invert import main
from ldm.util import cli_main

if __name__ == "__main__":
    cli_main(main)
