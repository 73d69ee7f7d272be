/* `init pack PATH` and `init unpack PATH NAME`: files as a stream of entries, for `runner cp`; docs/layout-1.md, "Copies". */
#include "init.h"
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

struct entry { uint8_t type, zero; uint16_t name, target; uint32_t mode; int64_t time; uint64_t size; } __attribute__((packed));

static int failed;

static void complain(const char *path) {
    dprintf(2, "%s: %s\n", path, strerror(errno));
    failed = 1;
}

static void write_out(const void *data, size_t length) {
    for (const char *at = data; length;) {
        ssize_t count = write(1, at, length);
        if (count < 0)
            _exit(1); /* nobody reads any more */
        at += count, length -= count;
    }
}

static void head(char type, const char *name, const char *target, const struct stat *info, uint64_t size) {
    struct entry entry = {type, 0, strlen(name), strlen(target), info->st_mode & 07777, info->st_mtime, size};
    write_out(&entry, sizeof entry);
    write_out(name, entry.name);
    write_out(target, entry.target);
}

static void pack_file(int fd, const char *name, const struct stat *info) {
    static char data[64 << 10];
    uint64_t left = info->st_size;
    head('f', name, "", info, left);
    while (left) {
        ssize_t count = read(fd, data, left < sizeof data ? left : sizeof data);
        if (count <= 0) { /* it became shorter: what was promised is sent */
            memset(data, 0, sizeof data);
            count = left < sizeof data ? left : sizeof data;
        }
        write_out(data, count);
        left -= count;
    }
}

/* `at`/`own` as the entry `name`, and everything below it. */
static void pack_below(int at, const char *own, const char *name) {
    struct stat info;
    char target[4096];
    if (fstatat(at, own, &info, AT_SYMLINK_NOFOLLOW)) {
        complain(own);
    } else if (S_ISLNK(info.st_mode)) {
        ssize_t length = readlinkat(at, own, target, sizeof target - 1);
        target[length < 0 ? 0 : length] = 0;
        head('l', name, target, &info, 0);
    } else if (S_ISREG(info.st_mode)) {
        int fd = openat(at, own, O_RDONLY | O_NOFOLLOW | O_CLOEXEC);
        if (fd < 0 || fstat(fd, &info))
            complain(name);
        else
            pack_file(fd, name, &info);
        close(fd);
    } else if (S_ISDIR(info.st_mode)) {
        int fd = openat(at, own, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
        DIR *directory = fd < 0 ? NULL : fdopendir(fd);
        if (!directory) {
            complain(name);
            return;
        }
        head('d', name, "", &info, 0);
        for (struct dirent *child; (child = readdir(directory));) {
            char path[4096];
            if (!strcmp(child->d_name, ".") || !strcmp(child->d_name, ".."))
                continue;
            if (snprintf(path, sizeof path, "%s%s%s", name, *name ? "/" : "", child->d_name) >= (int)sizeof path)
                errno = ENAMETOOLONG, complain(child->d_name);
            else
                pack_below(fd, child->d_name, path);
        }
        closedir(directory);
    } else {
        dprintf(2, "%s is no file, directory or link\n", name);
        failed = 1;
    }
}

int pack(const char *path) {
    struct stat info;
    if (lstat(path, &info)) {
        complain(path);
        return 1;
    }
    pack_below(AT_FDCWD, path, "");
    return failed;
}

static int read_in(void *data, size_t length) {
    for (char *at = data; length;) {
        ssize_t count = read(0, at, length);
        if (count <= 0)
            return -1;
        at += count, length -= count;
    }
    return 0;
}

static int unpack_file(const char *path, const struct entry *entry) {
    static char data[64 << 10];
    int fd = open(path, O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0600);
    if (fd < 0)
        complain(path);
    for (uint64_t left = entry->size; left;) {
        size_t count = left < sizeof data ? left : sizeof data;
        if (read_in(data, count))
            return -1;
        for (size_t done = 0; fd >= 0 && done < count;) {
            ssize_t written = write(fd, data + done, count - done);
            if (written <= 0) {
                complain(path);
                close(fd);
                fd = -1;
                break;
            }
            done += written;
        }
        left -= count;
    }
    if (fd >= 0) {
        struct timespec times[2] = {{.tv_sec = entry->time}, {.tv_sec = entry->time}};
        if (fchmod(fd, entry->mode & 07777) || futimens(fd, times))
            complain(path);
        close(fd);
    }
    return 0;
}

/* Into `path`, or where that is a directory as `name` into it; "." puts what is in the first entry into it. */
int unpack(const char *path, const char *name) {
    char root[4096], whole[9000], own[4097], target[4097];
    struct stat info;
    struct entry entry;
    int is_directory = !stat(path, &info) && S_ISDIR(info.st_mode);
    if (path[strlen(path) - 1] == '/' && !is_directory) {
        dprintf(2, "%s is no directory\n", path);
        return 1;
    }
    if (is_directory && strcmp(name, "."))
        snprintf(root, sizeof root, "%s/%s", path, name);
    else
        snprintf(root, sizeof root, "%s", path);
    while (!read_in(&entry, sizeof entry)) {
        if (entry.name > 4096 || entry.target > 4096 || read_in(own, entry.name) || read_in(target, entry.target))
            return 1;
        own[entry.name] = target[entry.target] = 0;
        snprintf(whole, sizeof whole, "%s%s%s", root, *own ? "/" : "", own);
        int there = !lstat(whole, &info);
        if (entry.type == 'd') {
            if (!(there && (S_ISDIR(info.st_mode) || (!*own && is_directory))) && mkdir(whole, 0755))
                complain(whole);
            else if (!there && chmod(whole, entry.mode & 07777))
                complain(whole);
            continue;
        }
        if (there && !S_ISDIR(info.st_mode))
            unlink(whole);
        if (entry.type == 'l' && symlink(target, whole))
            complain(whole);
        if (entry.type == 'f' && unpack_file(whole, &entry))
            return 1;
    }
    return failed;
}
