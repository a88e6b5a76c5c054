#!/usr/bin/env python
"""Keep the best word of a run, chosen by scores: `--help` has the rule."""

from ldm.cli.commands import select

if __name__ == "__main__":
    select()
