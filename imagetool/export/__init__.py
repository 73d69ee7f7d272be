"""Artifacts for other machines than the runner's: a directory that QEMU or Firecracker boots, and KubeVirt's container disk."""
