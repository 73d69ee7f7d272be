"""The store as a read-only OCI registry, for other hosts' runners: `runner serve`."""
