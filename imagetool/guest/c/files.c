/* Files of the guest, and paths that an image may have filled with links. */
#include "files.h"
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

enum { LINKS_MOST = 40 };

char *read_file(const char *path, size_t most, size_t *length) {
    /* An image may have a FIFO in a file's place: nothing is waited for. */
    int fd = open(path, O_RDONLY | O_NONBLOCK | O_CLOEXEC);
    struct stat info;
    size_t room = 4096, used = 0;
    ssize_t count = 0;
    if (fd < 0)
        return NULL;
    int error = fstat(fd, &info) ? errno : S_ISREG(info.st_mode) ? 0 : EINVAL;
    char *data = error ? NULL : malloc(room + 1);
    while (data && (count = read(fd, data + used, room - used)) > 0) {
        if ((used += count) < room)
            continue;
        char *larger = used > most ? NULL : realloc(data, (room *= 2) + 1);
        if (!larger)
            free(data);
        data = larger;
    }
    if (count < 0)
        error = errno;
    close(fd);
    if (!error && (!data || used > most))
        error = used > most ? EFBIG : ENOMEM;
    if (error) {
        free(data);
        errno = error;
        return NULL;
    }
    data[*length = used] = 0;
    return data;
}

int write_file(const char *path, const void *data, size_t length, mode_t mode) {
    int fd = open(path, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, mode);
    int failed = fd < 0 || write(fd, data, length) != (ssize_t)length || fchmod(fd, mode);
    if (fd >= 0)
        close(fd);
    return failed ? -1 : 0;
}

int write_setting(const char *path, const char *text) {
    int fd = open(path, O_WRONLY | O_CLOEXEC);
    int failed = fd < 0 || write(fd, text, strlen(text)) < 0, error = errno;
    if (fd >= 0)
        close(fd);
    errno = error;
    return failed ? -1 : 0;
}

/* One step of a path: `part` below `done`, which has no link in it. A link is put before *rest. */
static int step(int root, char *done, const char *part, char *rest, int is_last, enum kind kind, int *links) {
    char link[PATH_MAX], joined[2 * PATH_MAX];
    size_t length = strlen(done), width = strlen(part);
    if (!strcmp(part, "..")) {
        char *slash = strrchr(done, '/');
        *(slash ? slash : done) = 0;
        return 0;
    }
    if (length + width + 2 > PATH_MAX) {
        errno = ENAMETOOLONG;
        return -1;
    }
    if (length)
        done[length++] = '/';
    memcpy(done + length, part, width + 1);
    ssize_t count = readlinkat(root, done, link, sizeof link - 1);
    if (count >= 0) {
        link[count] = 0;
        if (++*links > LINKS_MOST || count + 1 + strlen(rest) >= PATH_MAX) {
            errno = ELOOP;
            return -1;
        }
        done[*link == '/' || !length ? 0 : length - 1] = 0; /* back to the directory that has the link */
        memcpy(joined, link, count);
        joined[count] = '/';
        strcpy(joined + count + 1, rest);
        strcpy(rest, joined);
        return 0;
    }
    if (errno == EINVAL) /* there, and no link */
        return 0;
    if (errno != ENOENT)
        return -1;
    if (!is_last || kind == MAKE_DIRECTORY)
        return mkdirat(root, done, 0755) && errno != EEXIST ? -1 : 0;
    int fd = openat(root, done, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0644);
    return fd < 0 ? -1 : close(fd);
}

int open_inside(int root, const char *path, enum kind kind) {
    char done[PATH_MAX] = "", rest[PATH_MAX], part[NAME_MAX + 1];
    int links = 0;
    if (strlen(path) >= sizeof rest) {
        errno = ENAMETOOLONG;
        return -1;
    }
    strcpy(rest, path);
    for (;;) {
        size_t start = strspn(rest, "/"), width = strcspn(rest + start, "/");
        if (!width)
            break;
        if (width > NAME_MAX) {
            errno = ENAMETOOLONG;
            return -1;
        }
        memcpy(part, rest + start, width);
        part[width] = 0;
        memmove(rest, rest + start + width, strlen(rest + start + width) + 1);
        if (strcmp(part, ".") && step(root, done, part, rest, !rest[strspn(rest, "/")], kind, &links))
            return -1;
    }
    int flags = O_PATH | O_NOFOLLOW | O_CLOEXEC | (kind == MAKE_DIRECTORY ? O_DIRECTORY : 0);
    return openat(root, *done ? done : ".", flags);
}

int open_place(const char *path, enum kind kind) {
    int root = open("/", O_PATH | O_DIRECTORY | O_CLOEXEC);
    int fd = root < 0 ? -1 : open_inside(root, path, kind);
    int error = errno;
    if (root >= 0)
        close(root);
    errno = error;
    return fd;
}
