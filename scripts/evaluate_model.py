#!/usr/bin/env python
"""Score a learned word by the paper's protocol: `--help` has examples."""

from ldm.cli.commands import evaluate

if __name__ == "__main__":
    evaluate()
