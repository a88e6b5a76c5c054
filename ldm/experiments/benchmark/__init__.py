"""The benchmark of speed and memory: `scripts/benchmark.py`."""
