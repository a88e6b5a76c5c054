#!/usr/bin/env python
"""Edit an image inside a mask: `--help` has examples."""

from ldm.cli.commands import edit

if __name__ == "__main__":
    edit()
