#!/usr/bin/env python
"""Learn a word with the miniature and draw it: `--help` has examples, `make demo` runs it."""

from ldm.cli.demo import main
from ldm.util import cli_main

if __name__ == "__main__":
    cli_main(main)
