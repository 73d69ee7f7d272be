/* What is mounted around a program. Mount points of an image may be links, or missing: all are found inside the root. */
#include "guest.h"
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

static const unsigned long SAFE = MS_NOSUID | MS_NODEV | MS_NOEXEC;

/* mount(2) on a place that is open. It needs no /proc for a directory, and leaves the caller in "/". */
int mount_at(int place, const char *source, const char *type, unsigned long flags, const char *data) {
    struct stat info;
    char path[32] = ".";
    if (fstat(place, &info) || (S_ISDIR(info.st_mode) && fchdir(place)))
        return -1;
    if (!S_ISDIR(info.st_mode))
        snprintf(path, sizeof path, "/proc/self/fd/%d", place);
    int failed = mount(source, path, type, flags, data), error = errno;
    if (chdir("/"))
        failed = -1;
    errno = error;
    return failed ? -1 : 0;
}

int is_mount_point(int place) {
    struct stat own, above;
    return !fstat(place, &own) && !fstatat(place, "..", &above, 0) && own.st_dev != above.st_dev;
}

int mount_own_proc(void) {
    int failed = umount2("/proc", MNT_DETACH), place = failed ? -1 : open_place("/proc", MAKE_DIRECTORY);
    failed = place < 0 || mount_at(place, "proc", "proc", SAFE, NULL);
    close(place);
    return failed ? -1 : 0;
}

static int has_flags(int place, unsigned long flags) {
    struct statvfs info;
    return !fstatvfs(place, &info) && (info.f_flag & (SAFE | MS_RDONLY)) == flags; /* ST_NOSUID is MS_NOSUID, and so on */
}

/* Mounts a file system of the kernel. If it is mounted there, as by libkrun's init, it gets our options. */
static int mount_kernel(const char *type, const char *path, unsigned long flags, const char *data, int may_lack, struct why *why) {
    int place = open_place(path, MAKE_DIRECTORY);
    if (place < 0)
        return explain(why, "cannot make the mount point %s: %s", path, strerror(errno));
    int is_mounted = is_mount_point(place), is_right = is_mounted && !data && has_flags(place, flags);
    flags |= is_mounted ? MS_REMOUNT : 0;
    int failed = !is_right && mount_at(place, type, type, flags, data) && errno != EBUSY && !(may_lack && errno == ENODEV);
    if (failed)
        explain(why, "cannot mount %s: %s", path, strerror(errno));
    close(place);
    return failed ? -1 : 0;
}

/* docker's options: flags of mount(2), the others are the file system's own. */
static unsigned long parse_options(const char *text, char *data, size_t room) {
    static const struct { const char *name; unsigned long set, clear; } names[] = {
        {"ro", MS_RDONLY, 0}, {"rw", 0, MS_RDONLY}, {"exec", 0, MS_NOEXEC}, {"noexec", MS_NOEXEC, 0}, {"suid", 0, MS_NOSUID},
        {"nosuid", MS_NOSUID, 0}, {"dev", 0, MS_NODEV}, {"nodev", MS_NODEV, 0}, {"noatime", MS_NOATIME, 0},
        {"relatime", MS_RELATIME, 0}, {"nodiratime", MS_NODIRATIME, 0}, {"strictatime", MS_STRICTATIME, 0}};
    unsigned long flags = SAFE;
    *data = 0;
    for (size_t width; *text; text += width + (text[width] == ',')) {
        size_t i = 0, count = sizeof names / sizeof *names;
        width = strcspn(text, ",");
        while (i < count && (strncmp(text, names[i].name, width) || names[i].name[width]))
            i++;
        if (i < count)
            flags = (flags & ~names[i].clear) | names[i].set;
        else if (strlen(data) + width + 2 < room)
            sprintf(data + strlen(data), "%s%.*s", *data ? "," : "", (int)width, text);
    }
    return flags;
}

