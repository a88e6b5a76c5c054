"""The command lines of drawing and merging; the files in scripts/ only call them."""
