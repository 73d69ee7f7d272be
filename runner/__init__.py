"""Fetches, verifies, copies and boots rootdisk artifacts. Imports nothing that only building needs."""
