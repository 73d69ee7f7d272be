"""OCI documents, references, the repository protocol, and OCI layouts on disk."""
