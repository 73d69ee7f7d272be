"""Logs of sandboxes and events of a store: written within bounds, and read as lines."""
