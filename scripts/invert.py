#!/usr/bin/env python
"""Find an image's noise and generate from it with other prompts: `--help` has examples."""

from ldm.cli.commands import invert

if __name__ == "__main__":
    invert()
