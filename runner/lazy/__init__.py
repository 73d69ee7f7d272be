"""Disks that are still being fetched: a server for each, which machines read from while it fills the disk."""
