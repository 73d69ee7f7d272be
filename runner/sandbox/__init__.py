"""Sandboxes: their directories, their start, the keeper process, and what prune may remove."""
