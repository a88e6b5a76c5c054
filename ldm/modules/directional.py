"""The name by which older YAML files find the directional manager: `ldm.words.directional`."""

from ldm.words.directional import DirectionalEmbeddingManager as DirectionalEmbeddingManager
