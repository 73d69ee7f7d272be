/* Copies a directory's content into another: what the image has in /run, into the tmpfs there. */
#include "guest.h"
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

enum { DEPTH_MOST = 64 };

static int copy_bytes(int from, int to) {
    char data[16 << 10];
    ssize_t count;
    while ((count = read(from, data, sizeof data)) > 0)
        for (ssize_t done = 0, more; done < count; done += more)
            if ((more = write(to, data + done, count - done)) <= 0)
                return -1;
    return count ? -1 : 0;
}

static int copy_file(int from, int to, const char *name) {
    int in = openat(from, name, O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC);
    int out = in < 0 ? -1 : openat(to, name, O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0600);
    int failed = out < 0 || copy_bytes(in, out), error = errno;
    if (in >= 0)
        close(in);
    if (out >= 0)
        close(out);
    errno = error;
    return failed ? -1 : 0;
}

static int copy_link(int from, int to, const char *name) {
    char target[PATH_MAX];
    ssize_t length = readlinkat(from, name, target, sizeof target - 1);
    if (length < 0)
        return -1;
    target[length] = 0;
    return symlinkat(target, to, name);
}

static int copy_all(int from, int to, int depth, char *failed_name);

static int copy_directory(int from, int to, const char *name, int depth, char *failed_name) {
    if (mkdirat(to, name, 0700) && errno != EEXIST)
        return -1;
    int in = openat(from, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    int out = in < 0 ? -1 : openat(to, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    int failed = out < 0 || copy_all(in, out, depth + 1, failed_name), error = errno;
    if (in >= 0)
        close(in);
    if (out >= 0)
        close(out);
    errno = error;
    return failed ? -1 : 0;
}

static int copy_one(int from, int to, const char *name, int depth, char *failed_name) {
    struct stat info;
    if (fstatat(from, name, &info, AT_SYMLINK_NOFOLLOW))
        return -1;
    int failed = S_ISDIR(info.st_mode)   ? copy_directory(from, to, name, depth, failed_name)
                 : S_ISREG(info.st_mode) ? copy_file(from, to, name)
                 : S_ISLNK(info.st_mode) ? copy_link(from, to, name)
                                         : mknodat(to, name, info.st_mode, info.st_rdev);
    /* The owner first: a change of it takes bits from the mode. */
    failed = failed || fchownat(to, name, info.st_uid, info.st_gid, AT_SYMLINK_NOFOLLOW) ||
             (!S_ISLNK(info.st_mode) && fchmodat(to, name, info.st_mode & 07777, 0)) ||
             utimensat(to, name, (struct timespec[2]){info.st_atim, info.st_mtim}, AT_SYMLINK_NOFOLLOW);
    return failed ? -1 : 0;
}

static int copy_all(int from, int to, int depth, char *failed_name) {
    int copy = depth > DEPTH_MOST ? (errno = ELOOP, -1) : openat(from, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC), failed = 0;
    DIR *directory = copy < 0 ? NULL : fdopendir(copy);
    if (!directory) {
        if (copy >= 0)
            close(copy);
        return -1;
    }
    for (struct dirent *entry; !failed && (errno = 0, entry = readdir(directory));)
        if (strcmp(entry->d_name, ".") && strcmp(entry->d_name, "..") && copy_one(from, to, entry->d_name, depth, failed_name)) {
            failed = 1;
            if (!*failed_name)
                snprintf(failed_name, NAME_MAX + 1, "%s", entry->d_name);
        }
    int error = errno;
    closedir(directory);
    errno = error;
    return failed || error ? -1 : 0;
}

int copy_up(int from, int to, struct why *why) {
    char name[NAME_MAX + 1] = "";
    int below = openat(from, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC), over = openat(to, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    int failed = below < 0 || over < 0 || copy_all(below, over, 0, name);
    if (failed)
        explain(why, "cannot copy the image's /run into memory: %s%s%s%s", name, *name ? ": " : "", strerror(errno),
                errno == ENOSPC ? " (give more --memory)" : "");
    if (below >= 0)
        close(below);
    if (over >= 0)
        close(over);
    return failed ? -1 : 0;
}
