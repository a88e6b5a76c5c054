"""Edits of a given image: inside a mask, or by keeping the noise that it is drawn from."""
