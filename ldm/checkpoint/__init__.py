"""Model files: reading them safely, their names, loading, weight deltas."""

from ldm.checkpoint.names import published_names as published_names
