"""The name by which YAML files of the original code base find the manager: `ldm.words.manager`."""

from ldm.words.manager import EmbeddingManager as EmbeddingManager
