"""Datasets: images and captions by sample index. A leaf: nothing here imports a network."""
