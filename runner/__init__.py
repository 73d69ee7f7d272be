"""Fetches, verifies, copies and boots rootdisk artifacts. Imports nothing that only building needs."""

__version__ = "0.1.0"
