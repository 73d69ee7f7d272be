"""Pictures of a disk: one HTML page with what lies where, how large files are, what a pull reuses, what a boot reads."""