/* A tmpfs at `place`, with the mode of the directory that is there if the options give none. */
static int mount_tmpfs(int place, const char *options) {
    char data[1024];
    struct stat info;
    unsigned long flags = parse_options(options, data, sizeof data - 32);
    if (!strstr(data, "mode=") && !fstat(place, &info))
        sprintf(data + strlen(data), "%smode=%o", *data ? "," : "", info.st_mode & 07777);
    return mount_at(place, "tmpfs", "tmpfs", flags, data);
}

/* The options that the runner has for a tmpfs at `path`, or NULL. */
static const char *tmpfs_options(const struct records *slot, const char *path) {
    const char *key, *value;
    size_t length = strlen(path);
    for (size_t at = 0; (value = next_record(slot, &at, &key));)
        if (!strcmp(key, "tmpfs") && !strncmp(value, path, length) && value[length] == '\t')
            return value + length + 1;
    return NULL;
}

/* A tmpfs on /run, with everything in it that the image has there. */
static int mount_run(const struct records *slot, struct why *why) {
    const char *options = tmpfs_options(slot, "/run");
    struct stat info;
    int place = open_place("/run", MAKE_DIRECTORY), failed = place < 0, over = -1;
    if (!failed && !is_mount_point(place)) {
        failed = mount_tmpfs(place, options ? options : "nosuid,nodev,exec") || (over = open_place("/run", MAKE_DIRECTORY)) < 0 ||
                 fstat(place, &info) || fchownat(over, "", info.st_uid, info.st_gid, AT_EMPTY_PATH);
        if (!failed && copy_up(place, over, why)) {
            close(over), close(place);
            return -1;
        }
    }
    if (failed)
        explain(why, "cannot mount /run: %s", strerror(errno));
    if (over >= 0)
        close(over);
    if (place >= 0)
        close(place);
    return failed ? -1 : 0;
}

static int link_in_dev(const char *target, const char *path, struct why *why) {
    char now[64];
    ssize_t length = readlink(path, now, sizeof now);
    if (length == (ssize_t)strlen(target) && !memcmp(now, target, length))
        return 0;
    unlink(path);
    return symlink(target, path) ? explain(why, "cannot make %s: %s", path, strerror(errno)) : 0;
}

static int make_links(struct why *why) {
    struct stat info;
    int failed = link_in_dev("/proc/self/fd", "/dev/fd", why) || link_in_dev("/proc/self/fd/0", "/dev/stdin", why) ||
                 link_in_dev("/proc/self/fd/1", "/dev/stdout", why) || link_in_dev("/proc/self/fd/2", "/dev/stderr", why) ||
                 link_in_dev("pts/ptmx", "/dev/ptmx", why) || link_in_dev("/proc/kcore", "/dev/core", why);
    if (!failed && lstat("/etc/mtab", &info) && symlink("/proc/mounts", "/etc/mtab"))
        failed = explain(why, "cannot make /etc/mtab: %s", strerror(errno));
    return failed ? -1 : 0;
}

/* Makes a directory of the image if it is missing. */
static int make_place(const char *path, struct why *why) {
    int place = open_place(path, MAKE_DIRECTORY);
    if (place < 0)
        return explain(why, "cannot make the directory %.300s: %s", path, strerror(errno));
    close(place);
    return 0;
}

/* Makes /tmp, also where a link leads to, if it is missing. Whatever else an image has there is its own business. */
static int make_tmp(struct why *why) {
    struct stat info;
    if (!stat("/tmp", &info) || errno != ENOENT)
        return 0;
    return make_place("/tmp", why) || (chmod("/tmp", 01777) && explain(why, "/tmp: %s", strerror(errno))) ? -1 : 0;
}

