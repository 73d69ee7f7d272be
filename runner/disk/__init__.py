"""The disk of a sandbox: clone, qcow2 overlay, larger file system, slot."""
