"""Shared code of both tools: OCI documents, registries, artifacts, ext4 structures, crash-safe files.

It imports neither imagetool nor runner. Loading a module of it loads only the standard library, unless it says otherwise.
"""

__version__ = "0.1.0"
