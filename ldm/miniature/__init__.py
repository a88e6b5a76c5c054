"""The model that ships with the project: its world, training and measurement."""
