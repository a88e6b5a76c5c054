"""Edits of a given image: inside a mask, or by keeping its noise."""
