#!/bin/sh
# The usual way: unpack as root, make the file system from the folder, compress. $1 DIR:TAG, $2 work folder, $3 disk|zst
set -eu
PATH=$PATH:/usr/sbin:/sbin
mkdir -p "$2"
umoci unpack --image "$1" "$2/bundle"
size=$(du -sm "$2/bundle/rootfs" | cut -f1)
inodes=$(find "$2/bundle/rootfs" | wc -l)
mke2fs -q -F -t ext4 -N $((inodes + inodes / 4 + 1024)) -d "$2/bundle/rootfs" "$2/disk.ext4" "$((size * 5 / 4 + 256))M"
[ "$3" = disk ] || zstd -q -3 -T0 "$2/disk.ext4" -o "$2/disk.ext4.zst"
