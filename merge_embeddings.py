#!/usr/bin/env python
"""Merge files of learned words into one: `--help` has examples."""

from ldm.cli.commands import merge

if __name__ == "__main__":
    merge()
