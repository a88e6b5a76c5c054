"""What holds for every test: nothing is fetched, and hypothesis does not time a busy machine."""

from __future__ import annotations

import os

from hypothesis import settings

# Before transformers is imported: a test that needs a hub must fail here, not on the next machine.
os.environ.setdefault("HF_HUB_OFFLINE", "1")

settings.register_profile("steady", deadline=None, derandomize=True, max_examples=50)
settings.load_profile("steady")
