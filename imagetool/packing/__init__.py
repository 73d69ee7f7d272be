"""Plan to packed disk: chunks, blobs, chunk index, manifest; and reuse of earlier disks."""
