"""The name by which YAML files find the miniature's world: `ldm.miniature.world`."""

from ldm.miniature.world import MiniatureWorld as MiniatureWorld
