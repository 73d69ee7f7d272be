"""Tree in, ext4 out: our own deterministic writer, and a reader of any ext4 disk.

    plan(tree, options) -> Plan       pure: every block's place is known before the first byte is written
    Plan.chunks                       runs of the disk in disk order; each can be rendered by itself, on any thread
    read(path) -> Reader              an independent way back: lookup, list, stat, data, xattrs

format.py holds the on-disk structures with the kernel's names; plan.py places everything; see each module.
"""
