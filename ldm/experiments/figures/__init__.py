"""The paper's figures, made with the miniature, or with another model by `--model`."""
