"""Model files: reading them safely, their names, loading, weight deltas."""
