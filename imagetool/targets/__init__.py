"""Places to publish to: registries, OCI layouts, archives. Copy, index, attach and prune."""
