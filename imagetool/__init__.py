"""Turns OCI images into versioned, compressed, bootable ext4 root disks, and publishes them as OCI artifacts."""
