"""The build pipeline: derivation key, layers, disk, artifact, publishing, and the registry as build cache."""
