/* `init unpack2 PATH NAME`: files from a stream on standard input, for `runner cp`. The stream is not trusted: its names stay
 * below PATH, and no link below PATH is followed. */
#include "copy.h"
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <unistd.h>

enum { LINKS_MOST = 40, FULL_MOST = NAME_MOST + PART_MOST + 2 };

struct directory { size_t length; mode_t mode; struct timespec times[2]; };

static int version, failed, stopped;
static int base = -1;              /* the directory that everything lies below */
static char prefix[PART_MOST + 1]; /* the root's name in it; empty if `base` is the root */
static int wants_directory;
static const char *shown;          /* PATH, for messages */
static char full[FULL_MOST];       /* the path of the entry at hand, relative to `base` */
static struct extent extents[EXTENTS_MOST];
/* Directories that we have made and are in, by the length of their paths, which all begin `made`. They get modes and times
 * when everything in them is written. */
static char made[FULL_MOST];
static struct directory directories[NAME_MOST / 2 + 2];
static size_t depth;
/* What is written now, under a name that nothing else has; removed if we are ended. */
static volatile sig_atomic_t temporary_in = -1;
static char temporary[64];

static void say(const char *path, const char *what) {
    const char *rest = *prefix ? path + strcspn(path, "/") : path; /* PATH is shown as the user wrote it */
    rest += *rest == '/';
    dprintf(2, "%s%s%s: %s%c", shown, *rest && shown[strlen(shown) - 1] != '/' ? "/" : "", rest, what, version == 1 ? '\n' : 0);
}

static void complain(const char *path) {
    int error = errno;
    say(path, strerror(error));
    failed = 1;
    if (error == ENOSPC || error == EDQUOT || error == EROFS || error == EIO) /* so will all others */
        stopped = 1;
}

static void remove_temporary(void) {
    if (temporary_in >= 0)
        unlinkat(temporary_in, temporary, 0);
}

static void end(int signal) {
    remove_temporary();
    _exit(128 + signal);
}

static int get(void *data, size_t length) {
    for (char *at = data; length;) {
        ssize_t count = read(0, at, length);
        if (count < 0 && errno == EINTR)
            continue;
        if (count <= 0)
            return -1;
        at += count, length -= count;
    }
    return 0;
}

/* Whether a name stays below where it begins. */
static int is_name(const char *name, size_t length) {
    if (!length || length > NAME_MOST || memchr(name, 0, length))
        return 0;
    for (size_t at = 0; at <= length;) {
        const char *slash = memchr(name + at, '/', length - at);
        size_t part = slash ? (size_t)(slash - name) - at : length - at;
        if (!part || part > PART_MOST || (name[at] == '.' && (part == 1 || (part == 2 && name[at + 1] == '.'))))
            return 0;
        at += part + 1;
    }
    return 1;
}

