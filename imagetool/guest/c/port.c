/* The virtio port of the channel, and the disk behind "/". */
#include "channel.h"
#include "files.h"
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <sys/sysmacros.h>
#include <unistd.h>

double now(void);

/* The descriptor of the port `entry` if it has that name, else -1. */
static int open_port(const char *entry, const char *wanted) {
    char path[300];
    size_t length;
    snprintf(path, sizeof path, "/sys/class/virtio-ports/%s/name", entry);
    char *name = entry[0] == '.' ? NULL : read_file(path, 4096, &length);
    size_t width = strlen(wanted);
    int ours = name && !strncmp(name, wanted, width) && name[width] == '\n';
    free(name);
    snprintf(path, sizeof path, "/dev/%s", entry);
    return ours ? open(path, O_RDWR | O_CLOEXEC) : -1;
}

/* The virtio port of that name; -1 if there is none after `timeout` seconds. */
int find_port(const char *name, double timeout) {
    double deadline = now() + timeout;
    for (;;) {
        int fd = -1;
        DIR *directory = opendir("/sys/class/virtio-ports");
        for (struct dirent *entry; fd < 0 && directory && (entry = readdir(directory));)
            fd = open_port(entry->d_name, name);
        if (directory)
            closedir(directory);
        if (fd >= 0 || now() >= deadline)
            return fd;
        usleep(1000);
    }
}

/* Lets no new block of the disk be used, or lets it again: with all of them reserved, a program that needs one gets ENOSPC, and
   what is in memory already is still written back. */
void hold_disk(int held, const struct log *log) {
    static char usual[32]; /* the kernel's own reserve, while all is reserved */
    struct stat root;
    struct statvfs all;
    char path[96], text[32] = "", *name;
    size_t length;
    if (held == !!*usual || stat("/", &root) || statvfs("/", &all))
        return;
    snprintf(path, sizeof path, "/sys/dev/block/%u:%u/uevent", major(root.st_dev), minor(root.st_dev));
    char *data = read_file(path, 4096, &length);
    if (data && (name = strstr(data, "DEVNAME="))) {
        name += 8;
        snprintf(path, sizeof path, "/sys/fs/ext4/%.*s/reserved_clusters", (int)strcspn(name, "\n"), name);
        int fd = open(path, O_RDWR | O_CLOEXEC);
        if (held && fd >= 0 && read(fd, usual, sizeof usual - 1) > 0)
            snprintf(text, sizeof text, "%llu", (unsigned long long)all.f_blocks - 1);
        else if (!held)
            memcpy(text, usual, sizeof text), *usual = 0;
        if (fd < 0 || pwrite(fd, text, strlen(text), 0) < 0)
            note(log, "%s: %s", path, strerror(errno));
        if (fd >= 0)
            close(fd);
    }
    free(data);
}
