"""The demo: one word learned, scored and shown on a page."""
