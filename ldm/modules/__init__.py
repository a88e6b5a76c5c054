"""Networks and the embedding manager."""
