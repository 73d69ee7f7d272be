"""Fetch, verify, clone and boot rootdisk artifacts. This package needs nothing that only builds need."""
