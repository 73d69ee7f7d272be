"""Signing of what is published: keys, signatures, and how they are attached."""
