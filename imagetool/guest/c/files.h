/* Files of the guest. */
#ifndef ROOTDISK_FILES_H
#define ROOTDISK_FILES_H

#include <stddef.h>
#include <sys/types.h>

/* A plain file of at most `most` bytes with a NUL after it; NULL and errno if it is not one. */
char *read_file(const char *path, size_t most, size_t *length);
int write_file(const char *path, const void *data, size_t length, mode_t mode);
/* Writes into a file of /proc, /sys or a cgroup, which is there already. */
int write_setting(const char *path, const char *text);

/* Opens `path` below the directory `root` as a program in it would: links are followed inside, and `..` does not leave it.
   What is missing is made: directories, and an empty file at the end for MAKE_FILE. A descriptor (O_PATH), or -1 and errno. */
enum kind { MAKE_DIRECTORY, MAKE_FILE };
int open_inside(int root, const char *path, enum kind);

/* The same below "/". */
int open_place(const char *path, enum kind);

int trim(void);
#endif
