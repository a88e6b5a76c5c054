"""The command lines; the files in scripts/ only call them."""
