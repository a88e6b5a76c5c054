#!/usr/bin/env python
"""Compare variants of the training and the sampling step in one run: `--help` has examples."""

from ldm.cli.commands import benchmark

if __name__ == "__main__":
    benchmark()
