"""The Python API: sandboxes from programs. `runner` has its names; import them from there."""
