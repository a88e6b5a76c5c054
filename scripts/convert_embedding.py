#!/usr/bin/env python
"""Write a word's file in the form of another tool: `--help` has examples."""

from ldm.cli.commands import convert_embedding

if __name__ == "__main__":
    convert_embedding()
