"""The benchmark grid: concepts × variants × seeds, resumable."""
