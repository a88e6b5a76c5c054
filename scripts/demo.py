#!/usr/bin/env python
"""Learn a word with the miniature and generate its images: see `--help`; `make demo` runs it."""

from ldm.cli.commands import demo

if __name__ == "__main__":
    demo()
