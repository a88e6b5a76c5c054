#!/usr/bin/env python
"""Edit an image inside a mask: `--help` has examples."""

from ldm.cli.edit import main
from ldm.util import cli_main

if __name__ == "__main__":
    cli_main(main)
