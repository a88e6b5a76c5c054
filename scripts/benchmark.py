#!/usr/bin/env python
"""Compare variants of the training and the drawing step in one run: `--help` has examples."""

from ldm.cli.benchmark import main
from ldm.util import cli_main

if __name__ == "__main__":
    cli_main(main)
