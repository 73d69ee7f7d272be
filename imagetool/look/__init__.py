"""Read-only views of images, artifacts and disks: inspect, ls, stat, cat, diff, explain, map."""
