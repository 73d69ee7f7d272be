"""The ground that both tools stand on: documents, registries, artifacts, ext4 structures, files that survive a crash.

Imports neither imagetool nor runner, and only the standard library when it is loaded.
"""

__version__ = "0.1.0"
