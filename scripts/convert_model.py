#!/usr/bin/env python
"""Write a base as one file or as a folder of diffusers: `--help` has examples."""

from ldm.cli.commands import convert_model

if __name__ == "__main__":
    convert_model()
