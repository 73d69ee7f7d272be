/* What pack.c and unpack.c share: a copy's stream; docs/layout-1.md, "Copies". */
#ifndef ROOTDISK_COPY_H
#define ROOTDISK_COPY_H

#include <stddef.h>
#include <stdint.h>

enum { NAME_MOST = 4096, PART_MOST = 255, EXTENTS_MOST = 1 << 16, PIECE_MOST = 64 << 10 };
static const uint64_t FILE_MOST = 16ULL << 40;
static const uint32_t TAIL_FAILED = UINT32_MAX; /* in place of a tail's length: the file's bytes are not what they should be */
#define HELLO "RDCOPY2\n"

struct head { uint8_t kind, zero; uint16_t name, target; uint32_t mode; int64_t time; uint64_t size; } __attribute__((packed));
struct extent { uint64_t offset, length; };

int pack(int version, const char *path, int follow);
int unpack(int version, const char *path, const char *name);
#endif
