"""Words of docker and podman, and ours for each."""
