/* `init pack2 PATH`: a file, or a directory and all below it, as a stream on standard output, for `runner cp`. */
#include "copy.h"
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <unistd.h>

enum { UNSIZED_MOST = 32 << 20, UNSIZED_STEP = 1 << 20 };
static const uint64_t GROWTH_MOST = 1 << 30;

static int version, failed;
static const char *root;
static char name[NAME_MOST + 1]; /* of the entry at hand, relative to `root` */
static struct extent extents[EXTENTS_MOST];

/* A line about the entry at hand. */
static void say(const char *what) {
    size_t length = strlen(root);
    while (*name && length && (root[length - 1] == '/' || (root[length - 1] == '.' && length > 1 && root[length - 2] == '/')))
        length--;
    dprintf(2, "%.*s%s%s: %s%c", (int)length, root, *name ? "/" : "", name, what, version == 1 ? '\n' : 0);
}

static void fail(const char *why) {
    say(why);
    failed = 1;
}

static void put(const void *data, size_t length) {
    for (const char *at = data; length;) {
        ssize_t count = write(1, at, length);
        if (count < 0 && errno == EINTR)
            continue;
        if (count < 0)
            _exit(1); /* nobody reads any more */
        at += count, length -= count;
    }
}

/* In nanoseconds, or the last that can be said so. */
static int64_t time_of(const struct stat *info) {
    const int64_t most = INT64_MAX / 1000000000;
    if (version == 1)
        return info->st_mtim.tv_sec;
    if (info->st_mtim.tv_sec >= most || info->st_mtim.tv_sec <= -most)
        return info->st_mtim.tv_sec < 0 ? -INT64_MAX : INT64_MAX;
    return info->st_mtim.tv_sec * 1000000000 + info->st_mtim.tv_nsec;
}

static void put_head(char kind, const char *target, const struct stat *info, uint64_t size) {
    struct head head = {kind, 0, strlen(name), strlen(target), info->st_mode & 07777, time_of(info), size};
    put(&head, sizeof head);
    put(name, head.name);
    put(target, head.target);
}

static void put_number(uint32_t number) {
    if (version > 1)
        put(&number, sizeof number);
}

/* Where a file has data; all of it if the file system does not say. The last extent may have holes if there are too many. */
static uint32_t find_extents(int fd, uint64_t size) {
    uint32_t count = 0;
    for (uint64_t at = 0; at < size;) {
        off_t data = version == 1 ? -1 : lseek(fd, at, SEEK_DATA);
        if (data < 0 && version > 1 && errno == ENXIO)
            break;
        off_t hole = data < 0 || count == EXTENTS_MOST - 1 ? -1 : lseek(fd, data, SEEK_HOLE);
        uint64_t start = data < 0 ? at : (uint64_t)data, end = hole < 0 || (uint64_t)hole > size ? size : (uint64_t)hole;
        if (start >= end)
            break;
        extents[count++] = (struct extent){start, end - start};
        at = end;
    }
    return count;
}

/* A file's bytes from `at` on; zeros for those that are gone, and then why. */
static const char *put_extent(int fd, uint64_t at, uint64_t left) {
    static char data[PIECE_MOST];
    const char *lost = NULL;
    while (left) {
        size_t most = left < sizeof data ? left : sizeof data;
        ssize_t count = lost ? 0 : pread(fd, data, most, at);
        if (count < 0 && errno == EINTR)
            continue;
        if (count <= 0) {
            if (!lost)
                lost = count ? strerror(errno) : "became shorter while it was copied";
            memset(data, 0, sizeof data);
            count = most;
        }
        put(data, count);
        left -= count, at += count;
    }
    return lost;
}

/* What a file has become longer by. */
static const char *put_tail(int fd, uint64_t at) {
    static char data[PIECE_MOST];
    for (uint64_t sent = 0;;) {
        ssize_t count = pread(fd, data, sizeof data, at + sent);
        if (count < 0 && errno == EINTR)
            continue;
        if (count < 0)
            return strerror(errno);
        if (!count)
            return NULL;
        if ((sent += count) > GROWTH_MOST)
            return "grows faster than it is copied";
        put_number(count);
        put(data, count);
    }
}

/* As in /proc and /sys, where sizes say nothing: read whole before its size is sent. */
static void pack_unsized(int fd, const struct stat *info) {
    size_t used = 0, room = 0;
    char *data = NULL;
    ssize_t count = -1;
    do {
        if (used == room) {
            char *larger = room < UNSIZED_MOST ? realloc(data, room += UNSIZED_STEP) : NULL;
            if (!larger) {
                errno = EFBIG, count = -1;
                break;
            }
            data = larger;
        }
        count = read(fd, data + used, room - used);
        if (count > 0)
            used += count;
    } while (count > 0 || (count < 0 && errno == EINTR));
    if (count < 0) {
        fail(errno == EFBIG ? "its size is not known, and it is larger than 32 MiB" : strerror(errno));
    } else {
        put_head('f', "", info, used);
        extents[0] = (struct extent){0, used};
        put_number(used > 0);
        if (version > 1 && used)
            put(extents, sizeof *extents);
        put(data, used);
        put_number(0);
    }
    free(data);
}

