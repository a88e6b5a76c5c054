"""Code that reproduces the paper's experiments; only the command lines import it."""
