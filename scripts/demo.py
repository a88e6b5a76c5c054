#!/usr/bin/env python
"""Learn a word with the miniature and draw it: `--help` has examples, `make demo` runs it."""

from ldm.cli.commands import demo

if __name__ == "__main__":
    demo()