/* The directory that `path` below `base` lies in, and the rest of it in *last. Links are not followed; what is missing is made. */
static int open_parent(const char *path, const char **last) {
    char part[PART_MOST + 1];
    int fd = fcntl(base, F_DUPFD_CLOEXEC, 0);
    for (const char *slash; fd >= 0 && (slash = strchr(path, '/')); path = slash + 1) {
        memcpy(part, path, slash - path);
        part[slash - path] = 0;
        int below = openat(fd, part, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
        if (below < 0 && errno == ENOENT && (!mkdirat(fd, part, 0755) || errno == EEXIST))
            below = openat(fd, part, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
        int error = errno;
        close(fd);
        errno = error;
        fd = below;
    }
    *last = path;
    return fd;
}

/* Gives directories that `path` does not lie in their modes and times, the innermost first. */
static void leave(const char *path) {
    while (depth) {
        struct directory *directory = &directories[depth - 1];
        if (!strncmp(path, made, directory->length) && path[directory->length] == '/')
            return;
        const char *last;
        made[directory->length] = 0;
        int parent = open_parent(made, &last);
        int fd = parent < 0 ? -1 : openat(parent, last, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
        if (fd < 0 || fchmod(fd, directory->mode) || futimens(fd, directory->times))
            complain(made);
        close(fd);
        close(parent);
        depth--;
    }
}

static void unpack_directory(int parent, const char *last, const struct head *head, const struct timespec *times) {
    struct stat info;
    if (!fstatat(parent, last, &info, AT_SYMLINK_NOFOLLOW)) {
        if (!S_ISDIR(info.st_mode))
            errno = ENOTDIR, complain(full);
        return;
    }
    if (mkdirat(parent, last, 0700)) {
        complain(full);
        return;
    }
    size_t length = strlen(full);
    memcpy(made, full, length + 1);
    directories[depth++] = (struct directory){length, head->mode, {times[0], times[1]}};
}

/* As much of a file's bytes as there is, whether they can be written or not; -1 at the stream's end. */
static int copy_bytes(int *fd, uint64_t offset, uint64_t left) {
    static char data[PIECE_MOST];
    while (left) {
        size_t count = left < sizeof data ? left : sizeof data;
        if (get(data, count))
            return -1;
        for (size_t done = 0; *fd >= 0 && done < count;) {
            ssize_t written = pwrite(*fd, data + done, count - done, offset + done);
            if (written < 0 && errno == EINTR)
                continue;
            if (written <= 0) {
                complain(full);
                close(*fd);
                *fd = -1;
                break;
            }
            done += written;
        }
        left -= count, offset += count;
    }
    return 0;
}

static int get_extents(const struct head *head, uint32_t *count) {
    if (version == 1) {
        extents[0] = (struct extent){0, head->size};
        *count = head->size > 0;
        return 0;
    }
    if (get(count, sizeof *count) || *count > EXTENTS_MOST || get(extents, *count * sizeof *extents))
        return -1;
    uint64_t at = 0;
    for (uint32_t i = 0; i < *count; at = extents[i].offset + extents[i].length, i++)
        if (extents[i].offset < at || !extents[i].length || extents[i].offset > head->size ||
            extents[i].length > head->size - extents[i].offset)
            return -1;
    return 0;
}

/* A file's bytes into `temporary`; 1 if it is whole, 0 if it is not to be kept, -1 if the stream is not a copy. */
static int unpack_file(int parent, const struct head *head, const struct timespec *times) {
    uint32_t count, tail = 0;
    uint64_t size = head->size;
    if (get_extents(head, &count))
        return -1;
    int fd = parent < 0 ? -1 : openat(parent, temporary, O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0600);
    if (parent >= 0 && fd < 0)
        complain(full);
    int bad = 0;
    for (uint32_t i = 0; !bad && i < count; i++)
        bad = copy_bytes(&fd, extents[i].offset, extents[i].length);
    while (!bad && version > 1) {
        bad = get(&tail, sizeof tail);
        if (bad || !tail || tail == TAIL_FAILED)
            break;
        bad = tail > PIECE_MOST || size > FILE_MOST ? -1 : copy_bytes(&fd, size, tail);
        size += tail;
    }
    int whole = !bad && fd >= 0 && tail != TAIL_FAILED;
    if (whole && (ftruncate(fd, size) || fchmod(fd, head->mode) || futimens(fd, times)))
        complain(full), whole = 0;
    if (fd >= 0)
        close(fd);
    return bad ? -1 : whole;
}

static int unpack_hard_link(int parent, const char *target) {
    char path[FULL_MOST];
    const char *last;
    struct stat info;
    if (snprintf(path, sizeof path, "%s%s%s", prefix, *prefix ? "/" : "", target) >= (int)sizeof path)
        return -1;
    int from = open_parent(path, &last), bad = from < 0 || fstatat(from, last, &info, AT_SYMLINK_NOFOLLOW);
    if (!bad && S_ISDIR(info.st_mode))
        errno = EISDIR, bad = 1;
    bad = bad || linkat(from, last, parent, temporary, 0);
    int error = errno;
    close(from);
    errno = error;
    return bad;
}

static int unpack_other(int parent, const struct head *head, const char *target, const struct timespec *times) {
    mode_t kind = head->kind == 'p' ? S_IFIFO : head->kind == 'c' ? S_IFCHR : S_IFBLK;
    if (head->kind == 'h')
        return unpack_hard_link(parent, target);
    if (head->kind == 'l')
        return symlinkat(target, parent, temporary) || utimensat(parent, temporary, times, AT_SYMLINK_NOFOLLOW);
    return mknodat(parent, temporary, kind | 0600, makedev(head->size >> 32, head->size & UINT32_MAX)) ||
           fchmodat(parent, temporary, head->mode, 0) || utimensat(parent, temporary, times, 0);
}

/* One entry; -1 if the stream is not a copy. */
static int unpack_entry(const struct head *head, const char *target) {
    int64_t second = version == 1 ? head->time : head->time / 1000000000;
    int64_t rest = version == 1 ? 0 : head->time % 1000000000;
    if (rest < 0)
        second--, rest += 1000000000;
    struct timespec times[2] = {{second, rest}, {second, rest}};
    const char *last;
    leave(full);
    int parent = open_parent(full, &last), whole = 0;
    if (parent < 0)
        complain(full);
    if (head->kind == 'd') {
        if (parent >= 0)
            unpack_directory(parent, last, head, times);
    } else {
        temporary_in = parent;
        if (head->kind == 'f')
            whole = unpack_file(parent, head, times);
        else if (parent >= 0 && !(whole = !unpack_other(parent, head, target, times)))
            complain(full);
        if (whole > 0 && renameat(parent, temporary, parent, last))
            complain(full);
        remove_temporary(); /* also after a rename, which leaves it beside another name of the same file */
        temporary_in = -1;
    }
    if (parent >= 0)
        close(parent);
    return whole < 0 ? -1 : 0;
}

static int is_entry(const struct head *head, const char *name, const char *target) {
    int links = head->kind == 'l' || head->kind == 'h';
    if (!head->kind || !strchr(version == 1 ? "fdl" : "fdlhpcb", head->kind) || head->zero || head->mode > 07777)
        return 0;
    if ((head->name ? !is_name(name, head->name) : !*prefix && head->kind != 'd') || links != (head->target > 0))
        return 0;
    if (head->kind == 'h' ? !is_name(target, head->target) : memchr(target, 0, head->target) || head->target >= PATH_MAX)
        return 0;
    return head->kind != 'f' || head->size <= FILE_MOST;
}

/* What PATH, which is not a directory, leads to in the end, in `at`, without a / at its end. */
static int follow_links(const char *path, char at[PATH_MAX]) {
    static char target[PATH_MAX], joined[2 * PATH_MAX];
    if (snprintf(at, PATH_MAX, "%s", path) >= PATH_MAX) {
        errno = ENAMETOOLONG;
        return -1;
    }
    for (int links = 0; links <= LINKS_MOST; links++) {
        size_t length = strlen(at);
        while (length > 1 && (at[length - 1] == '/' || (at[length - 1] == '.' && at[length - 2] == '/')))
            at[--length] = 0, wants_directory = 1;
        ssize_t count = readlink(at, target, sizeof target - 1);
        if (count < 0)
            return 0; /* no link: a file, or nothing yet */
        target[count] = 0;
        char *slash = strrchr(at, '/');
        int folder = *target == '/' || !slash ? 0 : (int)(slash - at) + 1;
        if (snprintf(joined, sizeof joined, "%.*s%s", folder, at, target) >= PATH_MAX)
            break;
        strcpy(at, joined);
    }
    errno = ELOOP;
    return -1;
}

/* Finds `base` and `prefix` for PATH and NAME. */
static int find_place(const char *path, const char *name) {
    static char at[PATH_MAX], inside[PATH_MAX + PART_MOST + 2];
    struct stat info;
    int missing = stat(path, &info), is_archive = !*name;
    if (!missing && S_ISDIR(info.st_mode)) {
        base = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
        if (base < 0)
            return -1;
        if (!is_archive && strcmp(name, ".")) {
            strcpy(prefix, name);
            snprintf(inside, sizeof inside, "%s%s%s", path, path[strlen(path) - 1] == '/' ? "" : "/", name);
            shown = inside;
        }
        return 0;
    }
    if ((missing && errno != ENOENT) || (missing && is_archive))
        return -1;
    if (is_archive || (!missing && !S_ISREG(info.st_mode))) {
        errno = is_archive ? ENOTDIR : EINVAL; /* a device, FIFO or socket is not replaced */
        return -1;
    }
    if (follow_links(path, at))
        return -1;
    char *slash = strrchr(at, '/'), *last = slash ? slash + 1 : at;
    if (!is_name(last, strlen(last))) {
        errno = ENOENT;
        return -1;
    }
    strcpy(prefix, last);
    *last = 0;
    base = open(*at ? at : ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    return base < 0 ? -1 : 0;
}

static int refuse(const char *what) {
    dprintf(2, "%s: %s%c", shown, what, version == 1 ? '\n' : 0);
    return 1;
}

int unpack(int wanted_version, const char *path, const char *name) {
    static char own[UINT16_MAX + 1], target[UINT16_MAX + 1];
    struct head head;
    int is_first = 1;
    version = wanted_version;
    if (version > 1 && write(1, HELLO, strlen(HELLO)) != (ssize_t)strlen(HELLO))
        return 1;
    shown = path;
    if (!*path || (*name && strcmp(name, ".") && (!is_name(name, strlen(name)) || strchr(name, '/'))))
        return refuse("the runner sends no name");
    if (find_place(path, name))
        return refuse(errno == EINVAL ? "is a device, FIFO or socket: name a file or a directory" : strerror(errno));
    snprintf(temporary, sizeof temporary, ".rootdisk-cp.%d", (int)getpid());
    signal(SIGHUP, end);
    signal(SIGTERM, end);
    umask(0);
    for (; !stopped; is_first = 0) {
        if (get(&head, sizeof head)) {
            leave("");
            return version == 1 ? failed : refuse("the copy was cut off");
        }
        if (head.kind == 'e' && version > 1) {
            leave("");
            return failed;
        }
        if (get(own, head.name) || get(target, head.target))
            return refuse("the copy was cut off");
        own[head.name] = target[head.target] = 0;
        if (!is_entry(&head, own, target))
            return refuse("the runner sends no copy of files");
        if (!head.name && head.kind != 'd' && wants_directory)
            return refuse("there is no such directory");
        if (snprintf(full, sizeof full, "%s%s%s", prefix, *prefix && *own ? "/" : "", own) >= (int)sizeof full)
            return refuse("the runner sends no copy of files");
        if (*full && unpack_entry(&head, target))
            return refuse("the copy was cut off, or is none");
        if (is_first && !head.name && failed)
            return 1;
    }
    return 1;
}
