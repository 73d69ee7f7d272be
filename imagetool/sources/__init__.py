"""Source images: registries, OCI layouts, archives, the Docker daemon, plain tars."""