static void pack_file(int fd, const struct stat *info) {
    uint64_t size = info->st_size;
    const char *lost = NULL;
    /* A file of an ordinary file system that has no blocks is empty or one hole. */
    if (!size || (!info->st_blocks && size <= UNSIZED_STEP && (lseek(fd, 0, SEEK_DATA) >= 0 || errno != ENXIO))) {
        lseek(fd, 0, SEEK_SET);
        pack_unsized(fd, info);
        return;
    }
    if (size > FILE_MOST) {
        fail("is larger than 16 TiB");
        return;
    }
    uint32_t count = find_extents(fd, size);
    put_head('f', "", info, size);
    put_number(count);
    if (version > 1)
        put(extents, count * sizeof *extents);
    for (uint32_t i = 0; i < count; i++) {
        const char *why = put_extent(fd, extents[i].offset, extents[i].length);
        lost = lost ? lost : why;
    }
    if (!lost && version > 1)
        lost = put_tail(fd, size);
    if (lost)
        fail(lost);
    put_number(lost ? TAIL_FAILED : 0);
}

static int compare(const void *left, const void *right) { return strcmp(*(char *const *)left, *(char *const *)right); }

struct names { char *text, **items; size_t used, room, count; };

static int add_name(struct names *names, const char *child) {
    size_t length = strlen(child) + 1;
    if (names->room - names->used < length) {
        char *more = realloc(names->text, names->room * 2 + 4096);
        if (!more)
            return -1;
        names->text = more;
        names->room = names->room * 2 + 4096;
    }
    memcpy(names->text + names->used, child, length);
    names->used += length;
    names->count++;
    return 0;
}

static int sort_names(struct names *names) {
    if (!names->count)
        return 0;
    names->items = calloc(names->count, sizeof *names->items);
    if (!names->items)
        return -1;
    char *at = names->text;
    for (size_t i = 0; i < names->count; at += strlen(at) + 1)
        names->items[i++] = at;
    qsort(names->items, names->count, sizeof *names->items, compare);
    return 0;
}

/* Collects the names in a directory, sorted. What cannot be read of it is said. */
static void list(int fd, struct names *names) {
    int copy = fcntl(fd, F_DUPFD_CLOEXEC, 0);
    DIR *directory = copy < 0 ? NULL : fdopendir(copy);
    errno = directory ? 0 : errno;
    for (struct dirent *child; directory && (child = readdir(directory)); errno = 0)
        if (strcmp(child->d_name, ".") && strcmp(child->d_name, "..") && add_name(names, child->d_name))
            break;
    int error = errno;
    if (sort_names(names)) {
        error = errno;
        names->count = 0;
    }
    if (error)
        fail(strerror(error));
    if (directory)
        closedir(directory);
    else if (copy >= 0)
        close(copy);
}

static void pack_at(int at, const char *own, int follow);

static void pack_directory(int fd, const struct stat *info) {
    struct names names = {0};
    size_t length = strlen(name);
    put_head('d', "", info, 0);
    list(fd, &names);
    for (size_t i = 0; i < names.count; i++) {
        const char *child = names.items[i];
        size_t more = strlen(child);
        if (length + 1 + more > NAME_MOST || more > PART_MOST) {
            say("has a name in it that is too long to be copied");
            failed = 1;
        } else {
            sprintf(name + length, "%s%s", length ? "/" : "", child);
            pack_at(fd, child, 0);
            name[length] = 0;
        }
    }
    free(names.items);
    free(names.text);
}

/* `at`/`own` as the entry `name`, and everything below it. */
static void pack_at(int at, const char *own, int follow) {
    static char target[NAME_MOST];
    struct stat info;
    if (fstatat(at, own, &info, follow ? 0 : AT_SYMLINK_NOFOLLOW)) {
        fail(strerror(errno));
    } else if (S_ISLNK(info.st_mode)) {
        ssize_t length = readlinkat(at, own, target, sizeof target - 1);
        if (length <= 0) {
            fail(length ? strerror(errno) : "is a link to nothing");
            return;
        }
        target[length] = 0;
        put_head('l', target, &info, 0);
    } else if (S_ISREG(info.st_mode) || S_ISDIR(info.st_mode)) {
        /* What it has become meanwhile may be a FIFO: nothing is waited for. */
        int kind = info.st_mode & S_IFMT, fd = openat(at, own, O_RDONLY | O_NONBLOCK | O_CLOEXEC | (follow ? 0 : O_NOFOLLOW));
        if (fd < 0 || fstat(fd, &info))
            fail(strerror(errno));
        else if ((info.st_mode & S_IFMT) != (mode_t)kind)
            fail("became another kind of file while it was copied");
        else if (S_ISDIR(info.st_mode))
            pack_directory(fd, &info);
        else
            pack_file(fd, &info);
        if (fd >= 0)
            close(fd);
    } else if (S_ISSOCK(info.st_mode) && *name) {
        say("is a socket, left out");
    } else if (version == 1 || S_ISSOCK(info.st_mode)) {
        fail(S_ISSOCK(info.st_mode) ? "is a socket" : "is not a file, directory or link");
    } else {
        uint64_t device = S_ISFIFO(info.st_mode) ? 0 : (uint64_t)major(info.st_rdev) << 32 | minor(info.st_rdev);
        put_head(S_ISFIFO(info.st_mode) ? 'p' : S_ISCHR(info.st_mode) ? 'c' : 'b', "", &info, device);
    }
}

int pack(int wanted_version, const char *path, int follow) {
    struct rlimit files;
    version = wanted_version;
    root = path;
    if (version > 1)
        put(HELLO, strlen(HELLO));
    if (!getrlimit(RLIMIT_NOFILE, &files)) { /* one for each level of directories */
        files.rlim_cur = files.rlim_max;
        setrlimit(RLIMIT_NOFILE, &files);
    }
    pack_at(AT_FDCWD, path, follow);
    if (version > 1)
        put(&(struct head){.kind = 'e'}, sizeof(struct head));
    return failed;
}
