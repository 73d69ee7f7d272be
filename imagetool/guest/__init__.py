"""The guest's boot files: the init in C, kernel packages, initramfs."""