/* What does not depend on the disk: a template has it before it is saved. What is there already gets the options again. */
int mount_devices(const struct records *slot, struct why *why) {
    char shm[64] = "mode=1777";
    const char *size = find_record(slot, "shm-size");
    if (size)
        snprintf(shm, sizeof shm, "mode=1777,size=%.20s", size);
    return mount_kernel("devpts", "/dev/pts", MS_NOSUID | MS_NOEXEC, "mode=0620,ptmxmode=0666,gid=5", 0, why) ||
                   mount_kernel("tmpfs", "/dev/shm", SAFE & ~MS_NOEXEC, shm, 0, why) ||
                   mount_kernel("mqueue", "/dev/mqueue", SAFE, NULL, 1, why) ||
                   mount_kernel("cgroup2", "/sys/fs/cgroup", SAFE, NULL, 1, why)
               ? -1
               : 0;
}

int mount_all(const struct records *slot, struct why *why) {
    if (make_place("/etc", why) || mount_kernel("proc", "/proc", SAFE, NULL, 0, why) ||
        mount_kernel("sysfs", "/sys", SAFE, NULL, 0, why) || mount_devices(slot, why) || mount_run(slot, why) || make_tmp(why))
        return -1;
    if (mkdir("/run/rootdisk", 0755) && errno != EEXIST)
        return explain(why, "cannot make /run/rootdisk: %s", strerror(errno));
    return make_links(why);
}

int make_volumes(const struct records *process, struct why *why) {
    const char *key, *value;
    for (size_t at = 0; (value = next_record(process, &at, &key));)
        if (!strcmp(key, "volume") && make_place(value, why))
            return -1;
    return 0;
}

static int is_same(const struct stat *one, const struct stat *other) { return one->st_dev == other->st_dev && one->st_ino == other->st_ino; }

/* Whether the directory `place` is `path` or lies below it, whatever names lead there. 1 also if that cannot be told. */
static int is_inside(int place, const char *path) {
    struct stat wanted, own, above;
    int at = openat(place, ".", O_PATH | O_DIRECTORY | O_CLOEXEC), found = -1;
    int failed = at < 0 || stat(path, &wanted) || fstat(at, &own);
    while (!failed && found < 0) {
        int parent = openat(at, "..", O_PATH | O_DIRECTORY | O_CLOEXEC);
        close(at);
        at = parent;
        failed = at < 0 || fstat(at, &above);
        if (!failed)
            found = is_same(&own, &wanted) ? 1 : is_same(&own, &above) ? 0 : -1;
        own = above;
    }
    if (at >= 0)
        close(at);
    return failed ? errno != ENOENT : found;
}

/* Whether the image has something else at `path` than a volume, a directory or a file, can be mounted on. */
static int is_other_kind(const char *path, enum kind kind) {
    struct stat info;
    return !stat(path, &info) && S_ISDIR(info.st_mode) != (kind == MAKE_DIRECTORY);
}

/* Opens the place of a volume; -1 and why if it leads to what is the kernel's or ours. */
static int open_volume(const char *path, const char *what, struct why *why) {
    static const char *const kept[] = {"/dev", "/proc", "/sys", "/.rootdisk", "/run/rootdisk"};
    struct stat own, above;
    const char *bad = NULL;
    int place = open_place(path, MAKE_DIRECTORY);
    if (place < 0 && errno == ENOTDIR && is_other_kind(path, MAKE_DIRECTORY))
        return explain(why, "%s at %.300s is a directory, but the image has a file there", what, path);
    if (place < 0)
        return explain(why, "cannot make the directory %.300s for %s: %s", path, what, strerror(errno));
    for (size_t i = 0; i < sizeof kept / sizeof *kept && !bad; i++)
        bad = is_inside(place, kept[i]) ? kept[i] : NULL;
    if (!bad && (fstat(place, &own) || fstatat(place, "..", &above, 0) || is_same(&own, &above)))
        bad = "/";
    if (!bad)
        return place;
    close(place);
    return explain(why, "%s at %.300s leads to %s in this image, where none can be", what, path, bad);
}

