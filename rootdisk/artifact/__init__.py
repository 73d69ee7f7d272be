"""The artifact's format, its frames, and a published artifact opened."""
