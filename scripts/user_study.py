#!/usr/bin/env python
"""Make the user study's questionnaires and analyse their answers: `--help` has examples."""

from ldm.cli.commands import user_study

if __name__ == "__main__":
    user_study()
