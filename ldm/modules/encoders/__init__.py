"""Text, class and image conditioners."""
