"""Tree in, ext4 out: our own deterministic writer, and a reader of any ext4 disk.

    plan(tree, options) -> Plan       pure: every block's place is known before the first byte is written
    Plan.chunks                       runs of the disk in disk order; each can be rendered by itself, on any thread
    Reader.open(path) -> Reader       an independent way back: lookup, list, stat, data, xattrs

A disk of ours:

    ┌────────────┬───────────┬───────────┬─────────┬─────────────┬───────┬──────────────────────┬────────┐
    │ superblock │ bitmaps,  │  journal  │ direc-  │ long links, │ slots │ data of layer 0,     │ extent │
    │ and        │ inode     │           │ tories  │ attributes  │       │ 1, … and ours        │ trees  │
    │ descriptors│ tables    │           │         │             │       │ (1 MiB aligned)      │        │
    └────────────┴───────────┴───────────┴─────────┴─────────────┴───────┴──────────────────────┴────────┘

Around the backups of the superblock and the bitmaps and tables of later flex groups, which lie where geometry.py says.

    inode_numbers → placing (blocks, data_placement, directories) → rendering (directory, inode, xattr, …), identity
    plan.py puts these together; rootdisk/ext4/ has the on-disk structures; reader.py and reading/ are the way back
"""
