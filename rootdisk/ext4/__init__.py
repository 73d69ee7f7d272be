"""The structures of an ext4 disk, one spelling for the writer, the reader and the runner's larger disks.

    block 0          superblock at byte 1024              superblock.py
    blocks 1 …       descriptors of all groups            groups.py
    then             bitmaps and inode tables, for up to 16 groups together (flex_bg)
    then             journal, directories, file data      imagetool/ext4/plan.py places them
    groups 1, 3ⁿ, 5ⁿ, 7ⁿ begin with a copy of superblock and descriptors (sparse_super)

format.py has the structures and numbers, checksum.py the checksums, inodes.py the fields of an inode in pieces.
Standard library only.
"""
