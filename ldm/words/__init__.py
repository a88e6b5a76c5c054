"""A learned word, from its initializer word to its file."""
