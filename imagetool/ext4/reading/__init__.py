"""The parts of the reader: volume (superblock, groups, inodes), data (extents, bytes, attributes), names (directories).

What is read may be hostile: every checksum there is is compared, every number bounded before it is used, no loop goes
on without end, and nothing is believed twice.
"""