/* The same for a file; the kernel's own name of what was opened says where it is. */
static int open_volume_file(const char *path, struct why *why) {
    static const char *const kept[] = {"/dev/", "/proc/", "/sys/", "/.rootdisk/", "/run/rootdisk/"};
    char link[32], name[PATH_MAX];
    if (is_other_kind(path, MAKE_FILE))
        return explain(why, "the volume at %.300s is a file, but the image has a directory there", path);
    int place = open_place(path, MAKE_FILE);
    if (place < 0)
        return explain(why, "cannot make the file %.300s for the volume: %s", path, strerror(errno));
    snprintf(link, sizeof link, "/proc/self/fd/%d", place);
    ssize_t length = readlink(link, name, sizeof name - 1);
    name[length > 0 ? length : 0] = 0;
    int bad = length <= 0;
    for (size_t i = 0; i < sizeof kept / sizeof *kept && !bad; i++)
        bad = !strncmp(name, kept[i], strlen(kept[i]));
    if (!bad)
        return place;
    close(place);
    return explain(why, "the volume at %.200s leads to %.200s in this image, where none can be", path, name);
}

/* By virtiofs, or 9p if the kernel has only that. A file comes in a directory of its own, and is called `file` there. */
static int mount_volume(const char *value, int is_file, struct why *why) {
    char tag[32], path[PATH_MAX], mode[4], own[80], source[96];
    if (sscanf(value, "%31[^\t]\t%4095[^\t]\t%3s", tag, path, mode) != 3)
        return explain(why, "the runner sent a volume without tag, path or mode");
    snprintf(own, sizeof own, "/run/rootdisk/volumes/%s", tag);
    snprintf(source, sizeof source, "%s/file", own);
    int place = is_file ? open_place(own, MAKE_DIRECTORY) : open_volume(path, "the volume", why);
    if (place < 0)
        return is_file ? explain(why, "cannot make %s: %s", own, strerror(errno)) : -1;
    unsigned long flags = MS_NOSUID | MS_NODEV | (strcmp(mode, "ro") ? 0 : MS_RDONLY);
    int failed = mount_at(place, tag, "virtiofs", flags, NULL) &&
                 (errno != ENODEV || mount_at(place, tag, "9p", flags, "trans=virtio,version=9p2000.L,msize=262144"));
    if (failed)
        explain(why, "cannot mount the volume %.300s: %s%s", path, strerror(errno), errno == ENODEV ? " (the kernel has no virtiofs)" : "");
    close(place);
    if (failed || !is_file)
        return failed ? -1 : 0;
    if ((place = open_volume_file(path, why)) < 0)
        return -1;
    if ((failed = mount_at(place, source, NULL, MS_BIND, NULL)))
        explain(why, "cannot mount the volume %.300s: %s", path, strerror(errno));
    close(place);
    return failed ? -1 : 0;
}

static int mount_memory(const char *value, struct why *why) {
    char path[PATH_MAX];
    struct stat info;
    size_t width = strcspn(value, "\t");
    if (!value[width] || width >= sizeof path)
        return explain(why, "the runner sent a tmpfs without options");
    memcpy(path, value, width);
    path[width] = 0;
    if (!strcmp(path, "/run")) /* that is mounted already */
        return 0;
    int missing = stat(path, &info), place = open_volume(path, "the tmpfs", why);
    if (place < 0)
        return -1;
    /* As docker has it: the mode of what is there, else 1777. */
    char options[1024];
    snprintf(options, sizeof options, "%s%s", missing ? "mode=1777," : "", value + width + 1);
    int failed = mount_tmpfs(place, options);
    if (failed)
        explain(why, "cannot mount a tmpfs at %.200s with %.200s: %s", path, value + width + 1, strerror(errno));
    close(place);
    return failed ? -1 : 0;
}

int mount_volumes(const struct records *slot, struct why *why) {
    const char *key, *value;
    for (size_t at = 0; (value = next_record(slot, &at, &key));)
        if ((!strcmp(key, "mount") && mount_volume(value, 0, why)) || (!strcmp(key, "mount-file") && mount_volume(value, 1, why)) || (!strcmp(key, "tmpfs") && mount_memory(value, why)))
            return -1;
    return 0;
}
