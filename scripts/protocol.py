#!/usr/bin/env python
"""Make a table of runs, concepts × variants × seeds × prompts: `--help` has examples."""

from ldm.cli.commands import protocol

if __name__ == "__main__":
    protocol()
