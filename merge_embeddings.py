#!/usr/bin/env python
"""Merge files of learned words into one: `--help` has examples."""

from ldm.cli.merge import main
from ldm.util import cli_main

if __name__ == "__main__":
    cli_main(main)
