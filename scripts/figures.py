#!/usr/bin/env python
"""Make the paper's figures: `--help` has examples."""

from ldm.cli.commands import figures

if __name__ == "__main__":
    figures()
