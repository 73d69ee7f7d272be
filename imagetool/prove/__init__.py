"""Proofs of determinism: verify an artifact, reproduce a build."""
