"""Software bills of material: which packages a disk has, read from their databases without running anything."""
