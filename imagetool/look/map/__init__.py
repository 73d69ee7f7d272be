"""Pictures of a disk in an HTML page: blocks by layer, files by size, chunks reused by a pull, reads of a boot."""
